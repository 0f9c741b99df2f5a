from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location(
    "check_metrics_tool", ROOT / "tools/check_metrics.py"
)
assert _SPEC is not None and _SPEC.loader is not None
_TOOL = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TOOL)
main = _TOOL.main

DATA = Path(__file__).parents[1] / "data" / "metrics"


def test_prints_one_line_per_file_and_the_exit_code_says_whether_all_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("semseg", "vos_benchmark"):
        for suffix in ("_expected.json", "_masks.npz"):
            shutil.copy(DATA / f"{kind}{suffix}", tmp_path)
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("semseg_expected.json         pass  largest difference 0.0e+00 of")
    assert lines[-1] == "2 of 2 files agree"
    path = tmp_path / "semseg_expected.json"
    path.write_text(path.read_text().replace("0.862823", "0.862824"))
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "semseg_expected.json         FAIL  largest difference 1.0e-06" in out
    assert "at: plain aAcc" in out
    path.write_text(path.read_text().replace("0.862824", "0.862823").replace("plain", "plane"))
    assert main([str(tmp_path)]) == 0
    assert "missing: plain" in capsys.readouterr().out
    path.write_text(path.read_text().replace("note", "notes"))
    assert main([str(tmp_path)]) == 1
    assert "FAIL  largest difference 0.0e+00 of" in (out := capsys.readouterr().out)
    assert "not compared: notes" in out


def test_bad_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no *_expected.json")


def test_a_file_that_cannot_be_used_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("semseg_expected.json", "semseg_masks.npz", "ris_expected.json"):
        shutil.copy(DATA / name, tmp_path)
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "ris_expected.json     unusable"
    assert captured.out.splitlines()[-1] == "1 of 2 files agree"
    assert captured.err.startswith(f"error: {tmp_path / 'ris_expected.json'}: ")
