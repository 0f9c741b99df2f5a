"""Every configuration loads and builds, and no key is there that no code reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from unified.engine.config import default_config, load_config, with_options
from unified.engine.models import CONFIGS
from unified.engine.system import system
from unified.errors import ConfigError

ROOT = Path(__file__).parents[3]
YAMLS = [
    path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if "STAGES" not in yaml.safe_load(path.read_text(encoding="utf-8"))
]

each_yaml = pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(CONFIGS)))


def leaves(node: CfgNode | dict, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield *prefix, key


# ---------------------------------------------------------------- every yaml


def test_there_are_configs() -> None:
    assert {"base_r50", "video_joint_r50", "uniref_lite"} <= {path.stem for path in YAMLS}


@each_yaml
def test_loads_builds_and_names_its_classes(path: Path) -> None:
    cfg = load_config(path)
    with torch.device("meta"):
        model = system(cfg.MODEL.META_ARCHITECTURE).build(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6
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
    allowed = {"MODEL.META_ARCHITECTURE", "MODEL.WEIGHTS", "MODEL.UNIREF.BACKBONE"}
    assert set(repeated) <= (allowed if base is None else set())


@each_yaml
def test_holds_no_path_outside_the_project(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r":\s*[\"']?(/|~|[A-Za-z]:\\)", text)


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
    return attributes_read(ROOT / "unified", ROOT / "projects", ROOT / "tools")


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
    assert not is_read(("MODEL", "UNIREF", "NO_SUCH_KEY"))
    assert not is_read(("MODEL", "UNIREF", "FUSION", "WIDTH_OF_NOTHING"))
    assert is_read(("MODEL", "UNIREF", "MASK_ENCODER", "WIDTH"))
    assert is_read(("INFERENCE", "SCORE_THRESHOLD"))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  UNIREF:\n    HIDEN_DIM: 3\n", "HIDEN_DIM"),
        ("NODEL:\n  X: 3\n", "NODEL"),
        ("MODEL:\n  UNIREF:\n    HIDDEN_DIM: wide\n", "HIDDEN_DIM"),
        ("MODEL:\n  UNIREF: 3\n", "Type mismatch"),
        ("MODEL: [1\n", "cannot be read as a config"),
        ("just words", "bad.yaml"),
        ("_BASE_: nothing.yaml\n", "nothing.yaml"),
        ("\x00\x01", "cannot be read as a config"),
    ],
    ids=["key", "node", "type", "node as value", "syntax", "text", "base", "binary"],
)
def test_a_bad_file_is_named_with_its_reason(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="does not exist"):
            load_config(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.UNIREF.HIDEN_DIM", "3"], "HIDEN_DIM"),
        (["MODEL.UNIREF.HIDDEN_DIM", "wide"], "HIDDEN_DIM"),
        (["MODEL.UNIREF.HIDDEN_DIM"], "expected pairs of KEY VALUE, got MODEL.UNIREF.HIDDEN_DIM"),
        (["NODEL.X", "3"], "NODEL"),
    ],
)
def test_bad_options(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, options)


def test_a_whole_number_is_a_float_where_one_is_expected() -> None:
    given = ["SOLVER.EMA_DECAY", "0", "INFERENCE.SUPPORT_MARGIN", "-1", "SOLVER.MAX_ITER", "7"]
    cfg = with_options(default_config(), given)
    assert (cfg.SOLVER.EMA_DECAY, cfg.INFERENCE.SUPPORT_MARGIN) == (0.0, -1.0)
    assert isinstance(cfg.SOLVER.EMA_DECAY, float) and isinstance(cfg.SOLVER.MAX_ITER, int)


def test_options_win_over_files_and_leave_the_original() -> None:
    cfg = load_config(CONFIGS / "base_r50.yaml", ["MODEL.UNIREF.NUM_QUERIES", "7"])
    assert cfg.MODEL.UNIREF.NUM_QUERIES == 7
    other = with_options(cfg, ["MODEL.UNIREF.NUM_QUERIES", "8"])
    assert (cfg.MODEL.UNIREF.NUM_QUERIES, other.MODEL.UNIREF.NUM_QUERIES) == (7, 8)
    assert cfg.is_frozen() and other.is_frozen()


@pytest.mark.parametrize("rest", [["--resume"], ["--num-gpus", "2"]])
def test_a_flag_after_the_keys_is_named(rest: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"{rest[0]} follows the keys: flags go before KEY VALUE"):
        load_config(None, ["SOLVER.MAX_ITER", "2", *rest])
