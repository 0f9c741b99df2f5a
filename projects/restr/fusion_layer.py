"""ReSTR's joint encoder as a fusion layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.fusion import FusionLayer, register_fusion
from unified.modeling.layers import xavier_init, zero_init
from unified.structures import Reference


@register_fusion
class JointFusion(FusionLayer):
    """Image tokens attend to themselves and to the reference in one softmax, then a small network.

    Image and reference have the same say however many tokens each has: the score of a token is
    lowered by the logarithm of their number, so that a reference given twice says the same as once.

    Source: ReSTR (arXiv:2203.16768), section 3.2, one block, of which only image tokens come out;
    but for those numbers and the gate that is zero at first.
    """

    inputs = ("keys", "values")

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int = 8,
        head_dim: int = 256,
        dropout: float = 0.0,
        attention_dtype: torch.dtype | None = None,
        **_: object,
    ) -> None:
        """Takes and leaves ``backend``: only torch's attention takes numbers added to scores."""
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads, self.dropout, self.dtype = num_heads, dropout, attention_dtype
        self.norm_image, self.norm_reference = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, inner) for _ in range(3))
        self.output = nn.Linear(inner, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )
        self.gate = nn.Linear(dim, dim)
        xavier_init(self.query, self.key, self.value, self.output)
        zero_init(self.gate)

    def fuse(self, tokens: Tensor, reference: Reference) -> Tensor:
        image = self.norm_image(tokens)
        keys = self.key(torch.cat((image, self.norm_reference(reference.keys)), dim=1))
        values = self.value(torch.cat((image, reference.values), dim=1))
        query, keys, values = (self._split(x) for x in (self.query(image), keys, values))
        heads = F.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=_share(tokens.shape[1], reference.padding_mask).to(query.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        x = self.output(heads.transpose(1, 2).flatten(2).to(tokens.dtype))
        return self.gate(x + self.mlp(x))

    def _split(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, D)
        return heads if self.dtype is None else heads.to(self.dtype)


def _share(num: int, padding_mask: Tensor) -> Tensor:
    """What is added to the scores of ``num`` image tokens and the reference's, (B, 1, 1, P + N)."""
    count = (~padding_mask).sum(dim=1, keepdim=True).clamp(min=1)
    own = -torch.log(torch.full_like(count, num).float())
    theirs = -torch.log(count.float()).expand(-1, padding_mask.shape[1])
    theirs = theirs.masked_fill(padding_mask, -torch.inf)
    return torch.cat((own.expand(-1, num), theirs), dim=1)[:, None, None]
