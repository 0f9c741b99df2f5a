"""Importing what is heavy or optional when it is needed, and saying what to do where it fails."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import ModuleType

from unified.errors import ConfigError, first_line

# Detectron2's dependency fvcore scripts two losses on import, which newer torch announces to drop.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

INSTALL = {
    "detectron2": "python tools/install_detectron2.py",
    "cv2": "python -m pip install opencv-python-headless",
    "flash_attn": 'python -m pip install "flash-attn>=2.5"',
    "onnxscript": "python -m pip install onnx onnxscript",
    "nltk": 'python -m pip install "nltk>=3.9"',
    "wandb": "python -m pip install wandb",
}


def require(name: str) -> ModuleType:
    """Returns the imported module ``name``, such as "torchvision" or "detectron2.config".

    Raises:
        ConfigError: its package is missing or broken; the message says how to install it.
    """
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except Exception as error:  # a broken binary package raises whatever it likes
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        state = "is not installed" if missing else f"cannot be imported ({first_line(error)})"
        command = INSTALL.get(package, f"python -m pip install {package}")
        raise ConfigError(f"{package} {state}: run `{command}`") from error
