"""The published weights in half precision, on photos that they can see something in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from skimage import data
from torch import nn

import unified
from unified import ImagePredictor
from unified.structures import Prompt

PROMPTS = {
    "astronaut": ("the woman", "a woman in orange"),
    "chelsea": ("the cat",),
    "coffee": ("the cup", "the cup of coffee"),
}


def masks(model: nn.Module, precision: str) -> Iterator[np.ndarray]:
    predictor = ImagePredictor(model, precision=precision, mirror=False)
    for name, sentences in PROMPTS.items():
        predictor.set_image(getattr(data, name)())
        for sentence in sentences:
            yield predictor.predict(Prompt(text=sentence))[0]


def overlaps(first: list[np.ndarray], second: list[np.ndarray]) -> list[float]:
    pairs = zip(first, second, strict=True)
    return [
        float((a & b).sum() / max(1, (a | b).sum())) if (a | b).any() else 1.0 for a, b in pairs
    ]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return unified.load("uniref-lite", device="cpu", options=["INFERENCE.CHOOSER", ""])


@pytest.fixture(scope="module")
def full(model: nn.Module) -> list[np.ndarray]:
    found = list(masks(model, "float32"))
    assert sum(mask.any() for mask in found) >= 4, "nothing to compare"
    return found


def test_autocast_keeps_the_masks(model: nn.Module, full: list[np.ndarray]) -> None:
    found = overlaps(full, list(masks(model, "bfloat16")))
    assert np.mean(found) >= 0.98 and min(found) >= 0.9, found


def test_stored_weights_keep_the_masks(full: list[np.ndarray]) -> None:
    stored = unified.load("uniref-lite", device="cpu", options=["INFERENCE.CHOOSER", ""]).to(
        torch.bfloat16
    )
    found = overlaps(full, list(masks(stored, "float32")))
    assert np.mean(found) >= 0.98 and min(found) >= 0.9, found
