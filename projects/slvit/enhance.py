"""Uncertain regions: where the stages disagree, tokens of all scales attend to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.slvit.attention import Attended


def attention_sum(attended: Attended, padding_mask: Tensor) -> Tensor:
    """Weights of the words summed: as published, and 1 everywhere up to rounding."""
    return attended.weights.sum(dim=-1)


def logit_mean(attended: Attended, padding_mask: Tensor) -> Tensor:
    """Mean similarity to the words before softmax: how much a pixel is spoken of."""
    keep = (~padding_mask)[:, None].to(attended.logits.dtype)
    return (attended.logits * keep).sum(dim=-1) / keep.sum(dim=-1)


# name -> what of the attention (B, N, T) with padding_mask (B, T) is a pixel's score (B, N)
SCORES: Mapping[str, Callable[[Attended, Tensor], Tensor]] = {
    "attn_sum": attention_sum,
    "logit_mean": logit_mean,
}


class UncertainRegionEnhancement(nn.Module):
    """Cross-scale attention within the K coarsest cells whose score changes most between stages.

    A cell of stride 32 owns 64 + 16 + 4 + 1 tokens of the four levels. Chosen cells get the result
    of attention among them; all others twice their own tokens.

    Source: SLViT (IJCAI 2023), uncertain region cross-scale enhancement, as its code computes it:
    no 1/sqrt(d) in the attention, chosen cells are replaced while others are doubled.
    Differences: maps need not be square; fewer than K cells are all chosen.
    """

    def __init__(
        self, *, dims: Sequence[int], dim: int = 256, num_heads: int = 8, num_regions: int = 32
    ) -> None:
        super().__init__()
        self.num_heads, self.num_regions = num_heads, num_regions
        self.unify = nn.ModuleList(nn.Linear(level, dim) for level in dims)
        self.revert = nn.ModuleList(nn.Linear(dim, level) for level in dims)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.layer_scale = nn.Parameter(torch.ones(dim))

    def forward(self, levels: Sequence[Tensor], regions: Tensor) -> list[Tensor]:
        """Enhanced levels, of the same shapes.

        Args:
            levels: four (B, C_l, H_l, W_l), finest first, each half the size of the one before.
            regions: (B, K) indices of cells of the last level, row by row.
        """
        sides = [2**index for index in reversed(range(len(levels)))]  # tokens of a cell in a row
        cells = torch.cat(
            [
                _cells(unify(level.movedim(1, -1)), side)
                for unify, level, side in zip(self.unify, levels, sides, strict=True)
            ],
            dim=2,
        )  # (B, h * w, 85, D)
        index = regions[..., None, None].expand(-1, -1, *cells.shape[2:])
        chosen = cells.gather(1, index)
        chosen = chosen + self.layer_scale * self._attend(chosen)
        enhanced = (2 * cells).scatter(1, index, chosen.to(cells.dtype))
        parts = enhanced.split([side * side for side in sides], dim=2)
        height, width = levels[-1].shape[-2:]
        return [
            revert(_uncells(part, side, height, width)).movedim(-1, 1)
            for revert, part, side in zip(self.revert, parts, sides, strict=True)
        ]

    def uncertainty(self, scores: Sequence[Tensor]) -> Tensor:
        """How much the four scores (B, H_l, W_l) differ from stage to stage: (B, h, w)."""
        size = scores[-1].shape[-2:]
        maps = [
            F.interpolate(score[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
            for score in scores[:-1]
        ]
        pairs = zip(maps, [*maps[1:], scores[-1]], strict=True)
        return torch.stack([(a - b).abs() for a, b in pairs]).sum(dim=0)

    def select(self, uncertainty: Tensor) -> Tensor:
        """The most uncertain cells of (B, h, w): (B, K) indices, largest first."""
        flat = uncertainty.flatten(1)
        return flat.topk(min(self.num_regions, flat.shape[1]), dim=1).indices

    def _attend(self, tokens: Tensor) -> Tensor:
        """(B, K, S, D) -> the same; S tokens of one cell attend to each other."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # (B, K, S, 3, heads, d)
        query, key, value = qkv.movedim(-3, 0).transpose(-3, -2)  # each (B, K, heads, S, d)
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.proj(attended.transpose(-3, -2).flatten(-2))


def _cells(x: Tensor, side: int) -> Tensor:
    """(B, h * side, w * side, D) -> (B, h * w, side * side, D)."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (B, h, side, w, side, D)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _uncells(x: Tensor, side: int, height: int, width: int) -> Tensor:
    """Undoes ``_cells``."""
    x = x.unflatten(2, (side, side)).unflatten(1, (height, width))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
