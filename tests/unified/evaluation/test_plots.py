"""Bars and worst cases say and show what was scored."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from unified.evaluation.plots import (
    background,
    bars_title,
    caption,
    footer,
    not_found,
    worst_pictures,
)
from unified.evaluation.protocols import evaluate
from unified.evaluation.report import Report, Request

sys.path.insert(0, str(Path(__file__).parent))
from golden_folders import write_clip, write_json, write_mask


def score(root: Path, protocol: str, **changes: object) -> Report:
    return evaluate(protocol, Request(root / "gt", root / "pred", **changes))


@pytest.mark.parametrize(
    ("protocol", "unit"),
    [
        ("hsnet", "IoU per class"),
        ("fss-per-image", "IoU per image"),
        ("lavt", "IoU per expression"),
        ("mmseg", "IoU per class"),
        ("vos-all-frames", "J&F per sequence"),
    ],
)
def test_bars_name_their_unit(tmp_path: Path, protocol: str, unit: str) -> None:
    for side in ("gt", "pred"):
        for name in ("a/0", "a/1", "b/0"):
            write_mask(tmp_path / side / f"{name}.png", np.eye(8))
    changes = {"num_classes": 2} if protocol == "mmseg" else {}
    report = score(tmp_path, protocol, **changes)
    assert bars_title(report.scores, 0) == f"{unit}, worst first"
    assert bars_title(report.scores, 3).endswith(", 3 better ones not shown")


def swapped(root: Path) -> np.ndarray:
    """Objects 1 and 2, which are proposals 2 (a part of it) and 1; void that 2 covers too."""
    truth = np.zeros((3, 8, 16), np.uint8)
    truth[:, 2:6, 2:6], truth[:, 2:6, 10:14], truth[:, 0] = 1, 2, 255
    prediction = np.zeros_like(truth)
    prediction[:, 2:6, 2:5], prediction[:, 2:6, 10:14], prediction[:, 0, :8] = 2, 1, 2
    prediction[1, 2:6, 2:4] = 0
    write_clip(root / "gt" / "a", truth)
    write_clip(root / "pred" / "a", prediction)
    return truth


@pytest.mark.parametrize("protocol", ["davis17-unsup", "ref-davis17"])
def test_the_worst_frame_shows_the_object_and_its_own_proposal(
    tmp_path: Path, protocol: str
) -> None:
    truth = swapped(tmp_path)
    rows = sorted(score(tmp_path, protocol).scores.rows, key=lambda row: row.values["J"])
    assert [row.values["J"] for row in rows] == pytest.approx([175 / 3, 100])
    for row, object_id, frame, overlap in zip(rows, (1, 2), (1, 0), (0.25, 1.0), strict=True):
        assert row.picture is not None
        picture = row.picture()
        assert picture.name == f"a/{frame:05d}"
        assert np.array_equal(picture.truth, truth[frame] == object_id)
        inter, union = (
            np.count_nonzero(f(picture.truth, picture.prediction))
            for f in (np.logical_and, np.logical_or)
        )
        assert inter / union == overlap


def test_one_object_against_all_foreground(tmp_path: Path) -> None:
    truth = np.zeros((3, 8, 16), np.uint8)
    truth[:, 2:6, 2:6], truth[:, 2:6, 10:14] = 4, 7
    write_clip(tmp_path / "gt" / "a", truth, "{:08d}", 5)
    write_clip(tmp_path / "pred" / "a", (truth > 0) * 2, "{:08d}", 5)
    span = {"frame_range": {"start": 1, "end": 16, "frame_nums": 3}}
    meta = {"videos": {"a": {"objects": {"4": span, "7": span}}}}
    (tmp_path / "unseen.txt").write_text("b\n")
    files = {"meta": write_json(tmp_path / "meta.json", meta), "unseen": tmp_path / "unseen.txt"}
    rows = score(tmp_path, "lvos-unsup-single", **files).scores.rows
    assert sorted(row.item for row in rows) == ["4", "7"]
    for row in rows:
        assert row.picture is not None
        picture = row.picture()
        assert np.array_equal(picture.truth, truth[0] == int(row.item))
        assert np.array_equal(picture.prediction, truth[0] > 0)


def test_sentences_of_one_object_are_one_tile_with_the_worst_of_them(tmp_path: Path) -> None:
    mask = np.zeros((8, 8))
    mask[2:6, 2:6] = 255
    half = mask * (np.arange(8) < 4)
    for name, truth, found in (("7_0", mask, mask), ("7_1", mask, half), ("8_0", half, half)):
        write_mask(tmp_path / "gt" / f"{name}.png", truth)
        write_mask(tmp_path / "pred" / f"{name}.png", found)
    write_json(tmp_path / "gt" / "expressions.json", {"7_1": "the red one"})
    report = score(tmp_path, "lavt")
    tiles = worst_pictures(report.scores, report.scores.rows)
    assert [row.sequence for row, _ in tiles] == ["7_1", "8_0"]
    assert caption(report, *tiles[0]) == "the red one\n7_1\nIoU 50.0"
    assert caption(report, *tiles[1]) == "8_0\nIoU 100.0"


def test_objects_of_one_frame_are_tiles_of_their_own(tmp_path: Path) -> None:
    swapped(tmp_path)
    report = score(tmp_path, "davis17-unsup")
    assert len(worst_pictures(report.scores, report.scores.rows)) == 2


def test_a_sheet_says_how_many_frames_it_did_not_find(tmp_path: Path) -> None:
    swapped(tmp_path)
    report = score(tmp_path, "davis17-unsup")
    pictures = [picture for _, picture in worst_pictures(report.scores, report.scores.rows)]
    assert [p.name for p in pictures] == ["a/00001", "a/00000"]
    write_mask(tmp_path / "images" / "a" / "00001.png", np.full((8, 16), 200))
    write_mask(tmp_path / "images" / "a" / "00000.png", np.full((4, 8), 200))
    found = [background(picture, tmp_path / "images") for picture in pictures]
    assert found[0] is not None and found[1] is None
    assert "no picture of their size for 1 of 2" in not_found(found, tmp_path / "images")
    assert not_found(found[:1], tmp_path / "images") == not_found([None], None) == ""


def test_the_footer_says_what_was_scored(tmp_path: Path) -> None:
    swapped(tmp_path)
    card = score(tmp_path, "davis17-unsup").card
    words = "".join(footer(card).split())  # long lines are broken, in paths too
    for part in (card.protocol, card.benchmark, f"split all of {tmp_path / 'gt'}", card.date):
        assert "".join(part.split()) in words
