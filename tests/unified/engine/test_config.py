"""Configurations: what is wrong in a file or an option is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toy.system import CONFIG
from unified.engine.config import default_config, load_config, with_options
from unified.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  TOY:\n    NUM_QERIES: 3\n", "NUM_QERIES"),
        ("NODEL:\n  X: 3\n", "NODEL"),
        ("MODEL:\n  TOY:\n    NUM_QUERIES: wide\n", "NUM_QUERIES"),
        ("MODEL:\n  TOY: 3\n", "Type mismatch"),
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
        (["MODEL.TOY.NUM_QERIES", "3"], "NUM_QERIES"),
        (["MODEL.TOY.NUM_QUERIES", "wide"], "NUM_QUERIES"),
        (["MODEL.TOY.NUM_QUERIES"], "expected pairs of KEY VALUE, got MODEL.TOY.NUM_QUERIES"),
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
    cfg = load_config(CONFIG, ["MODEL.TOY.NUM_QUERIES", "7"])
    assert cfg.MODEL.TOY.NUM_QUERIES == 7
    other = with_options(cfg, ["MODEL.TOY.NUM_QUERIES", "8"])
    assert (cfg.MODEL.TOY.NUM_QUERIES, other.MODEL.TOY.NUM_QUERIES) == (7, 8)
    assert cfg.is_frozen() and other.is_frozen()


@pytest.mark.parametrize("rest", [["--resume"], ["--num-gpus", "2"]])
def test_a_flag_after_the_keys_is_named(rest: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"{rest[0]} follows the keys: flags go before KEY VALUE"):
        load_config(None, ["SOLVER.MAX_ITER", "2", *rest])
