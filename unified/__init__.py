"""Segmentation in images and video from a sentence, a mask or examples."""

from __future__ import annotations

__version__ = "0.1.0"
