"""``make demo`` with three frames of the clip."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from unified.engine.models import model_entries, models
from unified.weights import WEIGHTS

ROOT = Path(__file__).parents[2]


def load_demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "tools/demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_draws_what_the_tools_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    demo = load_demo()
    monkeypatch.setattr(demo, "LAST_FRAME", 3)
    monkeypatch.setattr(demo, "PHOTOS", {"cat": ("the cat",)})
    monkeypatch.setattr(demo, "other_models", list)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert demo.main([str(tmp_path)]) == 0
    for name in ("sentence", "mask", "both"):
        first, last = (np.array(Image.open(tmp_path / name / f"masks/0000{i}.png")) for i in (0, 2))
        assert first.shape == last.shape and (first == 1).any() and (last == 1).any()
    (cat,) = (tmp_path / "cat/masks").iterdir()
    assert (np.array(Image.open(cat)) == 1).mean() > 0.2
    clips, photos, row = (
        np.array(Image.open(tmp_path / name)) for name in ("clips.png", "photos.png", "demo.jpg")
    )
    assert len(clips) == 3 * demo.HEIGHT and len(photos) == len(row) == demo.HEIGHT
    assert row.shape[1] == photos.shape[1] + clips.shape[1] * 2 // 3
    assert "$ python tools/infer_image.py --input" in capfd.readouterr().out


def test_a_model_without_its_parts_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = load_demo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    named = [
        name
        for name in models(points=True)
        if (entry := model_entries()[name]).weights and WEIGHTS[entry.weights].bundled
    ]
    assert demo.other_models() == []
    printed = capsys.readouterr().out
    assert all(f"{name} is left out: " in printed for name in named)


def test_a_tool_that_fails_ends_the_demo(tmp_path: Path) -> None:
    demo = load_demo()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        demo.main([str(tmp_path / "file")])
    assert ended.value.code == 2
    assert demo.main([]) == 2
