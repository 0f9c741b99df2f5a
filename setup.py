"""Installs the toolkit into an existing environment: ``python -m pip install -e .``."""

from __future__ import annotations

import re
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "unified/__init__.py").read_text()).group(1)


def opencv() -> str:
    """Returns the OpenCV package that is installed already, else the one that needs no display.

    The variants share the folder ``cv2``: a second one next to the first breaks both.
    """
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    installed = {(found.name or "").lower() for found in distributions(path=sorted(folders))}
    variants = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
    return next((name for name in variants if name in installed), "opencv-python-headless")


setup(
    name="unified",
    version=VERSION,
    description="Segmentation in images and video from a sentence, a mask or examples.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_namespace_packages(include=["unified*", "projects*"]),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "timm>=1.0",
        "transformers>=4.40",
        "safetensors>=0.4",
        "huggingface-hub",
        "numpy>=1.26",
        "scipy",
        "pillow>=9",
        opencv(),
        "av>=12",
        "einops",
        "pycocotools>=2.0.7",
        "tqdm",
        # What detectron2 needs. It is not named here itself: its official source has no release to
        # name, and one that is there must stay as it is (tools/install_detectron2.py adds one).
        "yacs>=0.1.8",
        "fvcore>=0.1.5",
        "iopath>=0.1.7",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "cloudpickle",
        "tabulate",
        "termcolor>=1.1",
        "matplotlib",
        "tensorboard",
        "packaging",
    ],
    extras_require={
        "demo": ["scikit-image", "scikit-video"],
        "flash": ["flash-attn>=2.5"],
        "dev": ["pytest>=8", "pytest-timeout", "pytest-xdist", "ruff", "mypy"],
    },
)
