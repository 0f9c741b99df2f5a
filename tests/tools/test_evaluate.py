from __future__ import annotations

import csv
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("evaluate_tool", ROOT / "tools/evaluate.py")
assert _SPEC is not None and _SPEC.loader is not None
_TOOL = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TOOL)
main = _TOOL.main


def write(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two sequences of four frames; the prediction of "b" is shifted."""
    for name, shift in (("a", 0), ("b", 3)):
        for t in range(4):
            mask = np.zeros((40, 60))
            mask[10:30, 10 + t : 30 + t] = 1
            write(tmp_path / "gt" / name / f"{t:05d}.png", mask)
            write(tmp_path / "pred" / name / f"{t:05d}.png", np.roll(mask, shift, axis=1))
    return ["--gt", str(tmp_path / "gt"), "--pred", str(tmp_path / "pred")]


def test_table_card_files_and_plots(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "images" / "b" / "00001.png", np.full((40, 60), 200))
    where = ["--out", str(tmp_path / "out"), "--plots", str(tmp_path / "plots")]
    images = ["--images", str(tmp_path / "images")]
    assert main(["--task", "vos", *folders, *where, *images]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split()[0] == "J&F-Mean"
    split = f"all of {tmp_path / 'gt'}"
    assert f"card: DAVIS 2016, 2017 | split {split} | davis17-semi (objects of" in captured.out
    assert "2/2" in captured.err  # the progress bar
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    region = 20 * 17 / (20 * 23)
    assert summary["numbers"]["J-Mean"] == pytest.approx(50 * (1 + region))
    assert summary["card"]["protocol"] == "davis17-semi"
    with (tmp_path / "out" / "per_sequence.csv").open() as file:
        rows = {row["sequence"]: float(row["J"]) for row in csv.DictReader(file)}
    assert rows == pytest.approx({"a": 100, "b": 100 * region})
    for name in ("bars", "histogram", "worst"):
        with Image.open(tmp_path / "plots" / f"{name}.png") as plot:
            colours = plot.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 20  # something is drawn


def test_faults_are_errors_or_counted(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pred" / "a" / "00002.png"
    path.unlink()
    assert main(["--task", "vos", *folders]) == 2
    err = capsys.readouterr().err
    assert f"error: {path} is missing" in err
    assert "Traceback" not in err
    assert main(["--task", "vos", *folders, "--allow-missing"]) == 0
    out = capsys.readouterr().out
    assert f"warning: {path} is missing" in out
    assert "warnings: 1 missing mask" in out


def test_images_are_a_folder_for_the_plots(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plots = ["--plots", str(tmp_path / "plots")]
    for more in (["--images", str(tmp_path)], [*plots, "--images", str(tmp_path / "none")]):
        assert main(["--task", "vos", *folders, *more]) == 2
        assert "needs --plots, and must be a folder" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_an_error(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["--task", "vos", *folders, "--out", str(tmp_path / "file" / "out")]) == 2
    assert "error: " in capsys.readouterr().err


def test_protocols_can_be_listed_and_must_fit_the_task(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--list"]) == 0
    assert "mevis" in capsys.readouterr().out
    assert main(["--task", "rvos", "--protocol", "davis17-semi", *folders]) == 2
    assert "choose from ref-davis17" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--task", "vos"])


def test_names_that_are_no_text_are_written_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"caf\xe9")  # of a disk from before UTF-8
    for side in ("gt", "pred"):
        for frame in range(3):
            write(tmp_path / side / name / f"{frame}.png", np.eye(20))
    arguments = ["--gt", str(tmp_path / "gt"), "--pred", str(tmp_path / "pred")]
    arguments += ["--protocol", "vos-benchmark", "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(arguments) == 0
    assert "caf\\udce9,1," in (tmp_path / "out/per_item.csv").read_text()
    (tmp_path / "pred" / name / "1.png").unlink()
    assert main(arguments) == 2
    assert "caf\\udce9/1.png is missing" in capsys.readouterr().err
