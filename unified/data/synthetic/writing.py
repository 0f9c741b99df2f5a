"""Saving frames, label maps and COCO-style JSON, and the random stream of every made picture."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unified.files import atomic_path

SECOND_SPLIT_SHARE = 5  # one picture outside the training split for so many inside


def split_size(split: str, size: int, *, at_least: int = 2) -> int:
    """Pictures or clips in a split when the training split has ``size``."""
    return max(at_least, size if split == "train" else size // SECOND_SPLIT_SHARE)


def random_streams(seed: int, name: str, count: int) -> Iterator[np.random.Generator]:
    """``count`` generators that depend on the seed, the name and their number alone.

    A larger set therefore starts with the pictures of a smaller one.
    """
    for index in range(count):
        yield np.random.default_rng([seed, zlib.crc32(name.encode()), index])


def save_jpeg(path: Path, image: np.ndarray, *, quality: int = 93) -> None:
    """Writes (H, W, 3) uint8 RGB."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=quality, subsampling=0)


def save_pickle(path: Path, content: Any) -> None:
    """Writes a pickle that Python 2 could have written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(pickle.dumps(content, protocol=2))


def save_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes a text file of one entry per line."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


class CocoFile:
    """The growing content of one COCO-style JSON file."""

    def __init__(self, categories: Mapping[int, str], *, first_image_id: int = 1) -> None:
        self.first_image_id = first_image_id
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = [
            {"id": number, "name": name, "supercategory": "shape"}
            for number, name in categories.items()
        ]

    def next_image_id(self) -> int:
        """The id that the next image gets."""
        return self.first_image_id + len(self.images)

    def add_image(self, file_name: str, size: tuple[int, int], **more: Any) -> int:
        """Adds an image of (h, w) and returns its id."""
        image_id = self.next_image_id()
        height, width = size
        entry = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        self.images.append({**entry, "license": 1, **more})
        return image_id

    def add_object(self, image_id: int, mask: np.ndarray, category_id: int, **more: Any) -> int:
        """Adds an object with mask (H, W) bool and returns its annotation id.

        Its segmentation is polygons, unless ``more`` has one.
        """
        ann_id = 10 * self.first_image_id + len(self.annotations)
        self.annotations.append(
            {
                "id": ann_id,
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": more.get("segmentation") or mask_polygons(mask),
                "area": float(mask.sum()),
                "bbox": box_xywh(mask),
                "iscrowd": 0,
                **more,
            }
        )
        return ann_id

    def content(self) -> dict[str, Any]:
        """What goes into the file."""
        return {
            "info": {"description": "made by unified.data.synthetic"},
            "licenses": [{"id": 1, "name": "Apache-2.0", "url": ""}],
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }


def box_xywh(mask: np.ndarray) -> list[float]:
    """[x, y, w, h] in pixels around the true pixels of a non-empty mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = float(columns[0]), float(rows[0])
    return [left, top, float(columns[-1] + 1) - left, float(rows[-1] + 1) - top]


def mask_polygons(mask: np.ndarray) -> list[list[float]]:
    """A mask (H, W) as COCO polygons that give back exactly these pixels, holes included.

    Runs of equal extent in neighbouring rows form one rectangle along pixel edges.
    """
    open_runs: dict[tuple[int, int], int] = {}  # (left, right) -> first row
    polygons = []
    for row in range(mask.shape[0] + 1):
        line = mask[row] if row < mask.shape[0] else np.zeros(mask.shape[1], dtype=bool)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        runs = set(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        for left, right in [run for run in open_runs if run not in runs]:
            top = open_runs.pop((left, right))
            corners = (left, top, right, top, right, row, left, row)
            polygons.append([float(value) for value in corners])
        for run in runs:
            open_runs.setdefault(run, row)
    return polygons
