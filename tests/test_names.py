"""Nothing in ``unified`` or ``tools`` names a system: each is found, and each can be removed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from unified.engine.system import System, find_systems

ROOT = Path(__file__).parents[1]
SYSTEMS = sorted(file.parent.name for file in (ROOT / "projects").glob("*/model.py"))
# (files, name that is no system there, what it is)
ALLOWED = (
    ("unified/evaluation/*", "uniref", "the published rule that scores referring expressions"),
    ("unified/metrics/iou.py", "uniref", "the numbers of that rule"),
    ("unified/data/table.py", "uniref", "the protocols of RefCOCO, by that rule"),
    ("unified/data/own.py", "uniref", "the protocols of one's own sets, by that rule"),
)


def names_in(path: str, code: str, systems: list[str] = SYSTEMS) -> Iterator[str]:
    """Line and system of every identifier and string that names one.

    A docstring may name a paper as it is written there, but no folder, file or key of its system.
    """
    tree = ast.parse(code)
    known = "|".join(systems)
    in_prose = re.compile(rf"(?<![A-Za-z])({known})(?![a-z])|MODEL\.({known.upper()})\b")
    words = "|".join(systems).upper()
    anywhere = re.compile(
        rf"(?<![A-Z])({words})(?![A-Z](?![a-z])|[a-z])|(?<![a-z])(?!{words})(?i:{known})(?![a-z])"
    )
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        texts = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "module")]
        texts.append(getattr(node, "value", None) if isinstance(node, ast.Constant) else None)
        pattern = in_prose if id(node) in prose else anywhere
        for text in (text for text in texts if isinstance(text, str)):
            for found in {match.group().lower() for match in pattern.finditer(text)}:
                if not any(fnmatch(path, files) and found == name for files, name, _ in ALLOWED):
                    yield f"{path}:{getattr(node, 'lineno', 1)} names {found}"


def test_neither_the_toolkit_nor_its_commands_name_a_system() -> None:
    assert len(SYSTEMS) > 3
    files = [file for top in ("unified", "tools") for file in sorted((ROOT / top).rglob("*.py"))]
    found = [
        name
        for file in files
        for name in names_in(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "from projects.cmsa.model import Model",
        "import_module('projects.cmsa')",
        "cfg.MODEL.CMSA.DIM",
        "class CmsaLoss: pass",
        "def load_cmsa(): pass",
        "CMSA_KEYS = 1",
        "class CMSALoss: pass",
        "x = 'cmsa_tiny.yaml'",
        "if name == 'CMSA': pass",
        "f(cmsa=1)",
        "x = f'{y}/cmsa'",
        '"""Set MODEL.CMSA.DIM."""',
        '"""As in configs/cmsa.yaml."""',
    ],
)
def test_a_planted_name_is_found(code: str) -> None:
    assert list(names_in("unified/a.py", code, ["cmsa"]))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("unified/a.py", '"""Source: CMSA (arXiv:1904.04745), section 3."""'),
        ("unified/a.py", "def restrict(): pass"),
        ("unified/a.py", "SAMPLES = SAME = 1"),
        ("unified/a.py", "class Sample: pass"),
        ("unified/evaluation/a.py", "rules = {'uniref': iou.UNIREF}"),
    ],
)
def test_what_only_looks_like_a_name_passes(path: str, code: str) -> None:
    assert list(names_in(path, code, ["cmsa", "restr", "sam", "uniref"])) == []


def test_tests_of_the_toolkit_need_no_system() -> None:
    """They pass without any of the folders, so they load no model of theirs and no config."""
    models = {name for system in find_systems().values() for name in _own_models(system)}
    assert len(models) > len(SYSTEMS)
    found = [
        f"{_path(file)}:{node.lineno} needs {node.value}"
        for file in sorted((ROOT / "tests/unified").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and (node.value in models or "configs/" in node.value)
    ]
    assert not found, "\n" + "\n".join(found)


def _own_models(system: System) -> list[str]:
    return list(system.models) if system.build.__module__.startswith("projects.") else []


def test_every_exception_is_used() -> None:
    for files, name, reason in ALLOWED:
        found = [file for file in ROOT.rglob("unified/**/*.py") if fnmatch(_path(file), files)]
        assert any(name in file.read_text(encoding="utf-8").lower() for file in found), reason


def _path(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()
