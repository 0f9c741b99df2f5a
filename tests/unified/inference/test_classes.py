from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from unified.errors import InputError
from unified.inference.classes import ClassPredictor, class_names
from unified.inference.lines import legend
from unified.structures import ImageBatch, Presence, Prompt

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class ByColour:
    """Compares pixels with colours; with a limit, duller ones are of no class."""

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        zero, full = torch.zeros(3), torch.full((3,), 255.0)
        return ImageBatch.from_images(images, mean=zero, std=full, divisor=16)

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        return torch.tensor([COLOURS[name] for name in names])

    def classify_pixels(self, images: Tensor, classes: Tensor) -> Tensor:
        scores = torch.einsum("bchw,nc->bnhw", images, classes)
        if self.limit is None:
            return scores
        nothing = (scores.amax(dim=1, keepdim=True) < self.limit).float()
        return torch.cat((nothing, scores), dim=1)


def picture() -> np.ndarray:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :20, 1], image[:, 20:40, 0], image[:, 40:, 2] = 250, 220, 60  # green, red, dull blue
    return image


@pytest.mark.parametrize(("limit", "third"), [(None, 2), (0.5, 0)])
def test_every_pixel_gets_its_class(limit: float | None, third: int) -> None:
    predictor = ClassPredictor(ByColour(limit), ["green", "blue", "red"], short_side=80)
    predictor.set_image(picture())
    labels = predictor.label_map()
    assert labels.dtype == np.uint8 and labels.shape == (40, 60)
    assert [int(labels[20, x]) for x in (5, 30, 55)] == [1, 3, third]
    mask, score = predictor.predict(Prompt(text="red"))
    assert np.array_equal(mask, labels == 3) and score == pytest.approx(220 / 255, abs=0.05)
    empty, none = ClassPredictor(ByColour(limit), ["red", "green"]), Prompt(text="green")
    empty.set_image(np.full((40, 60, 3), (255, 0, 0), np.uint8))
    assert not empty.predict(none)[0].any() and empty.predict(none)[1] == 0


def test_half_precision_is_used_and_names_the_same_classes() -> None:
    scores = {}
    for precision in ("float32", "bfloat16"):
        predictor = ClassPredictor(ByColour(), ["green", "blue", "red"], precision=precision)
        predictor.set_image(picture())
        mask, scores[precision] = predictor.predict(Prompt(text="red"))
        assert mask[20, 30] and not mask[20, 5]
    assert 0 < abs(scores["bfloat16"] - scores["float32"]) < 0.01


def test_bad_input() -> None:
    with pytest.raises(InputError, match="cannot name pixels"):
        ClassPredictor(torch.nn.Linear(1, 1), ["red"])
    predictor = ClassPredictor(ByColour(), ["red"])
    with pytest.raises(InputError, match="call set_image first"):
        predictor.predict(Prompt(text="red"))
    predictor.set_image(picture())
    with pytest.raises(InputError, match="'cat' is none of the classes red"):
        predictor.predict(Prompt(text="cat"))


def test_names_are_separated_by_commas() -> None:
    assert class_names("cat,  traffic  light , sofa") == ["cat", "traffic light", "sofa"]
    for text, message in (
        ("", "one or more names"),
        ("cat,,dog", "one or more names"),
        ("cat, dog, cat", "'cat' stands there twice"),
        (",".join(map(str, range(256))), "256 class names"),
    ):
        with pytest.raises(InputError, match=message):
            class_names(text)


def test_the_legend_lists_what_has_a_caption() -> None:
    there = {1: Presence("refused"), 2: Presence("present")}
    lines = legend({2: "traffic\nlight"}, {1: 0.0, 2: 0.25}, there)
    assert lines == {2: "2  0.25  traffic light"}
