"""What a model detects in an image: without what better objects cover, and as COCO results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified.files import atomic_path
from unified.label_maps import encode_mask
from unified.structures import Instance


def uncovered(found: Sequence[Instance]) -> list[Instance]:
    """Those of which at least half of the mask lies outside the masks of the better ones kept.

    Source: Panoptic Segmentation (arXiv:1801.00868), how overlaps of instances are resolved.

    Args:
        found: of one image, the highest score first.
    """
    kept: list[Instance] = []
    covered = np.zeros(found[0].mask.shape if found else (0, 0), bool)
    for instance in found:
        area = int(instance.mask.sum())
        if area and 2 * int((instance.mask & ~covered).sum()) >= area:
            kept.append(instance)
            covered |= instance.mask
    return kept


def coco_results(stem: str, found: Sequence[Instance]) -> list[dict[str, Any]]:
    """Objects of one image in the format of COCO's results, categories counted from 1.

    The image_id is the name of the image, as a number if it is one.
    """
    entries = []
    for instance in found:
        assert instance.box is not None, "detection leaves out what has no extent"
        left, top, right, bottom = instance.box
        entries.append(
            {
                "image_id": int(stem) if stem.isdecimal() else stem,
                "category_id": instance.category + 1,
                "bbox": [left, top, right - left, bottom - top],
                "score": instance.score,
                "segmentation": encode_mask(instance.mask),
            }
        )
    return entries


def write_detections(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Writes COCO results, at once or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(list(entries)), encoding="utf-8")
