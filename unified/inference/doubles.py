"""Sentences that turn out to mean a thing which another object of the clip is already."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

logger = logging.getLogger(__name__)

# IoU of two masks from which they are taken for one thing, and below which they are two again.
SAME, OTHER = 0.8, 0.5


class Doubles:
    """Which objects show what another one shows; that one has all of the pixels.

    So a thing that two sentences mean has one id on all frames: the one that was seen first, of
    two that are found together the smaller one. What the user showed keeps its pixels.
    """

    def __init__(self) -> None:
        self._of: dict[int, int] = {}  # object id -> the one that has its pixels
        self._told: set[tuple[int, int]] = set()

    def update(
        self,
        ids: Sequence[int],
        claims: Tensor,
        *,
        said: Collection[int],
        seen: Collection[int],
    ) -> Mapping[int, int]:
        """Object id -> the one that has its pixels on this frame, which shows the same thing.

        Args:
            claims: (O, H, W) bool, what each object of ``ids`` takes for its own.
            said: objects that were found by a sentence; others are never the double of another.
            seen: objects that had pixels before this frame.
        """
        if not said or len(ids) < 2:
            self._of = {}
            return self._of
        rows = claims.flatten(1).float()  # (O, H*W)
        shared, areas = rows @ rows.t(), rows.sum(dim=1)
        iou = (shared / (areas[:, None] + areas - shared).clamp(min=1)).tolist()
        order = sorted(ids, key=lambda i: (i in said, i in self._of, i not in seen, i))
        found: dict[int, int] = {}
        for place, object_id in enumerate(order):
            others = [other for other in order[:place] if other not in found]
            for other in others if object_id in said else ():
                least = OTHER if self._of.get(object_id) == other else SAME
                if iou[ids.index(object_id)][ids.index(other)] >= least:
                    found[object_id] = other
                    break
        self._of = found
        self._tell()
        return found

    def forget(self, object_id: int) -> None:
        """Another object may get its id; unknown ids are fine."""
        self._of = {i: other for i, other in self._of.items() if object_id not in (i, other)}
        self._told = {pair for pair in self._told if object_id not in pair}

    def _tell(self) -> None:
        """Says once of each pair what becomes of it."""
        for pair in self._of.items():
            if pair not in self._told:
                self._told.add(pair)
                logger.warning(
                    "object %d shows the same thing as object %d, which keeps its pixels: ask for "
                    "one of them, or for a mask of each with --separate (merge_rule 'separate')",
                    *pair,
                )
