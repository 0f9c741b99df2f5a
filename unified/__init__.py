"""Segmentation in images and video from a sentence, a mask or examples.

``load`` gives a model by name, ``models`` the names; ``unified.inference.predictor`` holds
``ImagePredictor`` and ``VideoPredictor``, ``unified.structures`` the nouns they speak.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"
__all__ = ["__version__", "load", "models"]


def models() -> tuple[str, ...]:
    """Names that ``load`` takes."""
    from unified.dependencies import require

    require("detectron2.config")
    from unified.engine.models import models

    return models()


def load(*args: Any, **kwargs: Any) -> nn.Module:
    """A ready model: ``load(name_or_config, weights=None, device="auto", options=())``.

    See ``unified.engine.models.load``; importing it here would import Detectron2.
    """
    from unified.dependencies import require

    require("detectron2.config")
    from unified.engine.models import load

    return load(*args, **kwargs)
