"""Pictures, prompts and answers that the tests of the predictors share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest
from torch import nn

from tests.toy.model import Toy
from unified import ImagePredictor, VideoPredictor
from unified.structures import FrameResult, Prompt, Support

SIZE = (60, 80)
SHORT, LONG = 64, 128
TEXTS = ("the red dog", "a man on the left", "cat", "a tree")


def frames(num: int, size: tuple[int, int] = SIZE, seed: int = 0) -> list[np.ndarray]:
    """Coloured rectangles on noise."""
    rng = np.random.default_rng(seed)
    clip = rng.integers(0, 60, (num, *size, 3), dtype=np.uint8)
    for index, frame in enumerate(clip):
        frame[5 + index : 30 + index, 10:40] = (200, 30, 30)
        frame[30:50, 45 - index : 70 - index] = (20, 40, 220)
    return list(clip)


def box_mask(top: int, left: int, height: int = 20, width: int = 25) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


MASKS = (box_mask(5, 10), box_mask(30, 45), box_mask(20, 5, 30, 12))


def video(model: Toy, **options: object) -> VideoPredictor:
    given = {"short_side": SHORT, "max_size": LONG, "score_threshold": 0.0, **options}
    return VideoPredictor(model, **given)  # type: ignore[arg-type]


def image(model: Toy) -> ImagePredictor:
    predictor = ImagePredictor(model, short_side=SHORT, max_size=LONG)
    predictor.set_image(frames(1)[0])
    return predictor


@contextmanager
def count_calls(module: nn.Module) -> Iterator[list[int]]:
    """Collects the batch size of every call."""
    calls: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        yield calls
    finally:
        hook.remove()


def equal(ours: FrameResult, expected: FrameResult, *, atol: float = 0.0) -> None:
    assert list(ours.scores) == list(expected.scores)
    assert list(ours.scores.values()) == pytest.approx(list(expected.scores.values()), abs=atol)
    flipped = (ours.label_map != expected.label_map).mean()
    assert flipped <= (0.002 if atol else 0)
    if not flipped:
        assert ours.boxes == expected.boxes and ours.areas == expected.areas


def all_equal(ours: list[FrameResult], expected: list[FrameResult], atol: float = 0.0) -> None:
    assert len(ours) == len(expected)
    for mine, reference in zip(ours, expected, strict=True):
        equal(mine, reference, atol=atol)


MIXED: Mapping[int, Mapping[int, Prompt]] = {
    0: {
        1: Prompt(mask=MASKS[0]),
        2: Prompt(text=TEXTS[0]),
        3: Prompt(text=TEXTS[1], mask=MASKS[1]),
    },
    2: {5: Prompt(mask=MASKS[2]), 4: Prompt(text=TEXTS[2])},
}


BAD_PROMPTS = {
    "nothing": (Prompt(), "the prompt is empty"),
    "a bare sentence": ("the cat", r"expected a Prompt, got 'the cat': write Prompt\(text="),
    "points as numbers": (Prompt(points=((3, 3),)), "expected points of unified.structures.Point"),
    "mask of another size": (Prompt(mask=np.ones((30, 40), bool)), r"\(60, 80\), got \(30, 40\)"),
    "colour mask": (Prompt(mask=np.ones((*SIZE, 3), bool)), r"got \(60, 80, 3\)"),
    "empty mask": (Prompt(mask=np.zeros(SIZE, bool)), "the mask is empty"),
    "empty text": (Prompt(text="  "), "no word"),
    "empty support": (
        Prompt(supports=(Support(frames(1)[0], np.zeros(SIZE, bool)),)),
        "the mask is empty",
    ),
    "support of another size": (
        Prompt(supports=(Support(frames(1)[0], np.ones((9, 9), bool)),)),
        r"got \(9, 9\)",
    ),
    "grey support": (
        Prompt(supports=(Support(frames(1)[0][..., 0], MASKS[0]),)),
        "expected an RGB image",
    ),
}
