"""A system that is gone or broken takes nothing along: the toolkit and the others work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy.system import INSTALLED
from unified.engine.system import find_systems

ROOT = Path(__file__).parents[1]
# Files and tests that are fast; between them: predictors, configurations, models, training.
FAST = "memory or test_settings or test_config or test_system or averaged"
# An editable installation would bring the original tree back.
HERE_ALONE = """
import sys
sys.path[:] = [entry for entry in sys.path if "__editable__" not in entry]
sys.meta_path[:] = [
    finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")
]
"""
LIST_SYSTEMS = """
import logging
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from unified.engine.config import default_config
from unified.engine.system import find_systems
cfg = default_config()
default_config()
print(*find_systems())
assert hasattr(cfg.MODEL, "TOY")
"""


def python(tree: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a tree, without any trace of this one."""
    path = os.pathsep.join((str(tree), str(tree / INSTALLED.relative_to(ROOT))))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HERE_ALONE + code],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def copy_tree(tree: Path, *tops: str) -> None:
    skipped = shutil.ignore_patterns("__pycache__")
    for top in tops:
        shutil.copytree(ROOT / top, tree / top, ignore=skipped)
    shutil.copyfile(ROOT / "pyproject.toml", tree / "pyproject.toml")


def test_without_a_system_all_tests_are_collected_and_the_fast_ones_pass(tmp_path: Path) -> None:
    copy_tree(tmp_path, *("unified", "projects", "tools", "tests", "configs", "datasets", "docs"))
    shutil.rmtree(tmp_path / "projects/uniref")
    shutil.rmtree(tmp_path / "tests/projects/uniref")
    for config in (tmp_path / "configs").rglob("*.yaml"):
        if "UniRef" in config.read_text(encoding="utf-8"):
            config.unlink()
    arguments = ["tests/unified", "-q", "-k", FAST, "-p", "no:cacheprovider"]
    done = python(tmp_path, f"import pytest; sys.exit(pytest.main({arguments!r}))")
    assert done.returncode == 0, done.stdout[-3000:]
    passed, deselected = map(int, re.findall(r"(\d+) (?:passed|deselected)", done.stdout))
    assert passed > 50 and passed + deselected > 1000


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("def add_config(", "def add_config((", "SyntaxError"),
        ("    add_config=add_config,", "    add_config=lambda cfg: cfg.NOTHING,", "AttributeError"),
    ],
    ids=["syntax", "configuration"],
)
def test_a_broken_system_costs_one_warning(tmp_path: Path, old: str, new: str, error: str) -> None:
    copy_tree(tmp_path, "unified", "projects", "tests/toy")
    file = tmp_path / "projects/uniref/system.py"
    code = file.read_text(encoding="utf-8")
    assert old in code
    file.write_text(code.replace(old, new, 1), encoding="utf-8")
    done = python(tmp_path, LIST_SYSTEMS)
    assert done.returncode == 0, done.stderr
    assert {*done.stdout.split(), "UniRef"} == set(find_systems())
    (warning,) = done.stderr.splitlines()
    assert re.search(r"projects/uniref|the system UniRef", warning) and error in warning
