"""tools/train_chooser.py and tools/sheet.py on a made set, for a tiny untrained model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

import unified
from tests.projects.uniref.tools.test_calibrate import TINY
from unified import ImagePredictor, Prompt
from unified.checkpoint import write_weights
from unified.data.synthetic.releases import RELEASES

ROOT = Path(__file__).parents[4]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made set, a config and weights."""
    RELEASES["refcoco"](tmp_path, 2, 0)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    model = unified.load(tmp_path / "tiny.yaml", device="cpu")
    write_weights(tmp_path / "a.safetensors", model.state_dict())
    return tmp_path


def test_a_chooser_is_trained_for_one_file_of_weights_and_used_with_it(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    given = ["--model", str(folder / "tiny.yaml"), "--weights", str(folder / "a.safetensors")]
    name = "refcoco-unc-testA"
    sets = ["--sets", name, "--choose", name, "--epochs", "1"]
    output = folder / "chooser.safetensors"
    command = [*given, *sets, "--device", "cpu", "--output", str(output)]
    assert tool("train_chooser").main(command) == 0
    assert f"sentences of {name}" in capsys.readouterr().out
    options = ["INFERENCE.CHOOSER", str(output)]
    model = unified.load(folder / "tiny.yaml", folder / "a.safetensors", "cpu", options)
    predictor = ImagePredictor(model)
    predictor.set_image(np.zeros((48, 64, 3), np.uint8))
    assert 0 < predictor.predict(Prompt(text="the red circle"))[1] < 1
    assert predictor.predict(Prompt(text="кошка"))[1] == 0
    other = folder / "b.safetensors"
    write_weights(other, {**model.state_dict(), "name_head.centre": model.name_head.centre + 1})
    assert unified.load(folder / "tiny.yaml", other, "cpu", options).chooser is None
    assert "was trained for other weights" in caplog.text


def test_a_sheet_shows_as_many_sentences_as_are_wanted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(folder / "tiny.yaml"), "--weights", str(folder / "a.safetensors")]
    picture = folder / "sheet.png"
    command = [*given, "--set", "refcoco-unc-val", "--number", "3", "--output", str(picture)]
    assert tool("sheet").main([*command, "--device", "cpu"]) == 0
    assert "3 of" in capsys.readouterr().out
    sheet = np.asarray(Image.open(picture))
    cells = [sheet[50:100, left : left + 100] for left in (0, 246, 492, 738)]
    assert [bool((cell < 255).any()) for cell in cells] == [True, True, True, False]
