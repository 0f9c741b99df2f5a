"""What the tool refuses before it loads a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from unified.__main__ import main

TINY = str(Path(__file__).parents[1] / "data/tiny_training.yaml")


def test_a_folder_is_no_model_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "name the model that is to be exported" in capsys.readouterr().err


def test_a_model_without_weights_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--model", TINY, "--output", str(tmp_path / "out")]) == 2
    assert "has no trained weights: give --weights FILE" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["480", "16x480", "axb"])
def test_sizes_are_two_numbers(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--output", "out", "--size", size])
    assert f"expected HEIGHTxWIDTH of at least 32x32, got {size}" in capsys.readouterr().err
