"""The recipes of UniRef: their sets, their schedules and their chains."""

from __future__ import annotations

from pathlib import Path

import pytest

from projects.uniref.lite.data.writing import SET_SPLITS
from unified.engine.config import load_config
from unified.engine.stages import read_stages

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
RUNS = ("stages", "fusions")  # lists of runs, each with a configuration
RECIPES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if not path.name.startswith(RUNS)]


def test_recipes_name_sets_of_the_made_recipe_by_their_split() -> None:
    """Those that are in no table: of ``datasets/prepare_lite.py`` and of docs/finetune.md."""
    seen = set()
    for path in RECIPES:
        sets = load_config(path).DATASETS
        for split, names in (("train", sets.TRAIN), ("test", sets.TEST)):
            lite = [name for name in names if name.startswith("lite_")]
            mine = [name for name in names if name.startswith("my_")]
            assert {SET_SPLITS[name] for name in lite} <= {split}
            assert all(name.endswith("_val") == (split == "test") for name in mine)
            seen.update(lite, mine)
    assert len(seen) > 5


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
    names = [
        path.stem for kind in ("joint", "real") for path in CONFIGS.glob(f"lite/{kind}_*.yaml")
    ]
    assert {"joint_tiny", "real_close"} < set(names)
    for name in names:
        cfg = load_config(CONFIGS / f"lite/{name}.yaml")
        rate = f"{cfg.SOLVER.BASE_LR:.0e}".replace("e-0", "e-")
        stage = cfg.MODEL.WEIGHTS.split("/")[-2] if cfg.MODEL.WEIGHTS else ""
        start = f"`lite/{stage}`" if stage else "ImageNet"
        numbers = f"| {cfg.SOLVER.IMS_PER_BATCH} | {rate} | {cfg.SOLVER.MAX_ITER:,} (cosine) |"
        (row,) = (line for line in guide if line.startswith(f"| `lite/{name}` |"))
        assert row.endswith(f" | {start} {numbers}")


@pytest.mark.parametrize("name", ["stages_r50", "stages_swin_l"])
def test_the_published_chains_are_complete(name: str) -> None:
    stages = read_stages(CONFIGS / f"{name}.yaml")
    size = name.removeprefix("stages_")
    assert [stage.config.name for stage in stages] == [
        f"pretrain_objects365_{size}.yaml",
        f"image_det_ris_{size}.yaml",
        f"image_joint_{size}.yaml",
        f"video_joint_{size}.yaml",
    ]


def test_the_joint_run_on_made_sets_goes_on_in_larger_pictures() -> None:
    first, second = read_stages(CONFIGS / "stages_joint_tiny.yaml")
    assert (first.config.name, second.config.name) == ("joint_tiny.yaml", "joint_tiny_high.yaml")
