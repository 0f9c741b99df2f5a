"""Every configuration loads, builds and fits the table of sets; no key is there in vain."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache, reduce
from importlib.util import find_spec
from operator import getitem
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from unified.data.catalog import find_dataset
from unified.engine.config import default_config, load_config
from unified.engine.models import CONFIGS
from unified.engine.system import system
from unified.modeling.vocabulary import Vocabulary
from unified.weights import WEIGHTS

ROOT = Path(__file__).parents[1]
OTHER_SETS = ("my_", "lite_")  # of docs/finetune.md, and of datasets/prepare_lite.py
LISTS = {"STAGES", "VALUES"}  # of runs, each with a configuration
YAMLS = [
    path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if not LISTS & set(yaml.safe_load(path.read_text(encoding="utf-8")))
]

each_yaml = pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(CONFIGS)))


@pytest.fixture(autouse=True)
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary that tiny configurations take from made sets."""
    text = Vocabulary.of(["the red dog"]).text()
    (tmp_path / "refcoco.txt").write_text(text, encoding="utf-8")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))


def leaves(node: CfgNode | dict, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield *prefix, key


# ---------------------------------------------------------------- every yaml


def test_there_are_configs() -> None:
    assert len(YAMLS) > 5


@each_yaml
def test_loads_builds_and_names_its_classes(path: Path) -> None:
    cfg = load_config(path)
    with torch.device("meta"):
        model = system(cfg.MODEL.META_ARCHITECTURE).build(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e5
    assert cfg.is_frozen()


@each_yaml
def test_is_built_on_bases_at_most_two_deep(path: Path) -> None:
    depth, folder = 0, path
    while base := yaml.safe_load(folder.read_text(encoding="utf-8")).get("_BASE_"):
        folder = folder.parent / base
        depth += 1
    assert depth <= 2
    assert CONFIGS in folder.resolve().parents


@each_yaml
def test_states_only_what_differs_from_its_base(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = content.pop("_BASE_", None)
    before = load_config(None if base is None else path.parent / base)
    content.pop("VERSION", None)
    repeated = []
    for keys in leaves(content):
        value, stated = before, content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
            stated = stated[key]
        same = list(value) == stated if isinstance(value, tuple) else value == stated
        if same and value is not None:
            repeated.append(".".join(keys))
    # A schedule is stated whole; the root of a family says what it is.
    repeated = [key for key in repeated if not key.startswith("SOLVER.")]
    allowed = r"MODEL\.(META_ARCHITECTURE|WEIGHTS|[A-Z]+\.BACKBONE)"
    assert [key for key in repeated if base or not re.fullmatch(allowed, key)] == []


@each_yaml
def test_holds_no_path_outside_the_project(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r":\s*[\"']?(/|~|[A-Za-z]:\\)", text)


@each_yaml
def test_names_known_sets_and_weights(path: Path) -> None:
    cfg = load_config(path)
    given = {"train": cfg.DATASETS.TRAIN, "test": cfg.DATASETS.TEST}
    for split, names in given.items():
        ours = [name for name in names if not name.startswith(OTHER_SETS)]
        assert {find_dataset(name).split for name in ours} <= {split}
    assert set(cfg.DATALOADER.RATIOS) | set(cfg.DATALOADER.BATCH_SIZES) <= set(given["train"])
    assert set(cfg.INPUT.PER_DATASET) <= {name for names in given.values() for name in names}
    assert all(step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)
    assert cfg.SOLVER.IMS_PER_BATCH % cfg.SOLVER.ACCUMULATE == 0
    for keys in leaves(cfg.MODEL):
        name = reduce(getitem, keys, cfg.MODEL)
        if keys[-1].endswith("WEIGHTS") and isinstance(name, str):
            assert name in ("", *WEIGHTS) or name.startswith("output/"), keys


# ---------------------------------------------------------------- no dead key


@cache
def attributes_read(*folders: Path) -> frozenset[tuple[str, str]]:
    """(what stands before, NAME) of every ``a.b.NAME`` that is read somewhere in the code."""
    found = set()
    for file in (file for folder in folders for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else ""
                found.add((name if name.isupper() else "", node.attr))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(("", node.value))
    return frozenset(found)


def ours() -> frozenset[tuple[str, str]]:
    """Of the toolkit, the systems, and the toy that is installed in the tests."""
    return attributes_read(*(ROOT / top for top in ("unified", "projects", "tools", "tests/toy")))


@cache
def detectron2_names() -> frozenset[str]:
    spec = find_spec("detectron2")
    assert spec is not None and spec.submodule_search_locations
    code = "".join(
        file.read_text(encoding="utf-8")
        for file in Path(spec.submodule_search_locations[0]).rglob("*.py")
        if file.name != "defaults.py" or file.parent.name != "config"
    )
    return frozenset(re.findall(r"\.([A-Z][A-Z0-9_]*)\b", code))


def is_read(keys: tuple[str, ...]) -> bool:
    """By its name after its node's, or after a variable; ``INFERENCE`` also in lower case."""
    parent, name = ("", *keys)[-2:]
    names = {name, name.lower()} if keys[0] == "INFERENCE" else {name}
    return any((before, wanted) in ours() for before in (parent, "") for wanted in names)


def without_names_of_data(keys: tuple[str, ...]) -> tuple[str, ...]:
    """In maps by dataset name the key is what follows the name, or the map itself."""
    return tuple(key for key in keys if key.isupper())


def test_every_default_key_is_read() -> None:
    known = set(leaves(get_cfg()))
    own = [keys for keys in leaves(default_config()) if keys not in known]
    assert len(own) > 30
    assert [".".join(keys) for keys in own if not is_read(keys)] == []


@each_yaml
def test_every_stated_key_is_read(path: Path) -> None:
    stated = [without_names_of_data(k) for k in leaves(yaml.safe_load(path.read_text("utf-8")))]
    dead = [
        ".".join(keys)
        for keys in stated
        if keys != ("_BASE_",) and not is_read(keys) and keys[-1] not in detectron2_names()
    ]
    assert dead == []


def test_a_dead_key_would_be_found() -> None:
    assert not is_read(("MODEL", "TOY", "NO_SUCH_KEY"))
    assert is_read(("MODEL", "TOY", "NUM_QUERIES"))
    assert not is_read(("INFERENCE", "WIDTH_OF_NOTHING"))
    assert is_read(("INFERENCE", "SCORE_THRESHOLD"))
