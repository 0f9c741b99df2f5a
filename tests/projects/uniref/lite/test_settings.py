"""The lite model is asked as its configuration says."""

from __future__ import annotations

import unified
from unified import ImagePredictor, VideoPredictor
from unified.engine.config import load_config
from unified.engine.inference import settings_of
from unified.engine.models import CONFIGS


def test_a_loaded_model_is_asked_as_its_configuration_says() -> None:
    lite = unified.load("uniref-lite", device="cpu")
    image, video = ImagePredictor(lite).settings, VideoPredictor(lite).settings
    assert (image.short_side, image.max_size, image.score_threshold) == (352, 576, 0.3)
    assert image.mirror and image.support_margin == 0.15 and image.precision == "float32"
    assert (video.short_side, video.max_size, video.score_threshold) == (256, 576, 0.3)
    assert video.support_margin == 0.15 and video.memory_score == 0.7
    assert video.memory_interval == 3
    assert settings_of(load_config(CONFIGS / "lite/uniref_lite.yaml")) == lite.inference
