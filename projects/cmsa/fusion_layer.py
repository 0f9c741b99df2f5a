"""CMSA's attention as a fusion layer, for models whose references may have thousands of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.attention import Backend, attend
from unified.modeling.fusion import FusionLayer, register_fusion
from unified.modeling.layers import xavier_init, zero_init
from unified.structures import Reference


@register_fusion
class PairFusion(FusionLayer):
    """Pairs of an image token and a reference token attend to pairs; both sides are pooled.

    CMSA pools the pairs that are attended to over neighbours. Here they are pooled over all image
    tokens, and those that ask over all reference tokens: both maxima are exact without a pair being
    stored, because a projection of a pair is a term for each side before its ReLU. What is left is
    as costly as cross-attention, and one token of a reference more or less changes no other.

    Source: CMSA (arXiv:1904.04745), section 3.2, but for the pooling, the scaled scores and the
    gate that is zero at first.
    """

    inputs = ("keys", "values")

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int = 8,
        head_dim: int = 256,
        dropout: float = 0.0,
        backend: Backend = "sdpa",
        attention_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads, self.dropout = num_heads, dropout
        self.backend, self.dtype = backend, attention_dtype
        self.norm_image, self.norm_reference = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.image = nn.Linear(dim, 3 * inner)
        self.ask, self.key = nn.Linear(dim, inner, bias=False), nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, inner, bias=False)
        self.output = nn.Linear(inner, dim)
        self.gate = nn.Linear(dim, dim)
        xavier_init(self.image, self.ask, self.key, self.value, self.output)
        zero_init(self.gate)

    def fuse(self, tokens: Tensor, reference: Reference) -> Tensor:
        padding = reference.padding_mask[..., None]
        said = self.norm_reference(reference.keys)
        ask, key, value = self.image(self.norm_image(tokens)).chunk(3, dim=-1)
        asked = self.ask(said).masked_fill(padding, -torch.inf).amax(dim=1, keepdim=True)
        query = F.relu(ask + asked)
        key = F.relu(key.amax(dim=1, keepdim=True) + self.key(said))
        value = F.relu(value.amax(dim=1, keepdim=True) + self.value(reference.values))
        heads = attend(
            self._split(query),
            self._split(key),
            self._split(value),
            reference.padding_mask,
            backend=self.backend,
            dropout=self.dropout if self.training else 0.0,
        )
        attended = heads.transpose(1, 2).flatten(2).to(tokens.dtype)
        return self.gate(F.relu(self.output(attended)))

    def _split(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, D)
        return heads if self.dtype is None else heads.to(self.dtype)
