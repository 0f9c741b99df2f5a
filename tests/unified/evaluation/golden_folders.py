"""Recorded masks laid out as users have them on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DATA = Path(__file__).parents[2] / "data" / "metrics"


def write_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(mask, dtype=np.uint8)).save(path)


def write_clip(folder: Path, masks: np.ndarray, names: str = "{:05d}", step: int = 1) -> None:
    first = 0 if step == 1 else 1
    for index, mask in enumerate(masks):
        write_mask(folder / f"{names.format(first + step * index)}.png", mask)


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def recorded(kind: str) -> dict[str, Any]:
    return json.loads((DATA / f"{kind}_expected.json").read_text())


def masks(kind: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{kind}_masks.npz") as archive:
        return dict(archive)


def write_davis(folder: Path) -> None:
    for key, clip in masks("davis17").items():
        side, name = key.rsplit("_", 1)
        write_clip(folder / side / name, clip)
