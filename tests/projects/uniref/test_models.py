"""The models of UniRef by name."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import unified
from unified import ImagePredictor
from unified.engine.models import default_model
from unified.structures import Prompt


def test_the_default_is_ready_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The embedded model with the weights that come with packages."""
    with caplog.at_level(logging.WARNING):
        model = unified.load(device="cpu")
    assert not model.training and model.info.name == default_model()
    assert model.reference_kinds == {"text", "mask"}
    assert not caplog.records and model.info.weights is not None
    predictor = ImagePredictor(model, short_side=64, max_size=64)
    predictor.set_image(np.zeros((48, 64, 3), np.uint8))
    mask, score = predictor.predict(Prompt(text="the black cat"))
    assert mask.shape == (48, 64) and 0 <= score <= 1


def test_the_default_is_among_the_names() -> None:
    assert default_model() == "uniref-lite" and default_model() in unified.models()
