"""What goes into a model: sizes, resizing and masks of any type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.toy.model import Toy, make_toy
from unified.inference.frames import FrameEncoder, resize_image
from unified.inference.settings import ModelInput
from unified.structures import resized_size

SIZE = (60, 80)


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 854), 480, 1333, (480, 854)),
        ((720, 1280), 480, 1333, (480, 853)),
        ((1280, 720), 480, 1333, (853, 480)),
        ((100, 1000), 480, 1333, (133, 1333)),
        ((3, 5000), 480, 1000, (1, 1000)),
        ((240, 320), 480, 1333, (480, 640)),
    ],
)
def test_resized_size(
    size: tuple[int, int], short: int, longest: int, expected: tuple[int, int]
) -> None:
    assert resized_size(size, short, longest) == expected


def test_resize_is_antialiased_and_leaves_a_fitting_image_alone() -> None:
    frame = noise()
    assert resize_image(frame, SIZE) is frame
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize_image(stripes, (16, 16))
    assert small.shape == (16, 16, 3) and abs(small.astype(int) - 127).max() < 20


def test_masks_given_as_numbers_are_the_same_as_booleans(segmenter: Toy) -> None:
    encoder = FrameEncoder(segmenter, ModelInput(short_side=64, max_size=128))
    frame = encoder.image(noise())
    marked = np.zeros(SIZE, bool)
    marked[5:25, 10:35] = True
    expected = encoder.masks(frame, [marked])[0][0].values
    for mask in (marked.astype(np.uint8) * 255, marked.astype(np.float32)):
        assert torch.equal(encoder.masks(frame, [mask])[0][0].values, expected)


def test_what_a_model_said_before_it_changed_is_forgotten() -> None:
    toy = make_toy()
    encoder = FrameEncoder(toy, ModelInput(short_side=64, max_size=128))
    encoder.image(noise())
    before = encoder.text("the cat")
    encoder.image(noise())
    assert encoder.text("the cat") is before
    with torch.no_grad():
        next(toy.parameters()).add_(1)
    encoder.image(noise())
    assert encoder.text("the cat") is not before
