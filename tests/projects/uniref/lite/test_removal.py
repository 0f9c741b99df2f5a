"""Without its folder nothing is left of the lite model: the other models of UniRef work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from projects.uniref.config import find_lite

ROOT = Path(__file__).parents[4]
LITE = "projects/uniref/lite"
SCRIPT = """
import sys
# An editable installation would bring the folder back.
sys.path[:] = [entry for entry in sys.path if "__editable__" not in entry]
sys.meta_path[:] = [
    finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")
]
import numpy as np
import unified
from unified.errors import ConfigError
from unified import ImagePredictor
from unified.structures import Prompt

tiny = [
    "MODEL.WEIGHTS", "",
    "MODEL.UNIREF.BACKBONE", "resnet50", "MODEL.UNIREF.BACKBONE_WEIGHTS", "",
    "MODEL.UNIREF.TEXT_ENCODER.NAME", "", "MODEL.UNIREF.HIDDEN_DIM", "32",
    "MODEL.UNIREF.NUM_HEADS", "4", "MODEL.UNIREF.NUM_QUERIES", "7",
    "MODEL.UNIREF.ENCODER_LAYERS", "1", "MODEL.UNIREF.DECODER_LAYERS", "1",
    "MODEL.UNIREF.MASK_ENCODER.WIDTH", "8",
]
model = unified.load("configs/vos_r50.yaml", device="cpu", options=tiny)
predictor = ImagePredictor(model, short_side=64, max_size=96)
predictor.set_image(np.zeros((64, 96, 3), np.uint8))
marked = np.zeros((64, 96), bool)
marked[8:24, 8:24] = True
assert 0 <= predictor.predict(Prompt(mask=marked))[1] <= 1
assert "projects.uniref.model" in sys.modules
try:
    unified.load("configs/lite/uniref_lite.yaml", device="cpu")
except ConfigError as error:
    print(error)
"""


def run_without_lite(tree: Path, script: str) -> str:
    """What the script prints in a copy of this repository without the folder."""
    for top in ("unified", "projects", "configs"):
        skipped = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / top, tree / top, ignore=skipped)
    shutil.rmtree(tree / LITE)
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_without_the_folder_other_models_run_and_its_config_gives_one_error(
    tmp_path: Path,
) -> None:
    printed = run_without_lite(tmp_path, SCRIPT)
    assert printed.count("\n") == 1
    assert f"this config sets MODEL.UNIREF.LITE, but {LITE} is not there" in printed


def test_a_missing_file_is_not_taken_for_a_deleted_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "projects.uniref.lite.name_head"
    monkeypatch.delitem(sys.modules, "projects.uniref.lite.config", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=missing):
        find_lite()


@pytest.mark.parametrize("word", ["name_head", "NamedUniRef", "opening_phrase", "frozen_stages"])
def test_no_other_module_knows_its_parts(word: str) -> None:
    files = [ROOT / "projects/uniref/model.py", *(ROOT / "unified").rglob("*.py")]
    assert [file for file in files if word in file.read_text(encoding="utf-8")] == []
