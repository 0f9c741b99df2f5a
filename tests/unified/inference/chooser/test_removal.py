"""Without its folder images are asked as before, also where a configuration names a chooser."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
FOLDER = "unified/inference/chooser"
SCRIPT = """
import sys
# An editable installation would bring the folder back.
sys.path[:] = [entry for entry in sys.path if "__editable__" not in entry]
sys.meta_path[:] = [
    finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")
]
import numpy as np
from tests.toy.model import make_toy
from unified import ImagePredictor, Prompt
from unified.engine.config import load_config
from unified.engine.models import attach_chooser

model = make_toy()
attach_chooser(model, load_config(None, ["INFERENCE.CHOOSER", "any"]), "0")
predictor = ImagePredictor(model, short_side=64, max_size=96)
predictor.set_image(np.zeros((64, 96, 3), np.uint8))
print(predictor.predict(Prompt(text="the red dog"))[0].shape)
"""


def test_without_the_folder_the_rest_works(tmp_path: Path) -> None:
    for top in ("unified", "tests/toy"):
        skipped = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / top, tmp_path / top, ignore=skipped)
    shutil.rmtree(tmp_path / FOLDER)
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip().endswith("(64, 96)")


@pytest.mark.parametrize("word", ["inference.chooser", "inference/chooser"])
def test_no_other_module_imports_it(word: str) -> None:
    others = [file for file in (ROOT / "unified").rglob("*.py") if FOLDER not in file.as_posix()]
    users = {f.name for f in others if word in f.read_text(encoding="utf-8")}
    assert users == {"models.py"}  # which looks whether it is there
