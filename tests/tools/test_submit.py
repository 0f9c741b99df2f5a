from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("submit_tool", ROOT / "tools/submit.py")
assert _SPEC is not None and _SPEC.loader is not None
_TOOL = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TOOL)
main = _TOOL.main


@pytest.fixture
def pred(tmp_path: Path) -> Path:
    for t in range(4):
        for side, name in (("pred/a", f"{t:05d}.png"), ("data/JPEGImages/a", f"{t:05d}.jpg")):
            path = tmp_path / side / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    return tmp_path / "pred"


def test_writes_a_zip_that_passes_its_own_check(
    pred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.zip"
    data = ["--data", str(tmp_path / "data")]
    assert main(["youtube-vos", "--pred", str(pred), "--out", str(out), *data]) == 0
    assert capsys.readouterr().out == f"{out}: 4 files, no fault found\n"
    assert zipfile.ZipFile(out).namelist()[0] == "Annotations/a/00000.png"
    assert main(["youtube-vos", "--check", str(out), *data]) == 0
    assert main(["mose", "--check", str(out), *data]) == 1
    assert capsys.readouterr().err.endswith(" faults\n")


def test_names_every_fault_and_writes_nothing(
    pred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pred / "a" / "00001.png").unlink()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(pred / "a" / "00002.png")
    out = tmp_path / "x.zip"
    assert main(["mose", "--pred", str(pred), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "fault: a/00001.png: frame is missing" in captured.out
    assert "fault: a/00002.png: has mode RGB" in captured.out
    assert "2 faults, no zip was written" in captured.err
    assert not out.exists()


def test_a_name_that_is_no_text_is_a_fault(
    pred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pred / "a").rename(pred / os.fsdecode(b"caf\xe9"))
    out = tmp_path / "x.zip"
    assert main(["mose", "--pred", str(pred), "--out", str(out)]) == 1
    assert "fault: caf\\udce9/00000.png: its name is not UTF-8" in capsys.readouterr().out
    assert not out.exists()


def test_without_the_data_set_it_says_what_was_not_compared(
    pred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.zip"
    assert main(["mose", "--pred", str(pred), "--out", str(out)]) == 0
    assert main(["mose", "--check", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.count("not checked: whether all videos, frames and objects are there") == 2
    assert text.count("Give --data") == 2


def test_the_zip_is_what_is_checked(
    pred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text("[]")
    for server, given in (("ovis", path), ("mose", path), ("mose", pred)):
        assert main([server, "--check", str(given)]) == 2
        assert f"error: {given} is no zip: --check looks at" in capsys.readouterr().err


def test_the_split_limits_what_must_be_there(pred: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "JPEGImages" / "b").mkdir()
    (tmp_path / "list.txt").write_text("a\n")
    arguments = ["mose", "--pred", str(pred), "--out", str(tmp_path / "x.zip")]
    arguments += ["--data", str(tmp_path / "data")]
    assert main(arguments) == 2  # b has no frame
    assert main([*arguments, "--split", str(tmp_path / "list.txt")]) == 0


def test_results_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"image_id": 1}]))
    out = str(tmp_path / "x.zip")
    assert main(["ovis", "--pred", str(path), "--out", out]) == 1
    captured = capsys.readouterr()
    assert "results.json[0]: has no video_id" in captured.out
    assert "1 fault, no zip" in captured.err
    assert main(["kitti", "--pred", str(path), "--out", out]) == 2
    assert main(["mose", "--pred", str(tmp_path / "none"), "--out", out]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
