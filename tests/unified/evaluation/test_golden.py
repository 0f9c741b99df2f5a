"""Recorded numbers of the official evaluators, copied from their programs, against ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from unified.errors import InputError
from unified.evaluation.golden import KINDS, SUFFIX, check_file, check_folder
from unified.evaluation.golden.compare import largest_difference

DATA = Path(__file__).parents[2] / "data"


def recording(kind: str) -> Path:
    folder = DATA if kind == "refer_mini" else DATA / "metrics"
    return folder / f"{kind}{SUFFIX}"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_recording_agrees(kind: str) -> None:
    agreement = check_file(recording(kind))
    assert agreement.passed, f"{agreement.difference} at {agreement.where}"
    assert agreement.num_values > 0


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
        check_folder(tmp_path)
    shutil.copy(recording("ris"), tmp_path)
    with pytest.raises(InputError, match=r"ris_masks\.npz is missing"):
        check_folder(tmp_path)
    (tmp_path / "ris_expected.json").rename(tmp_path / "other_expected.json")
    with pytest.raises(InputError, match="no known kind"):
        check_folder(tmp_path)
    (tmp_path / "other_expected.json").unlink()
    (tmp_path / "sav_expected.json").write_text("{}")
    shutil.copy(recording("davis17").with_name("davis17_masks.npz"), tmp_path)
    with pytest.raises(InputError, match="lack the entry 'returned'"):
        check_folder(tmp_path)
