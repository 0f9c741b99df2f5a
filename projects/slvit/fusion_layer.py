"""SLViT's gated attention as a fusion layer that any model with references can name."""

from __future__ import annotations

from torch import Tensor, nn

from projects.slvit.attention import GatedCrossAttention
from unified.modeling.fusion import FusionLayer, register_fusion
from unified.modeling.layers import zero_init
from unified.structures import Reference


@register_fusion
class GatedFusion(FusionLayer):
    """One head of attention, normalised over the image and gated by a tanh of itself.

    Where ``UniFusion`` gates by the summary of the reference, here each pixel and channel opens as
    what it attends to says. The gate starts closed, which SLViT's does not, so that the layer is
    the identity at first; projections that lead into a norm have no bias.

    Source: SLViT (IJCAI 2023), language-guided multi-scale fusion attention.
    """

    inputs = ("keys", "values")

    def __init__(self, *, dim: int, **_: object) -> None:
        """Takes and leaves the options of attention: there is one head as wide as the tokens."""
        super().__init__()
        self.norm_key = nn.LayerNorm(dim)
        self.attention = GatedCrossAttention(dim=dim, context_dim=dim, bias=False)
        zero_init(self.attention.gate[2])

    def fuse(self, tokens: Tensor, reference: Reference) -> Tensor:
        keys = self.norm_key(reference.keys)
        return self.attention(tokens, keys, reference.padding_mask, values=reference.values).tokens
