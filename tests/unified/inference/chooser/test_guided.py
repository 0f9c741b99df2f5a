"""What one model chose, another outlines: here one whose masks are the boxes themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.toy.model import Toy, make_toy
from tests.unified.inference.chooser.test_candidates import SETTINGS, photo
from unified import ImagePredictor
from unified.errors import ConfigError, InputError
from unified.inference.chooser.building import build_guided
from unified.inference.settings import InferenceSettings
from unified.structures import (
    FeaturePyramid,
    Prompt,
    Reference,
    References,
    Segmentation,
    Support,
)

LEFT, RIGHT = np.s_[4:12, 2:8], np.s_[4:8, 12:18]  # on a grid of 16 x 20 cells for 60 x 80 pixels


class Boxer(Toy):
    """Segments boxes: logits of 4 in them, -4 beside."""

    def encode_points(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None
    ) -> tuple[Reference, ...]:
        assert points is None and labels is None and boxes is not None
        tokens = boxes[:, None]
        nothing = torch.zeros(len(boxes), 1, dtype=torch.bool)
        return (Reference(tokens, tokens, nothing, boxes),)

    def segment(
        self,
        features: FeaturePyramid,
        references: Any,
        *,
        top_k: int = 1,
        mask_stride: int = 4,
    ) -> Segmentation:
        ((shown,),) = references
        height, width = (side // mask_stride for side in features.padded_size)
        x0, y0, x1, y1 = (shown.keys[:, 0] / mask_stride).T[:, :, None, None]
        y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
        inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        scores = torch.ones(len(inside), 1)
        return Segmentation(8.0 * inside[:, None] - 4, scores, torch.zeros(1, 1, 4), scores.long())


class Choice:
    """A chooser that always means the same parts."""

    def __init__(self, parts: Tensor) -> None:
        self.parts = parts

    def understands(self, text: str) -> bool:
        return text != "nonsense"

    def look(self, frames: Sequence[Any], image: np.ndarray) -> Any:
        assert len(frames) == 2 and image.shape == (60, 80, 3)
        return SimpleNamespace(size=self.parts.shape[1:])

    def chosen(self, scene: Any, text: str, references: References) -> tuple[Tensor, float]:
        assert len(references) == 4
        return self.parts, 0.7


def predictor(parts: Tensor) -> ImagePredictor:
    """Of a model that follows boxes and is guided to some parts."""
    torch.manual_seed(0)
    guide: Any = make_toy()
    model: Any = Boxer().eval()
    guide.inference = InferenceSettings(image=replace(SETTINGS, mirror=True))
    guide.chooser = Choice(parts)
    model.inference = InferenceSettings(image=SETTINGS)
    model.reference_kinds = frozenset({"text", "box"})
    model.chooser = build_guided(model, guide)
    predictor = ImagePredictor(model)
    predictor.set_image(photo())
    return predictor


def test_every_part_is_outlined_by_its_box() -> None:
    """A guide that is unsure within the box of a part is overruled, beside it not."""
    parts = torch.full((2, 16, 20), 0.3)
    parts[0][LEFT] = parts[1][RIGHT] = 0.9
    parts[0, 8:12, 5:8] = 0.4  # missing in the mask of the guide
    mask, score = predictor(parts).predict(Prompt(text="both"))
    wanted = np.zeros((60, 80), bool)
    for rows, columns in (LEFT, RIGHT):
        wanted[
            rows.start * 60 // 16 : rows.stop * 60 // 16, columns.start * 4 : columns.stop * 4
        ] = True
    assert score == 0.7
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.85
    assert not mask[:, 36:44].any()  # one box around both would cover it


def test_where_nothing_is_chosen_the_mask_is_empty() -> None:
    for parts in (torch.zeros(0, 16, 20), torch.full((1, 16, 20), 0.2)):
        mask, score = predictor(parts).predict(Prompt(text="the dog"))
        assert not mask.any() and score == 0.7
    assert predictor(torch.ones(1, 16, 20)).predict(Prompt(text="nonsense"))[1] == 0


def test_what_the_guide_finds_by_examples_is_outlined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that misses a part of its box, as examples beside each other gave it."""
    wanted = predictor(torch.zeros(0, 16, 20))
    guided: Any = wanted.encoder.model.chooser
    probability = np.full((60, 80), 0.3, np.float32)
    probability[10:40, 20:60] = 0.9
    probability[20:40, 50:60] = 0.4
    given = [(probability, 0.6), (1 - probability, 0.6), (0 * probability, 0.2)]
    looked: list[np.ndarray] = []
    monkeypatch.setattr(guided.finder, "set_image", looked.append)
    monkeypatch.setattr(guided.finder, "predict_prob", lambda _: given.pop(0))
    examples = Prompt(supports=(Support(photo(), np.eye(60, 80) > 0),))
    box = np.zeros((60, 80), bool)
    box[10:40, 20:60] = True
    first, beside = (wanted.predict(examples) for _ in range(2))
    assert (first[0] & box).sum() / (first[0] | box).sum() > 0.85 and first[1] == 0.6
    assert beside[0].mean() > 0.9, "the box is the picture"
    assert not wanted.predict(examples)[0].any() and len(looked) == 1


def test_examples_are_those_of_the_guide_alone_and_with_a_sentence_of_the_model() -> None:
    wanted = predictor(torch.zeros(0, 16, 20))
    guided: Any = wanted.encoder.model.chooser
    supports = (Support(photo(), np.eye(60, 80) > 0),)
    finder = ImagePredictor(guided.guide)
    finder.set_image(photo())
    score = finder.predict(Prompt(supports=supports))[1]
    assert wanted.predict(Prompt(supports=supports))[1] == pytest.approx(score, abs=1e-6)
    with pytest.raises(InputError, match="this model follows box and text references, not mask"):
        wanted.predict(Prompt(text="both", supports=supports))


def test_the_guide_follows_the_model_to_its_device() -> None:
    guided: Any = predictor(torch.ones(1, 16, 20)).encoder.model.chooser
    elsewhere = SimpleNamespace(images=SimpleNamespace(tensor=torch.empty(0, device="meta")))
    guided.look([elsewhere], photo())
    assert {x.device.type for x in guided.guide.parameters()} == {"meta"}


def test_who_cannot_guide_or_be_guided() -> None:
    model: Any = make_toy()
    model.info = SimpleNamespace(name="toy")
    with pytest.raises(ConfigError, match="which shows boxes, and this one follows none"):
        build_guided(model, model)
    model.reference_kinds = frozenset({"box"})
    assert build_guided(model, make_toy()) is None


def test_a_language_model_that_both_have_is_kept_once() -> None:
    model, guide = (make_toy() for _ in range(2))
    model.reference_kinds, guide.chooser = frozenset({"box"}), Choice(torch.ones(1, 2, 2))
    guide.inference = InferenceSettings(image=SETTINGS)
    before = guide.text_encoder.bert
    nn.init.normal_(before.embeddings.word_embeddings.weight)
    build_guided(model, guide)
    assert guide.text_encoder.bert is before, "they differ"
    before.load_state_dict(model.text_encoder.bert.state_dict())
    build_guided(model, guide)
    assert guide.text_encoder.bert is model.text_encoder.bert
    assert guide.text_encoder.project is not model.text_encoder.project
