"""Gated fusion of levels of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from unified.modeling.layers import xavier_init


class GatedFusion(nn.Module):
    """Every level takes from the two others what its gates let through; the sum of all three.

    Source: CMSA-Net, ``GATECell``: the gates of a level are its own, and what it adds where they
    are closed is a convolution of it.
    """

    chunks: ClassVar[int] = 3

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Conv2d(dim, self.chunks * dim, 3, padding=1) for _ in range(3)
        )
        xavier_init(*self.gates)
        self.shares = nn.ParameterList(torch.tensor(0.5) for _ in range(3))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels 3 x (B, C, H, W), the coarsest first -> (B, C, H, W)."""
        parts = [gate(x).chunk(self.chunks, 1) for gate, x in zip(self.gates, levels, strict=True)]
        return sum(
            (self.cell(index, levels, parts) for index in range(3)), torch.zeros_like(levels[0])
        )

    def cell(
        self, index: int, levels: Sequence[Tensor], parts: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """One level after it looked at the others, (B, C, H, W).

        Args:
            index: of the level.
            parts: of every level, what its convolution gives: candidate, memory and reset gate.
        """
        candidate, memory, reset = parts[index]
        first, second = (level for other, level in enumerate(levels) if other != index)
        memory, reset = (memory + 1).sigmoid(), (reset + 1).sigmoid()
        share = self.shares[index]
        mixed = share * memory * first + (1 - share) * memory * second + (1 - memory) * candidate
        return reset * mixed.tanh() + (1 - reset) * levels[index]


class PaperGatedFusion(GatedFusion):
    """As printed: the other levels' gates count, and the level itself is the candidate.

    Source: CMSA (arXiv:1904.04745), section 3.3.
    """

    chunks = 2

    def cell(
        self, index: int, levels: Sequence[Tensor], parts: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """See ``GatedFusion.cell``; ``parts`` are memory and reset gate."""
        memories = [(part[0] + 1).sigmoid() for part in parts]
        reset = (parts[index][1] + 1).sigmoid()
        mixed = (1 - memories[index]) * levels[index]
        for other, level in enumerate(levels):
            if other != index:
                mixed = mixed + self.shares[other] * memories[other] * level
        return reset * mixed.tanh() + (1 - reset) * levels[index]


GATES: dict[str, type[GatedFusion]] = {"code": GatedFusion, "paper": PaperGatedFusion}
