"""Predictors ask as the model says, unless they are told otherwise."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import unified
from tests.toy.model import Toy
from tests.toy.system import CONFIG
from unified import ImagePredictor, VideoPredictor
from unified.engine.config import load_config
from unified.engine.inference import settings_of
from unified.errors import ConfigError, InputError
from unified.inference.frames import warn_of_half_precision
from unified.inference.settings import (
    ImageSettings,
    InferenceSettings,
    VideoSettings,
    inference_settings,
)
from unified.structures import Prompt


def test_a_loaded_model_is_asked_as_its_configuration_says() -> None:
    options = ["INFERENCE.SCORE_THRESHOLD", "0.4", "INFERENCE.MIRROR", "True"]
    options += ["INFERENCE.SUPPORT_MARGIN", "0.5"]
    model = unified.load(CONFIG, device="cpu", options=options)
    image, video = ImagePredictor(model).settings, VideoPredictor(model).settings
    assert (image.short_side, image.max_size, image.score_threshold) == (64, 96, 0.0)
    assert (video.short_side, video.max_size, video.score_threshold) == (64, 96, 0.4)
    assert image.mirror and image.support_margin == video.support_margin == 0.5
    assert settings_of(load_config(CONFIG, options)) == model.inference


def test_arguments_override_what_the_model_carries() -> None:
    model = unified.load(CONFIG, device="cpu")
    changed = ImagePredictor(model, short_side=32, mirror=True).settings
    assert (changed.short_side, changed.mirror, changed.max_size) == (32, True, 96)
    given = VideoSettings(short_side=96, score_threshold=0.0)
    assert VideoPredictor(model, given, use_memory=False).settings == VideoSettings(
        short_side=96, score_threshold=0.0, use_memory=False
    )
    with pytest.raises(TypeError, match="shortest_side"):
        ImagePredictor(model, shortest_side=64)


@pytest.mark.parametrize("name", ["short_side", "max_size", "objects_per_pass", "memory_interval"])
def test_numbers_below_one_are_refused(name: str, segmenter: Toy) -> None:
    """A side of -3 pixels would be one pixel, and everything refused."""
    for value in (0, -3):
        with pytest.raises(ConfigError, match=f"{name} is {value}: expected at least 1"):
            VideoPredictor(segmenter, **{name: value})


def test_a_bare_model_is_asked_with_the_defaults(segmenter: Toy) -> None:
    assert inference_settings(segmenter) == InferenceSettings()
    assert ImagePredictor(segmenter).settings == ImageSettings()
    assert ImageSettings().support_margin == math.inf and not ImageSettings().mirror
    carrying = copy.copy(segmenter)
    carrying.inference = InferenceSettings(image=ImageSettings(short_side=96))
    assert ImagePredictor(carrying).settings.short_side == 96


@pytest.mark.parametrize("precision", ["float64", "half"])
def test_an_unknown_precision_is_an_error(segmenter: Toy, precision: str) -> None:
    with pytest.raises(ConfigError, match=f"precision '{precision}' is unknown"):
        VideoPredictor(segmenter, precision=precision)


def test_half_precision_says_once_what_it_costs(
    segmenter: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_half_precision.cache_clear()
    ImagePredictor(segmenter)
    assert caplog.messages == []
    for precision in ("bfloat16", "bfloat16", "float16"):
        ImagePredictor(segmenter, precision=precision)
        VideoPredictor(segmenter, precision=precision)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "precision bfloat16",
        "precision float16",
    ]
    page = (Path(__file__).parents[3] / "docs" / "runs.md").read_text(encoding="utf-8")
    assert "\n## Half precision\n" in page
    for message in caplog.messages:
        assert "docs/runs.md#half-precision" in message
        # Numbers of one model would be read as those of any.
        assert not re.search(r"\d\.\d", message)


def test_below_the_threshold_a_mask_is_empty(segmenter: Toy) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    kinds = {}
    for threshold in (0.0, 1.1):
        predictor = ImagePredictor(
            segmenter, short_side=64, max_size=128, score_threshold=threshold
        )
        predictor.set_image(picture)
        mask, score = predictor.predict(Prompt(text="cat"))
        probability, same = predictor.predict_prob(Prompt(text="cat"))
        assert score == same
        kinds[threshold] = (mask.any(), probability.any(), score, len(predictor.detect()))
    assert kinds[0.0][:2] == (True, True) and kinds[1.1][:2] == (False, False)
    assert kinds[0.0][2] == kinds[1.1][2] and kinds[0.0][3] > 0 == kinds[1.1][3]


def test_detection_gives_all_instances_the_best_first(segmenter: Toy) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    predictor = ImagePredictor(segmenter, short_side=64, max_size=128)
    predictor.set_image(picture)
    found = predictor.detect(top_k=12)
    assert 1 < len(found) <= 12
    scores = [instance.score for instance in found]
    assert scores == sorted(scores, reverse=True)
    encoded = predictor.encoder.image(picture)
    with torch.inference_mode():
        raw = segmenter.segment(encoded.features, [], top_k=12)
    assert scores == pytest.approx(sorted(raw.scores[0][raw.scores[0] > 0].tolist())[::-1])
    for instance in found:
        assert instance.mask.shape == (60, 80) and instance.mask.dtype == bool
        assert instance.box is not None
        left, top, right, bottom = instance.box
        assert 0 <= left < right <= 80 and 0 <= top < bottom <= 60


@pytest.mark.parametrize("said", [{}, {"detects": False}], ids=["nothing", "no"])
def test_a_model_that_needs_a_reference_cannot_detect(
    segmenter: Toy, said: dict[str, bool]
) -> None:
    asked: list[object] = []

    class Follower:
        """The verbs of the toy; whether it detects is said apart."""

        reference_kinds, parameters = segmenter.reference_kinds, segmenter.parameters
        preprocess, encode_image = segmenter.preprocess, segmenter.encode_image
        encode_text, encode_mask = segmenter.encode_text, segmenter.encode_mask

        def segment(self, *arguments: object, **_: object) -> None:
            asked.append(arguments)

    follower = Follower()
    vars(follower).update(said)
    predictor = ImagePredictor(follower, short_side=64, max_size=128)
    predictor.set_image(np.zeros((60, 80, 3), np.uint8))
    with pytest.raises(InputError, match=r"cannot detect.* give a mask or text prompt, or load"):
        predictor.detect()
    assert not asked
