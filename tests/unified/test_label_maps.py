"""Label maps: merging, palette files and overlays."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified.errors import ConfigError
from unified.label_maps import (
    check_margin,
    davis_palette,
    mask_box,
    merge_by_score,
    object_window,
    split_label_map,
    write_label_map,
)
from unified.mask_files import read_label_map


def test_the_highest_score_wins_a_shared_pixel() -> None:
    left, right = np.array([[True, True, False]]), np.array([[False, True, True]])
    assert merge_by_score([left, right], [0.9, 0.4]).tolist() == [[1, 1, 2]]
    assert merge_by_score([left, right], [0.4, 0.9]).tolist() == [[1, 2, 2]]
    assert merge_by_score([left, right], [0.5, 0.5]).tolist() == [[1, 1, 2]]


def test_box_edges_are_exclusive_and_none_when_empty() -> None:
    mask = np.zeros((5, 7), bool)
    assert mask_box(mask) is None
    mask[1:3, 2:6] = True
    assert mask_box(mask) == (2.0, 1.0, 6.0, 3.0)


@pytest.mark.parametrize(
    ("margin", "rows", "columns"),
    [
        (0.0, (4, 8), (10, 20)),
        (0.2, (2, 10), (8, 22)),
        (0.25, (2, 10), (8, 22)),  # 2.5 pixels more: rounded to even
        (0.6, (0, 14), (4, 24)),
        (math.inf, (0, 16), (0, 24)),
    ],
)
def test_window_around_an_object_ends_with_the_picture(
    margin: float, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    mask = np.zeros((16, 24), bool)
    mask[4:8, 10:20] = True
    assert object_window(mask, margin) == (slice(*rows), slice(*columns))
    assert object_window(np.zeros((16, 24), bool), margin) == (slice(0, 16), slice(0, 24))


@pytest.mark.parametrize("margin", [-0.1, math.nan])
def test_a_margin_that_is_no_share_is_an_error(margin: float) -> None:
    with pytest.raises(ConfigError, match=f"is {margin}: expected 0 or more"):
        check_margin(margin)


def test_palette_is_that_of_davis() -> None:
    """Recorded from the palette of DAVIS 2017 annotation files."""
    recorded = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        7: (128, 128, 128),
        8: (64, 0, 0),
        22: (0, 192, 128),
        23: (128, 192, 128),
        64: (32, 0, 0),
        200: (96, 32, 0),
        255: (224, 224, 192),
    }
    assert {i: tuple(davis_palette()[i].tolist()) for i in recorded} == recorded


def test_label_map_file_round_trip(tmp_path: Path) -> None:
    label_map = np.arange(255, dtype=np.uint8).repeat(9).reshape(255, 9)
    path = tmp_path / "new" / "00000.png"
    write_label_map(path, label_map)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette() == davis_palette().ravel().tolist()
    assert np.array_equal(read_label_map(path, size=(255, 9)), label_map)
    assert [entry.name for entry in path.parent.iterdir()] == ["00000.png"]


def test_splitting_gives_the_ids_that_have_pixels() -> None:
    label_map = np.array([[0, 2, 2, 9]], np.uint8)
    masks = split_label_map(label_map)
    assert list(masks) == [2, 9]
    assert masks[2].tolist() == [[False, True, True, False]]
