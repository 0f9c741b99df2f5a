"""A tiny model and three made sets, for tests that really train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from unified.data.synthetic.releases import RELEASES

CONFIG = Path(__file__).parents[3] / "configs/lite/joint_tiny.yaml"
# fmt: off
OPTIONS = [
    "MODEL.DEVICE", "cpu",
    "MODEL.UNIREF.BACKBONE_WEIGHTS", "", "MODEL.UNIREF.TEXT_ENCODER.NAME", "",
    "MODEL.UNIREF.FREEZE_AT", "5", "MODEL.UNIREF.HIDDEN_DIM", "64",
    "MODEL.UNIREF.NUM_HEADS", "4", "MODEL.UNIREF.FEEDFORWARD_DIM", "64",
    "MODEL.UNIREF.ENCODER_LAYERS", "1", "MODEL.UNIREF.DECODER_LAYERS", "2",
    "MODEL.UNIREF.NUM_QUERIES", "10", "MODEL.UNIREF.MASK_ENCODER.WIDTH", "8",
    "DATASETS.TRAIN", "('fss-1000-train', 'ytbvos19-train', 'coco_2017_train')",
    "DATASETS.TEST", "()",
    "DATALOADER.NUM_WORKERS", "0",
    "INPUT.MIN_SIZE_TRAIN", "(48, 64)", "INPUT.MAX_SIZE_TRAIN", "96",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "1000",
    "SOLVER.BASE_LR", "1e-3", "TEST.EVAL_PERIOD", "0",
]
# fmt: on


@pytest.fixture(scope="session")
def training_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sets; tests must not change it."""
    root = tmp_path_factory.mktemp("training_sets")
    for release in ("fss1000", "ytbvos19", "coco"):
        RELEASES[release](root, 4, 0)
    return root


@pytest.fixture
def options(
    training_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Options for ``CONFIG``; the output goes to a folder of the test."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(training_root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield [*OPTIONS, "OUTPUT_DIR", str(tmp_path / "out")]
