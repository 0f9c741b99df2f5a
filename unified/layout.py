"""Where configs, systems and commands lie: beside the package in the source tree, inside it in a
wheel, whose one top-level name is ``unified`` (see setup.py)."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
IN_WHEEL = (PACKAGE / "configs").is_dir()
# The folder of configs, projects, tools and datasets.
ROOT = PACKAGE if IN_WHEEL else PACKAGE.parent
# The folders that every dataset is expected in.
DATASETS_GUIDE = ROOT / "datasets" / "README.md"
# What import names below that folder start with.
PREFIX = "unified." if IN_WHEEL else ""


def find_config(path: str | Path) -> Path:
    """``path``; one below ``configs`` that is not there is that of the toolkit."""
    path = Path(path)
    is_ours = path.parts[:1] == ("configs",) and not path.exists()
    return ROOT / path if is_ours else path
