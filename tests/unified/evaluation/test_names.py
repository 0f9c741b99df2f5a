"""Names of files: numbers in order, litter, shifted numbers, and lists from Windows."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from unified.errors import InputError
from unified.evaluation.protocols import evaluate
from unified.evaluation.reading import read_split
from unified.evaluation.report import Report, Request

sys.path.insert(0, str(Path(__file__).parent))
from golden_folders import write_clip

NUM_FRAMES = 12


def masks() -> np.ndarray:
    """(T, H, W): a square that moves by 3 pixels a frame."""
    result = np.zeros((NUM_FRAMES, 20, 60), np.uint8)
    for number, frame in enumerate(result):
        frame[5:15, 3 * number : 3 * number + 10] = 1
    return result


def score(root: Path, **changes: object) -> Report:
    return evaluate("davis17-semi", Request(root / "gt", root / "pred", **changes))  # type: ignore[arg-type]


def test_first_and_last_frame_are_those_of_the_numbers(tmp_path: Path) -> None:
    """Only frames 0 and 11 are wrong, which the protocol leaves out; as text 9 is the last one."""
    truth, prediction = masks(), masks()
    prediction[[0, -1]] = 0
    write_clip(tmp_path / "gt/a", truth, "{:d}")
    write_clip(tmp_path / "pred/a", prediction, "{:d}")
    assert score(tmp_path).scores.numbers["J-Mean"] == 100


def test_litter_on_either_side_changes_nothing(tmp_path: Path) -> None:
    for side in ("gt", "pred"):
        write_clip(tmp_path / side / "a", masks())
        for folder in (".ipynb_checkpoints", "__MACOSX", "a/.ipynb_checkpoints"):
            write_clip(tmp_path / side / folder, masks()[:1])
        (tmp_path / side / "a/._00000.png").write_bytes(b"\0\5\x16\7")
        (tmp_path / side / "a/Thumbs.db").touch()
        (tmp_path / side / ".DS_Store").touch()
    report = score(tmp_path)
    assert report.scores.numbers["J-Mean"] == 100 and not report.card.warnings
    images = evaluate("uniref", Request(tmp_path / "gt", tmp_path / "pred"))
    assert len(images.scores.rows) == NUM_FRAMES


def test_predictions_that_are_numbered_from_another_number(tmp_path: Path) -> None:
    write_clip(tmp_path / "gt/a", np.concatenate([masks()[:1], masks()]))
    (tmp_path / "gt/a/00000.png").unlink()  # numbered from 1
    write_clip(tmp_path / "pred/a", masks())
    with pytest.raises(InputError, match=r"a/00000\.png is no frame .* all .* shifted by -1"):
        score(tmp_path)
    (tmp_path / "pred/a/00000.png").unlink()
    with pytest.raises(InputError, match=r"a/00012\.png is missing.* all .* one frame early"):
        score(tmp_path)
    assert score(tmp_path, allow_missing=True).card.warnings == {"missing mask": 1}
    shutil.rmtree(tmp_path / "pred/a")
    write_clip(tmp_path / "pred/a", np.concatenate([masks()[:1], masks(), masks()[:1]]))
    with pytest.raises(InputError, match=r"a/00000\.png is no frame .* remove them"):
        score(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_that_was_saved_on_windows(tmp_path: Path, encoding: str) -> None:
    for side in ("gt", "pred"):
        for name in ("a", "b"):
            write_clip(tmp_path / side / name, masks())
    (tmp_path / "split.txt").write_bytes("a\r\nb\r\n".encode(encoding))
    report = score(tmp_path, split=read_split(tmp_path / "split.txt", None))
    assert {row.sequence for row in report.scores.rows} == {"a", "b"}
