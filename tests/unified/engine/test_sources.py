"""What a configuration asks of the sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from unified.engine.config import load_config
from unified.engine.sources import build_source
from unified.engine.testing import evaluate
from unified.errors import ConfigError

CONFIG = Path(__file__).parents[2] / "data/tiny_training.yaml"


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], (1,)), (["NSHOT", "3"], (3,)), (["NSHOT", "3", "NSHOT_TRAIN", "(1, 2)"], (1, 2))],
)
def test_numbers_of_supports(
    options: list[str], given: list[str], expected: tuple[int, ...]
) -> None:
    named = [f"TASK.FSS.{x}" if x.startswith("NSHOT") else x for x in given]
    source = build_source(load_config(CONFIG, [*options, *named]), "fss-1000-train")
    assert source.mapper.num_supports == expected


@pytest.mark.parametrize("given", [["NSHOT", "0"], ["NSHOT_TRAIN", "(2, 0)"]])
def test_no_support_is_no_sample(options: list[str], given: list[str]) -> None:
    cfg = load_config(CONFIG, [*options, f"TASK.FSS.{given[0]}", given[1]])
    with pytest.raises(ConfigError, match="support images in training: expected at least 1"):
        build_source(cfg, "fss-1000-train")


def test_the_margin_of_supports_reaches_evaluation(options: list[str]) -> None:
    test = ["DATASETS.TEST", "('fss-1000-test',)", "INFERENCE.SUPPORT_MARGIN", "-0.1"]
    with pytest.raises(ConfigError, match=r"margin of supports is -0\.1: expected 0 or more"):
        evaluate(load_config(CONFIG, [*options, *test]), nn.Module())
