"""Segmentation in images and video from a sentence, a mask or examples.

``load`` gives a model by name, ``models`` the names; ``unified.inference.predictor`` holds
``ImagePredictor`` and ``VideoPredictor``, ``unified.structures`` the nouns they speak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from yacs.config import CfgNode

__version__ = "0.1.0"
__all__ = ["__version__", "load", "models"]


def models() -> tuple[str, ...]:
    """Names that ``load`` takes."""
    from unified.dependencies import require

    require("detectron2.config")
    from unified.engine.models import models

    return models()


def load(
    name_or_config: str | Path | CfgNode | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    options: Sequence[str] = (),
) -> nn.Module:
    """A model in eval mode with its weights, ready for the predictors; by default the small one.

    See ``unified.engine.models.load``; importing it at the top would import Detectron2.
    """
    from unified.dependencies import require

    require("detectron2.config")
    from unified.engine.models import load

    return load(name_or_config, weights, device, options)
