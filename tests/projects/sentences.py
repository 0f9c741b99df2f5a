"""What every system of sentences does once it is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from unified import ImagePredictor, VideoPredictor
from unified.engine.config import load_config
from unified.engine.run import evaluate_weights
from unified.structures import Prompt


def check_evaluation(config: Path, options: list[str], trained: Path) -> None:
    """The weights of a run are scored on sentences that it did not see."""
    options = [*options, "OUTPUT_DIR", str(trained / "again")]
    numbers = evaluate_weights(
        load_config(config, [*options, "MODEL.WEIGHTS", str(trained / "model_final.pth")])
    )
    assert any(key.startswith("refcoco-unc-val/") for key in numbers)
    assert all(0 <= value <= 100 for value in numbers.values())


def check_images_and_clips(model: torch.nn.Module) -> None:
    """Sentences about a picture and a clip are answered at its size."""
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    predictor = ImagePredictor(model)
    predictor.set_image(image)
    mask, score = predictor.predict(Prompt(text="the red circle"))
    assert mask.shape == (50, 70) and 0 <= score <= 1
    results = VideoPredictor(model).run(
        [image, image], {0: {1: Prompt(text="the red circle"), 2: Prompt(text="a blue star")}}
    )
    assert [sorted(result.scores) for result in results] == [[1, 2], [1, 2]]


def check_same_weights(native: torch.nn.Module, loaded: torch.nn.Module) -> None:
    """Both have the same entries, to the bit."""
    for key, value in native.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
