"""Segmentation in images and video from a sentence, a mask or examples.

``load`` gives a model by name, ``models`` the names; ``ImagePredictor`` and ``VideoPredictor`` ask
a model about a ``Prompt``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from yacs.config import CfgNode

    from unified.inference.image_predictor import ImagePredictor
    from unified.inference.video_predictor import VideoPredictor
    from unified.structures import Prompt, Support

__version__ = "0.1.0"
__all__ = [
    "ImagePredictor",
    "Prompt",
    "Support",
    "VideoPredictor",
    "__version__",
    "load",
    "models",
]
# Imported when they are asked for: ``import unified`` loads no torch.
_HOMES = {
    "ImagePredictor": "unified.inference.image_predictor",
    "Prompt": "unified.structures",
    "Support": "unified.structures",
    "VideoPredictor": "unified.inference.video_predictor",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'unified' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def models(*, points: bool = False) -> tuple[str, ...]:
    """Names that ``load`` takes, or of those only the models that follow points."""
    from unified.dependencies import require

    require("detectron2.config")
    from unified.engine.models import models

    return models(points=points)


def _is_export(folder: Path) -> bool:
    """Whether an exported model is meant: a model's name wins over a folder without manifest."""
    from unified.export.manifest import MANIFEST

    return folder.is_dir() and ((folder / MANIFEST).is_file() or str(folder) not in models())


def load(
    name_or_config: str | Path | CfgNode | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    options: Sequence[str] = (),
    kinds: Collection[str] = (),
) -> nn.Module:
    """A model in eval mode with its weights, ready for the predictors; by default the small one.

    A folder that ``tools/export.py`` wrote is run by its programs. See
    ``unified.engine.models.load``; importing it at the top would import Detectron2.
    """
    from unified.dependencies import require

    if isinstance(name_or_config, (str, PathLike)) and _is_export(Path(name_or_config)):
        from unified.export.runtime import load_exported

        return load_exported(Path(name_or_config), weights, device, options, kinds)

    require("detectron2.config")
    from unified.engine.models import load

    return load(name_or_config, weights, device, options, kinds)
