"""Masks as text."""

from __future__ import annotations

import numpy as np

COLUMNS = 64


def printed(mask: np.ndarray, score: float) -> str:
    """The mask (H, W) bool in characters, about as high as it is wide, and its score."""
    height, width = mask.shape
    rows = max(1, round(COLUMNS * height / width / 2))  # characters are twice as high as wide
    y = (np.arange(rows) + 0.5) * height / rows
    x = (np.arange(COLUMNS) + 0.5) * width / COLUMNS
    cells = mask[np.ix_(y.astype(int), x.astype(int))]
    lines = ["".join("#" if cell else "." for cell in row) for row in cells]
    return "\n".join([*lines, f"score {score:.2f}, {int(mask.sum())} of {mask.size} pixels"])
