"""Losses beside those of the queries, for training only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from unified.segmenter import Segmenter
from unified.structures import References, Target


@dataclass(frozen=True)
class FeatureStages:
    """Features of B images on their way through the model, each L x (B, C, H_l, W_l).

    Attributes:
        encoded: before any reference.
        fused: after every reference was injected.
        memory: after the transformer's encoder.
    """

    encoded: Sequence[Tensor]
    fused: Sequence[Tensor]
    memory: Sequence[Tensor]


class AuxiliaryLoss(Protocol):
    """A module that is given to UniRef by name and asked in ``UniRef.losses``."""

    def __call__(
        self,
        model: Segmenter,
        stages: FeatureStages,
        references: Sequence[References],
        targets: Sequence[Target],
    ) -> Mapping[str, Tensor]:
        """Weighted scalar losses by name; empty where the loss does not apply to the batch.

        Args:
            model: in training, to encode further references with.
            references, targets: as for ``UniRef.losses``.
        """
        ...
