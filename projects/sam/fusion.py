"""UniFusion in layers: what a reference means is found out over the whole picture, then added.

One layer of UniFusion adds to each pixel what it attends to, and leaves it to a detector's encoder
and decoder to compare pixels with each other. A SAM has no such encoder: its decoder follows one
token. Here layers of UniFusion take turns with attention among the pixels, at half the resolution
of the embedding, and what they found joins the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from unified.masks import MAX_LOGIT
from unified.modeling.attention import attend
from unified.modeling.fusion import FilmUniFusion, FusionLayer
from unified.modeling.layers import sine_position, zero_init
from unified.structures import Reference, Size, once

DROPOUT = 0.1  # of what a layer adds, in training


class DeepFusion(FusionLayer):
    """Layers of attention among pixels, UniFusion and MLP at half resolution; no part of UniRef++.

    Where images do not reach nothing need be computed: nothing is attended to, nothing is added.

    Args:
        dim: of the embedding.
        depth: number of layers.
        num_heads, head_dim: of every attention.
        dropout: on the attention to references.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int = 3,
        num_heads: int = 4,
        head_dim: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.layers = nn.ModuleList(
            _Layer(dim, num_heads=num_heads, head_dim=head_dim, dropout=dropout)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.leave = nn.Linear(dim, dim)
        self.mask = nn.Linear(dim, 4)
        zero_init(self.leave)

    def forward(self, tokens: Tensor, references: Sequence[Reference]) -> Tensor:
        """Tokens (B, N, C) of a square embedding, changed by all references together."""
        if not references:
            return tokens
        return tokens + self.found(tokens, references)[0]

    def fuse(self, tokens: Tensor, reference: Reference) -> Tensor:
        """What one reference alone adds."""
        return self.found(tokens, [reference])[0]

    def found(
        self,
        tokens: Tensor,
        references: Sequence[Reference],
        covered: Sequence[Size] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What is added (B, N, C), and a coarse mask (B, side, side), logits, of what is meant.

        ``side`` is that of the embedding.

        Args:
            covered: rows and columns at half its resolution that each image reaches into, all by
                default.
        """
        if covered is not None and len(set(covered)) > 1:
            alone = [
                self.found(tokens[i : i + 1], [one[i : i + 1] for one in references], [size])
                for i, size in enumerate(covered)
            ]
            added, coarse = zip(*alone, strict=True)
            return torch.cat(added), torch.cat(coarse)
        whole = pooled_map(once(tokens))
        side = whole.shape[-1]
        rows, columns = covered[0] if covered else (side, side)
        position = grid_position(whole)[..., :rows, :columns]
        pooled = whole[..., :rows, :columns]
        x = self.enter(_tokens(pooled)) + _tokens(position)
        x = x.expand(len(tokens), -1, -1)
        for layer in self.layers:
            x = layer(x, references)
        x = self.norm(x)
        added = rearrange(self.leave(x), "b (h w) c -> b c h w", h=rows)
        added = F.interpolate(added, scale_factor=2, mode="bilinear", align_corners=False)
        coarse = rearrange(self.mask(x), "b (h w) (y x) -> b (h y) (w x)", h=rows, y=2)
        beyond = (0, 2 * (side - columns), 0, 2 * (side - rows))
        return _tokens(F.pad(added, beyond)), F.pad(coarse, beyond, value=-MAX_LOGIT)


def pooled_map(tokens: Tensor) -> Tensor:
    """Tokens (B, N, C) of a square embedding at half its resolution, (B, C, side, side)."""
    side = isqrt(int(tokens.shape[1]))  # a tensor while traced
    return F.avg_pool2d(rearrange(tokens, "b (h w) c -> b c h w", h=side), 2)


def grid_position(maps: Tensor) -> Tensor:
    """Sine code of the pixels of (B, C, h, w), (1, C, h, w)."""
    nothing = torch.zeros(1, *maps.shape[-2:], dtype=torch.bool, device=maps.device)
    return sine_position(nothing, maps.shape[1]).to(maps.dtype)


def _tokens(maps: Tensor) -> Tensor:
    return rearrange(maps, "b c h w -> b (h w) c")


class _Layer(nn.Module):
    def __init__(self, dim: int, *, num_heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.norm_pixels = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(DROPOUT)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, dim)
        self.fusion = FilmUniFusion(
            dim=dim, num_heads=num_heads, head_dim=head_dim, dropout=dropout
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, x: Tensor, references: Sequence[Reference]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        num, x = len(x), once(x)  # the first layer sees one image for all objects
        y = self.norm_pixels(x)
        q, k, v = (
            rearrange(proj(y), "b n (heads d) -> b heads n d", heads=self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = self.out_proj(rearrange(attend(q, k, v), "b heads n d -> b n (heads d)"))
        x = self.fusion((x + self.dropout(mixed)).expand(num, -1, -1), references)
        return x + self.dropout(self.mlp(x))
