"""What a configuration asks of the sets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from torch import nn

from tests.toy.system import CONFIG
from unified.data.catalog import load_records
from unified.data.synthetic.releases import RELEASES
from unified.engine.config import load_config
from unified.engine.system import system
from unified.engine.testing import evaluate
from unified.engine.train_loader import build_source
from unified.errors import ConfigError


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


def test_margins_of_supports(options: list[str]) -> None:
    key = "TASK.FSS.MARGINS_TRAIN"
    source = build_source(load_config(CONFIG, [*options, key, "(0.1, 1e999)"]), "fss-1000-train")
    assert source.mapper.support_margins == (0.1, math.inf)
    for given in ("()", "(-0.1,)", "('inf',)"):
        with pytest.raises(ConfigError, match=r"MARGINS_TRAIN is .* number of 0 or more"):
            build_source(load_config(CONFIG, [*options, key, given]), "fss-1000-train")


def test_the_mirror_image_is_asked_in_evaluation_but_not_in_detection(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in ("fss1000", "objects365"):
        RELEASES[release](tmp_path, 2, 0)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    calls: dict[str, list[int]] = {}
    for name in ("fss-1000-test", "objects365_v2_val"):
        for mirror in ("True", "False"):
            given = ["DATASETS.TEST", f"('{name}',)", "INFERENCE.MIRROR", mirror]
            cfg = load_config(CONFIG, [*options, *given])
            builder = system(cfg.MODEL.META_ARCHITECTURE)
            model = builder.build(cfg)
            sizes = calls.setdefault(name, [])
            before = len(sizes)
            hook = model.head.register_forward_pre_hook(
                lambda _, args, sizes=sizes: sizes.append(len(args[0]))
            )
            evaluate(cfg, model)
            hook.remove()
            assert set(sizes[before:]) == {1}
            sizes[before:] = [(len(sizes) - before) // len(load_records(name))]
    assert calls == {"fss-1000-test": [2, 1], "objects365_v2_val": [1, 1]}
    card = Path(cfg.OUTPUT_DIR) / "inference" / "objects365_v2_val" / "coco-box" / "summary.json"
    assert "categories merged" in card.read_text(), "the toy model has no classes"


def test_the_margin_of_supports_reaches_evaluation(options: list[str]) -> None:
    test = ["DATASETS.TEST", "('fss-1000-test',)", "INFERENCE.SUPPORT_MARGIN", "-0.1"]
    with pytest.raises(ConfigError, match=r"margin of supports is -0\.1: expected 0 or more"):
        evaluate(load_config(CONFIG, [*options, *test]), nn.Module())
