"""What a SAM sees of images, and what is shown to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from unified.structures import FeaturePyramid, Reference, Size


@dataclass(frozen=True, kw_only=True)
class SamPyramid(FeaturePyramid):
    """SAM's embedding as the one level, with what else its decoder needs.

    Attributes:
        extras: tensors (B, ...).
        context: (B, C, h, w) of what things are, for the fusion alone, or None.
    """

    extras: tuple[Tensor, ...] = ()
    context: Tensor | None = None

    def expand(self, num: int) -> SamPyramid:
        """As of every pyramid."""
        expanded = super().expand(num)
        assert isinstance(expanded, SamPyramid)
        extras = tuple(extra.expand(num, *extra.shape[1:]) for extra in self.extras)
        context = None if self.context is None else self.context.expand(num, -1, -1, -1)
        return replace(expanded, extras=extras, context=context)


@dataclass(frozen=True, kw_only=True)
class PointReference(Reference):
    """Points and boxes as SAM's own sparse tokens, in keys and values.

    Attributes:
        ambiguous: one point may mean a thing or a part of it.
    """

    ambiguous: bool


@dataclass(frozen=True, kw_only=True)
class SentenceReference(Reference):
    """Of a sentence."""


def covered(features: FeaturePyramid, *, pooled: int = 1, margin: int = 0) -> tuple[Size, ...]:
    """Rows and columns that each image reaches into, of the embedding.

    Args:
        pooled: the embedding is taken at 1 / ``pooled`` of its size.
        margin: how many more are counted, where there are more.
    """
    (embedding,) = features.levels
    side = embedding.shape[-1] // pooled
    cell = features.padded_size[0] // side
    return tuple(
        (min(-(-height // cell) + margin, side), min(-(-width // cell) + margin, side))
        for height, width in features.image_sizes
    )


def largest(sizes: Sequence[Size]) -> Size:
    """Rows and columns that hold all."""
    return max(rows for rows, _ in sizes), max(columns for _, columns in sizes)
