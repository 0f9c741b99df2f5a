from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unified.errors import InputError
from unified.parity import NoiseFloor, compare


def test_floats_by_their_largest_difference() -> None:
    expected = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)
    actual = expected + np.array([[0, 1e-3], [-2e-3, 0]], np.float32)
    result = compare("x", expected, actual, 2.5e-3)
    assert result.error == pytest.approx(2e-3, rel=1e-3) and result.passed
    assert not compare("x", expected, actual, 1.5e-3).passed


def test_equal_infinities_are_equal_others_are_not() -> None:
    expected = np.array([np.inf, -np.inf, 0.0])
    assert compare("x", expected, expected.copy(), 0.0).passed
    assert not compare("x", expected, -expected, 1.0).passed
    assert not compare("x", expected, np.zeros(3), 1e9).passed


@pytest.mark.parametrize("side", ["recorded", "ours"])
def test_nan_never_passes(side: str) -> None:
    good, bad = np.zeros(3), np.array([0.0, np.nan, 0.0])
    pair = (bad, good) if side == "recorded" else (good, bad)
    assert not compare("x", *pair, allowed=1e9).passed


def test_labels_may_flip_at_a_few_pixels_and_numbers_not_at_all() -> None:
    expected = np.zeros((100, 100), np.uint8)
    actual = expected.copy()
    actual[0, :2] = 1
    assert compare("label_maps", expected, actual, 0.0).passed
    actual[0, 2] = 1
    result = compare("label_maps", expected, actual, 1e9)
    assert result.error == 3 and result.allowed == 2 and not result.passed
    assert not compare("top1", np.arange(10000), np.arange(10000) + 1, 1e9).passed
    assert not compare("topk", np.array([[1, 2, 3]]), np.array([[1, 3, 2]]), 1e9).passed


def test_another_shape_is_an_error() -> None:
    with pytest.raises(InputError, match=r"x: recorded shape \(2,\), ours \(3,\)"):
        compare("x", np.zeros(2), np.zeros(3), 1.0)


def test_allowance_is_ten_times_the_noise_or_a_share_of_the_magnitude(tmp_path: Path) -> None:
    (tmp_path / "noise.json").write_text(json.dumps({"run": {"a": [3e-6, 1.0], "b": [1e-9, 50]}}))
    noise = NoiseFloor.beside(tmp_path / "run.npz")
    assert noise.allowed("run", "a", np.array([0.5, -1.0])) == pytest.approx(3e-5)
    assert noise.allowed("run", "b", np.array([np.inf, -50.0])) == pytest.approx(1e-3)
    for file, name in (("run", "c"), ("other", "a")):
        assert noise.allowed(file, name, np.array([2.0])) == pytest.approx(4e-5)
    assert noise.allowed("run", "c", np.array([np.inf])) == 0
    elsewhere = NoiseFloor.beside(tmp_path / "elsewhere/run.npz", tmp_path / "noise.json")
    assert elsewhere.allowed("run", "a", np.ones(1)) == pytest.approx(3e-5)
    with pytest.raises(FileNotFoundError):  # not an empty table, which would allow other errors
        NoiseFloor.beside(tmp_path / "elsewhere/run.npz", tmp_path / "gone.json")
    without = NoiseFloor.beside(tmp_path / "elsewhere/run.npz")
    assert without.allowed("run", "a", np.ones(1)) == pytest.approx(2e-5)


def test_a_line_per_array_says_what_and_how_far() -> None:
    line = str(compare("memory_sub", np.ones(2), np.ones(2) + 1e-6, 1e-5))
    assert line.split() == ["pass", "memory_sub", "error", "1.000e-06", "allowed", "1.000e-05"]
    assert str(compare("memory_sub", np.ones(2), np.zeros(2), 1e-5)).startswith("FAIL")
