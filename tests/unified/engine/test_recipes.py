"""Every recipe loads, names known sets and weights, and holds no key that no code reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from projects.uniref.lite.data.writing import SET_SPLITS
from unified.data.catalog import find_dataset
from unified.engine.config import load_config
from unified.weights import WEIGHTS

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
RECIPES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if not path.name.startswith("stages")]
FREE_NAMES = {"RATIOS", "BATCH_SIZES", "PER_DATASET"}  # maps keyed by dataset
# Read inside Detectron2's schedule and file handling.
DETECTRON2_KEYS = {"STEPS", "WARMUP_FACTOR", "WARMUP_ITERS", "VERSION", "_BASE_"}


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 18


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_recipe_is_consistent(path: Path) -> None:
    cfg = load_config(path)
    train, test = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    assert all(split_of(name) == "train" for name in train)
    assert all(split_of(name) == "test" for name in test)
    assert set(cfg.DATALOADER.RATIOS) | set(cfg.DATALOADER.BATCH_SIZES) <= set(train)
    assert set(cfg.INPUT.PER_DATASET) <= {*train, *test}
    assert all(step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)
    assert cfg.SOLVER.IMS_PER_BATCH % cfg.SOLVER.ACCUMULATE == 0
    names = (cfg.MODEL.WEIGHTS, cfg.MODEL.UNIREF.BACKBONE_WEIGHTS)
    names += (cfg.MODEL.UNIREF.TEXT_ENCODER.WEIGHTS,)
    assert all(not name or name in WEIGHTS or name.startswith("output/") for name in names)


def split_of(name: str) -> str:
    """Of the table, of the sets of ``datasets/prepare_lite.py``, or of docs/finetune.md."""
    if name.startswith("my_"):
        return "test" if name.endswith("_val") else "train"
    return SET_SPLITS[name] if name.startswith("lite_") else find_dataset(name).split


def test_no_recipe_has_a_key_that_no_code_reads() -> None:
    files = [*ROOT.glob("unified/**/*.py"), *ROOT.glob("projects/**/*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    unread = {
        f"{path.name}: {key}"
        for path in RECIPES
        for key in keys(yaml.safe_load(path.read_text(encoding="utf-8")))
        if key not in DETECTRON2_KEYS and f".{key}" not in code and f'"{key}"' not in code
    }
    assert not unread


def keys(node: dict[str, Any]) -> Iterator[str]:
    for name, value in node.items():
        yield name
        if isinstance(value, dict) and name not in FREE_NAMES:
            yield from keys(value)


def test_the_schedules_are_those_of_the_reference() -> None:
    """Batch, rate, steps and drops of facts recorded from its four training files."""
    expected = {
        "pretrain_objects365": (64, 2e-4, 340741, (312346,)),
        "image_det_ris": (32, 2e-4, 90000, (75000,)),
        "image_joint": (32, 2e-5, 30000, ()),
        "video_joint": (32, 1e-4, 90000, (75000,)),
    }
    for name, values in expected.items():
        for size in ("r50", "swin_l"):
            solver = load_config(CONFIGS / f"{name}_{size}.yaml").SOLVER
            found = (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, tuple(solver.STEPS))
            assert found == values
            assert (solver.WEIGHT_DECAY, solver.CLIP_GRADIENTS.CLIP_VALUE) == (0.05, 0.1)


def test_the_guide_lists_the_lite_recipes_as_they_are() -> None:
    guide = (ROOT / "docs/training.md").read_text(encoding="utf-8").splitlines()
    for name in (
        path.stem for kind in ("joint", "real") for path in CONFIGS.glob(f"lite/{kind}_*.yaml")
    ):
        cfg = load_config(CONFIGS / f"lite/{name}.yaml")
        rate = f"{cfg.SOLVER.BASE_LR:.0e}".replace("e-0", "e-")
        stage = cfg.MODEL.WEIGHTS.split("/")[-2] if cfg.MODEL.WEIGHTS else ""
        start = f"`lite/{stage}`" if stage else "ImageNet"
        numbers = f"| {cfg.SOLVER.IMS_PER_BATCH} | {rate} | {cfg.SOLVER.MAX_ITER:,} (cosine) |"
        (row,) = (line for line in guide if line.startswith(f"| `lite/{name}` |"))
        assert row.endswith(f" | {start} {numbers}")
