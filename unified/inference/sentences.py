"""What a sentence says by itself about an object of a clip, beside what is remembered of it."""

from __future__ import annotations

import logging
import math

from torch import Tensor

from unified.inference.answers import Answer
from unified.inference.memory import VideoMemory
from unified.inference.presence import SAME_OBJECT_IOU
from unified.masks import MASK_THRESHOLD

logger = logging.getLogger(__name__)

# Between two scores of a sentence, in logits: 0.31 and 0.55, or 0.5 and 0.73.
CLEARLY = 1.0


def is_weak(memory: VideoMemory, object_id: int, enough: float) -> bool:
    """Whether memory rests on a sentence whose score was not ``enough``."""
    score = memory.found_with(object_id)
    return score is not None and score < enough


def takes_over(memory: VideoMemory, object_id: int, alone: Answer, remembered: Answer) -> bool:
    """Whether the sentence alone shows another object than memory, and clearly better.

    Memory is then begun anew; where both show the same object it rests on the better score.
    """
    mask, other = alone[1] > MASK_THRESHOLD, remembered[1] > MASK_THRESHOLD
    if not mask.any():
        return False
    score, found_with = float(alone[0]), memory.found_with(object_id)
    assert found_with is not None, "memory rests on the sentence"
    if is_same(mask, other):
        memory.confirm(object_id, score)
        return False
    if _logit(score) <= _logit(found_with) + CLEARLY:
        return False
    memory.restart(object_id)
    return True


def drop_other(memory: VideoMemory, object_id: int, alone: Answer, shown: Tensor) -> None:
    """Forgets a sentence that alone does not find what a mask of the user shows, (H, W) bool."""
    if not is_same(alone[1] > MASK_THRESHOLD, shown):
        memory.drop_text(object_id)
        logger.warning(
            "object %d is followed by its mask alone: its sentence by itself does not find what "
            "the mask shows",
            object_id,
        )


def is_same(mask: Tensor, other: Tensor) -> bool:
    """Whether two masks (H, W), not both empty, are of one object."""
    return bool((mask & other).sum() >= SAME_OBJECT_IOU * (mask | other).sum())


def _logit(score: float) -> float:
    share = min(max(score, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))
