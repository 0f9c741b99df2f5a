"""Instances of a COCO file as maps of classes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np

from unified.mask_files import read_ids

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("p", ROOT / "datasets/prepare_semantic.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def box(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def test_small_instances_lie_over_large_ones_and_crowds_do_not_count(tmp_path: Path) -> None:
    crowd = {"size": [8, 10], "counts": [0, 8, 72]}  # the first column
    rows = [(7, box(6, 2, 8, 4), 4, 0), (3, box(2, 0, 10, 8), 64, 0), (3, crowd, 8, 1)]
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": c,
            "segmentation": s,
            "area": area,
            "iscrowd": crowd,
        }
        for i, (c, s, area, crowd) in enumerate(rows)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 10}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "sofa"}, {"id": 7, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert script().main([str(tmp_path / "instances.json"), "--out", str(tmp_path / "truth")]) == 0
    expected = np.ones((8, 10), np.uint8)
    expected[:, :2], expected[:, 0], expected[2:4, 6:8] = 0, 255, 2
    assert np.array_equal(read_ids(tmp_path / "truth/maps/a.png", classes=True), expected)
    assert (tmp_path / "truth/classes.txt").read_text() == "sofa, cat\n"
    assert script().main([str(tmp_path / "none.json"), "--out", str(tmp_path / "truth")]) == 2
