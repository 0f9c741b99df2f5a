"""Whether an object is there, and why not: five answers that a mask without a pixel could mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

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


def presences(
    masks: Mapping[int, np.ndarray],
    scores: Mapping[int, float],
    claims: Tensor,
    label_map: np.ndarray,
    *,
    threshold: float,
    seen: Callable[[int], bool],
) -> dict[int, Presence]:
    """``presence`` of every object of a frame.

    Args:
        masks: (H, W) bool by object, after merging.
        claims: (O, H, W) bool on any device, in the order of ``masks``.
        seen: whether an object was there on an earlier frame.
    """
    # As bytes: torch adds up bools far more slowly on CPUs.
    wanted = claims.view(torch.uint8).sum(dim=(1, 2), dtype=torch.int32).tolist()
    found: dict[int, Presence] = {}
    for row, (object_id, mask) in enumerate(masks.items()):
        if mask.any() and mask.sum() >= LEFT_OVER * wanted[row]:
            found[object_id] = Presence("present")
        else:
            found[object_id] = presence(
                scores[object_id],
                threshold,
                claims[row].cpu().numpy(),
                label_map,
                object_id=object_id,
                seen=seen(object_id),
            )
    return found
