"""The light Hamburger decoder: global context by factorising the features into few bases."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6


class NonNegativeFactors(nn.Module):
    """Features as the product of few bases and their coefficients, found by a few updates.

    Bases start at random in training, and in evaluation at one fixed set: the same image gives the
    same mask.

    Source: Hamburger (arXiv:2109.04553), non-negative matrix factorisation, in the form SLViT uses
    (one group, softmax without temperature, gradient through all steps). Difference: SLViT draws
    new bases in evaluation too.
    """

    bases: Tensor

    def __init__(
        self, *, dim: int, rank: int = 64, train_steps: int = 6, eval_steps: int = 7
    ) -> None:
        super().__init__()
        self.train_steps, self.eval_steps = train_steps, eval_steps
        drawn = np.random.default_rng(zlib.crc32(b"nmf_bases")).random((1, dim, rank))
        self.register_buffer("bases", torch.from_numpy(drawn.astype(np.float32)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Low-rank reconstruction of (B, D, H, W), not negative."""
        features = x.flatten(2)  # (B, D, N)
        bases = torch.rand_like(self.bases.expand(len(x), -1, -1)) if self.training else self.bases
        bases = F.normalize(bases, dim=1).expand(len(x), -1, -1)
        coefficients = (features.transpose(1, 2) @ bases).softmax(dim=-1)  # (B, N, R)
        for _ in range(self.train_steps if self.training else self.eval_steps):
            coefficients = _updated(coefficients, features.transpose(1, 2), bases)
            bases = _updated(bases, features, coefficients)
        coefficients = _updated(coefficients, features.transpose(1, 2), bases)
        return (bases @ coefficients.transpose(1, 2)).view_as(x)


def _updated(factor: Tensor, target: Tensor, other: Tensor) -> Tensor:
    """One multiplicative update of ``factor`` towards ``target = factor other^T``."""
    return factor * (target @ other) / (factor @ (other.transpose(1, 2) @ other) + EPSILON)


class ConvNorm(nn.Module):
    """1x1 convolution without bias, group norm, ReLU."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 1, bias=False)
        self.norm = nn.GroupNorm(32, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Hamburger(nn.Module):
    """1x1 convolution, factorisation, 1x1 convolution, added to the input."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.lower, self.upper = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.factors = NonNegativeFactors(dim=dim, rank=rank)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.upper(self.factors(F.relu(self.lower(x)))))


class LightHamDecoder(nn.Module):
    """Four levels at the resolution of the finest, squeezed, seen as a whole, classified.

    Source: SegNeXt (arXiv:2209.08575), section 3.2, with SLViT's four levels (SegNeXt: three at
    stride 8) and without its norm after the upper convolution.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        hidden_dim: int = 512,
        out_dim: int = 256,
        rank: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.squeeze = ConvNorm(sum(dims), hidden_dim)
        self.hamburger = Hamburger(hidden_dim, rank)
        self.align = ConvNorm(hidden_dim, out_dim)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(out_dim, 2, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C_l, H_l, W_l), finest first -> logits (B, 2, H_1, W_1)."""
        size = levels[0].shape[-2:]
        resized = [
            F.interpolate(level, size=size, mode="bilinear", align_corners=False)
            for level in reversed(levels)
        ]
        x = self.hamburger(self.squeeze(torch.cat(resized, dim=1)))
        return self.classify(self.dropout(self.align(x)))
