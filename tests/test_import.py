"""What importing the toolkit costs, and that its core survives broken neighbours.

Every check runs in an interpreter of its own: this one has imported half the world already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unified

ROOT = Path(__file__).parents[1]
HEAVY = ("detectron2", "transformers", "torchvision", "timm")
NEEDS_DETECTRON2 = ("unified.data", "unified.evaluation", "unified.engine")


def modules(folder: str) -> list[str]:
    """Dotted names of the modules below ``folder`` that need no Detectron2."""
    files = sorted((ROOT / folder).rglob("*.py"))
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    names = [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]
    return [name for name in names if not name.startswith(NEEDS_DETECTRON2)]


def imported_by(names: list[str], *, path: Path = ROOT) -> set[str]:
    """Imports ``names`` in a fresh interpreter; returns the top-level packages it then holds.

    Args:
        names: dotted names.
        path: a folder in front of everything else on the path.
    """
    code = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def test_import_unified_pulls_in_nothing_heavy() -> None:
    assert imported_by(["unified"]).isdisjoint({*HEAVY, "torch"})


def test_what_is_exported_is_there() -> None:
    assert set(unified.__all__) <= set(dir(unified))
    for name in unified.__all__:
        assert getattr(unified, name), name
    with pytest.raises(AttributeError, match="no attribute 'Predictor'"):
        _ = unified.Predictor


def test_the_core_imports_although_its_neighbours_are_broken(tmp_path: Path) -> None:
    for package in HEAVY:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('operator is missing')")
    systems = [name for name in modules("projects") if name.endswith(".model")]
    core = modules("unified")
    assert "unified.structures" in core
    assert "torch" in imported_by(core + systems, path=tmp_path)


def test_metrics_need_no_torch() -> None:
    metrics = modules("unified/metrics")
    assert metrics
    assert "torch" not in imported_by(metrics)
