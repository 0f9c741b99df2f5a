"""What one model chose, another outlines: here one whose masks are the boxes themselves."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.toy.model import Toy, make_toy
from tests.unified.inference.chooser.test_candidates import SETTINGS, photo
from unified import ImagePredictor
from unified.errors import ConfigError
from unified.inference.chooser.building import build_guided
from unified.inference.settings import InferenceSettings
from unified.structures import FeaturePyramid, Prompt, Reference, References, Segmentation

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
    settings = SimpleNamespace(**{**vars(SETTINGS), "mirror": True})
    guide.inference, guide.chooser = SimpleNamespace(image=settings), Choice(parts)
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


def test_the_guide_follows_the_model_to_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    guided: Any = predictor(torch.ones(1, 16, 20)).encoder.model.chooser
    monkeypatch.setattr(guided.encoder, "image", lambda _: None)  # there is nothing to compute with
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
