"""Recorded numbers of the official evaluators, copied from their programs, against ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unified.evaluation.golden.check import KINDS, SUFFIX, check_file, find_recordings
from tests.unified.evaluation.golden.compare import largest_difference, rounded
from unified.errors import InputError

DATA = Path(__file__).parents[2] / "data"


def recording(kind: str) -> Path:
    folder = DATA if kind == "refer_mini" else DATA / "metrics"
    return folder / f"{kind}{SUFFIX}"


# kind -> numbers that its file holds, so that none is passed over in silence
NUM_VALUES = {
    "davis17": 1274,
    "fss": 43386,
    "grec_boxes": 3,
    "grefcoco": 33,
    "lvos": 138,
    "lvos_v1_bundled": 50,
    "mevis": 21,
    "refer_mini": 356039,
    "ris": 191,
    "sav": 15,
    "semseg": 80,
    "vos_benchmark": 24,
    "youtubevis": 14,
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_recording_agrees(kind: str) -> None:
    agreement = check_file(recording(kind))
    assert agreement.passed, agreement.line()
    assert agreement.num_values == NUM_VALUES[kind]
    assert agreement.missing == ()


def change(kind: str, folder: Path, spoil: Callable[[dict[str, Any]], None]) -> Path:
    """A changed copy of a recording, with its masks."""
    for path in recording(kind).parent.glob("*.npz"):
        shutil.copy(path, folder)
    content = json.loads(recording(kind).read_text())
    spoil(content)
    path = folder / recording(kind).name
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        ("davis17", "boundary"),
        ("fss", "pascal"),
        ("grefcoco", "mixed_sources"),
        ("lvos", "unsupervised_single"),
        ("lvos_v1_bundled", "variant_frame_nums_plus_one"),
        ("ris", "cris"),
        ("semseg", "mDice"),
        ("vos_benchmark", "gap|skip_first_last=True"),
    ],
)
def test_a_lost_block_is_named(kind: str, block: str, tmp_path: Path) -> None:
    agreement = check_file(change(kind, tmp_path, lambda content: content.pop(block)))
    assert (agreement.passed, agreement.missing) == (True, (block,))
    assert agreement.line().endswith(f", missing: {block}")
    assert 0 < agreement.num_values < NUM_VALUES[kind]


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        ("ris", "cris"),
        ("grefcoco", "all_grefcoco"),
        ("lvos", "unsupervised_multiple"),
        ("davis17", "palette_256x3"),
    ],
)
def test_a_misspelled_block_fails(kind: str, block: str, tmp_path: Path) -> None:
    named = f"{block}_"
    path = change(kind, tmp_path, lambda c: c.update({f"{block}_": c.pop(block)}))
    agreement = check_file(path)
    assert not agreement.passed
    assert agreement.not_compared == (named,)
    assert f"not compared: {named}, missing: {block}" in agreement.line()


@pytest.mark.parametrize(
    ("kind", "place", "named"),
    [
        ("ris", ("cris",), "cris/Pr@55"),
        ("davis17", ("db_statistics", 0), "db_statistics/0/Pr@55"),
        ("sav", ("returned", 3, 0, "alpha", 1), "returned/3/0/alpha/1/Pr@55"),
        ("mevis", ("per_expression",), "per_expression/Pr@55"),
    ],
)
def test_a_number_that_nothing_is_compared_with_fails(
    kind: str, place: tuple[str | int, ...], named: str, tmp_path: Path
) -> None:
    def add(content: Any) -> None:
        for key in place:
            content = content[key]
        content["Pr@55"] = 0.5

    agreement = check_file(change(kind, tmp_path, add))
    assert (agreement.passed, agreement.difference < 1e-9) == (False, True)
    assert agreement.not_compared == (named,)


@pytest.mark.parametrize("kind", ["lvos_v1_bundled", "vos_benchmark", "mevis", "semseg"])
def test_a_changed_number_is_noticed(kind: str, tmp_path: Path) -> None:
    for path in recording(kind).parent.glob("*.npz"):
        shutil.copy(path, tmp_path)
    content = json.loads(recording(kind).read_text())
    leaf = content
    while True:  # the first number of the file
        key = next(k for k, v in leaf.items() if isinstance(v, (dict, float)))
        if isinstance(leaf[key], float):
            leaf[key] += 1e-6
            break
        leaf = leaf[key]
    (tmp_path / recording(kind).name).write_text(json.dumps(content))
    agreement = check_file(tmp_path / recording(kind).name)
    assert not agreement.passed
    assert agreement.difference == pytest.approx(1e-6, rel=1e-3)
    assert key in agreement.where


def test_nan_on_one_side_and_shapes_differ_infinitely() -> None:
    assert largest_difference([1.0, np.nan], [1.0, None]) == 0
    assert largest_difference([1.0, 2.0], [1.0, None]) == np.inf
    assert largest_difference([1.0], [1.0, 2.0]) == np.inf
    assert largest_difference([], []) == 0


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recorded numbers"):
        find_recordings(tmp_path)
    shutil.copy(recording("ris"), tmp_path)
    (path,) = find_recordings(tmp_path)
    with pytest.raises(InputError, match=r"ris_masks\.npz is missing"):
        check_file(path)
    (tmp_path / "ris_masks.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"ris_masks\.npz cannot be read"):
        check_file(path)
    with pytest.raises(InputError, match="no known kind"):
        check_file(path.rename(tmp_path / "other_expected.json"))
    path = tmp_path / "sav_expected.json"
    path.write_text("{}")
    shutil.copy(recording("davis17").with_name("davis17_masks.npz"), tmp_path)
    with pytest.raises(InputError, match="lack the entry 'returned'"):
        check_file(path)
    path.write_text('{"returned": [1, 2, 3]}')
    with pytest.raises(InputError, match=r"sav_expected\.json cannot be compared: "):
        check_file(path)
    path = tmp_path / "davis17_expected.json"
    path.write_text('{"note": "nothing else"}')
    with pytest.raises(InputError, match="has no number to compare"):
        check_file(path)


@pytest.mark.parametrize("name", ["{}_seed7", "other_{}", "a_{}_b"])
@pytest.mark.parametrize("kind", ["davis17", "lvos_v1_bundled", "sav", "refer_mini"])
def test_a_kind_may_have_more_in_its_name(kind: str, name: str, tmp_path: Path) -> None:
    source = recording(kind)
    shutil.copy(source, tmp_path / f"{name.format(kind)}{SUFFIX}")
    for path in source.parent.glob("*_masks.npz"):
        stem = path.name.removesuffix("_masks.npz")
        shutil.copy(path, tmp_path / f"{name.format(stem)}_masks.npz")
    if kind == "refer_mini":
        shutil.copytree(source.parent / kind, tmp_path / name.format(kind))
    agreement = check_file(tmp_path / f"{name.format(kind)}{SUFFIX}")
    assert agreement.passed
    assert agreement.num_values == check_file(source).num_values


def test_a_part_of_a_recording_is_compared(tmp_path: Path) -> None:
    shutil.copy(recording("ris").with_name("ris_masks.npz"), tmp_path)
    content = json.loads(recording("ris").read_text())
    path = tmp_path / f"ris{SUFFIX}"
    path.write_text(json.dumps({"cris": content["cris"], "note": "x"}))
    agreement = check_file(path)
    assert (agreement.passed, agreement.num_values) == (True, 6)


def test_printed_digits_are_compared_as_printed() -> None:
    assert rounded(3.125, "3.12") == 3.12
    assert rounded(3.125, "3.13") == 3.13
    assert rounded(3.136, "3.13") == 3.136
