"""Whether an object is there, and why not: five answers that a mask without a pixel could mean."""

from __future__ import annotations

import numpy as np

from unified.structures import Presence

SAME_OBJECT_IOU = 0.5
LEFT_OVER = 0.2  # an object that keeps a smaller share of what it claims has lost it


def presence(
    score: float,
    threshold: float,
    mask: np.ndarray,
    label_map: np.ndarray,
    *,
    object_id: int,
    seen: bool = False,
) -> Presence:
    """What became of one object of a picture or frame whose masks were merged.

    Args:
        score, threshold: below the threshold the model says that the object is not there.
        mask: (H, W) bool, what the object claims.
        label_map: (H, W) uint8, what came of all claims.
        seen: it was there on an earlier frame.
    """
    if score < threshold:
        return Presence("absent" if seen else "refused")
    if not mask.any():
        return Presence("absent")
    winners = np.bincount(label_map[mask], minlength=256)
    if winners[object_id] >= LEFT_OVER * mask.sum():
        return Presence("present")
    winners[[0, object_id]] = 0
    winner = int(winners.argmax())
    if not winners[winner]:  # what it claims is not claimed strongly enough by anyone
        return Presence("absent")
    shared = winners[winner] / (mask | (label_map == winner)).sum()
    return Presence("outcompeted" if shared >= SAME_OBJECT_IOU else "covered", by=winner)
