"""Why an object has no mask: each answer from masks that were drawn for it."""

from __future__ import annotations

import numpy as np
import pytest

from unified.inference.presence import presence
from unified.label_maps import merge_by_score
from unified.structures import Presence

SIZE = (20, 40)


def box(left: int, right: int, bottom: int = 20) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[:bottom, left:right] = True
    return mask


EMPTY = np.zeros(SIZE, bool)
CASES = {
    "there": (box(0, 10), box(20, 40), 0.5, False, Presence("present")),
    "half of it lost": (box(0, 10), box(5, 40), 0.5, False, Presence("present")),
    "score too low": (EMPTY, box(20, 40), 0.2, False, Presence("refused")),
    "score too low, after it was seen": (EMPTY, box(20, 40), 0.2, True, Presence("absent")),
    "no pixel": (EMPTY, box(20, 40), 0.5, False, Presence("absent")),
    "the same object twice": (box(0, 10), box(0, 11), 0.5, False, Presence("outcompeted", by=2)),
    "but for a rim": (box(0, 30), box(1, 30), 0.5, False, Presence("outcompeted", by=2)),
    "a fifth of it left": (box(0, 10), box(2, 10), 0.5, False, Presence("present")),
    "less than a fifth": (box(0, 16), box(3, 16), 0.5, False, Presence("outcompeted", by=2)),
    "a part of another": (box(0, 10, bottom=5), box(0, 40), 0.5, False, Presence("covered", by=2)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_became_of_an_object(name: str) -> None:
    """The second object has the higher score."""
    mask, other, score, seen, expected = CASES[name]
    label_map = merge_by_score([mask, other], [score, 0.9])
    assert presence(score, 0.3, mask, label_map, object_id=1, seen=seen) == expected
    assert presence(0.9, 0.3, other, label_map, object_id=2) == Presence("present")
