"""SLViT in the toolkit: trained, asked, evaluated and converted by its configuration alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from projects.slvit.checkpoint import OFFICIAL_KEYS
from projects.slvit.system import SYSTEM
from tests.projects.sentences import check_evaluation, check_images_and_clips, check_same_weights
from unified.checkpoint import write_weights
from unified.engine.config import load_config
from unified.engine.models import load
from unified.engine.system import Recording, system
from unified.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/lite/slvit_tiny.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.SLVIT.DIMS", "(8, 8, 8, 8)", "MODEL.SLVIT.ENHANCE_DIM", "16"),
    *("MODEL.SLVIT.DECODER_DIMS", "(32, 32)", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"),
    *("DATALOADER.NUM_WORKERS", "0", "SOLVER.EMA_DECAY", "0.0"),
]
STRETCHED = ["MODEL.SLVIT.INPUT_SIZE", "(64, 96)"]
RUN = [*SMALL, *STRETCHED]
pytestmark = pytest.mark.usefixtures("sets")


def test_it_trains_and_is_evaluated(trained: Path) -> None:
    check_evaluation(TINY, RUN, trained)


@pytest.mark.parametrize("size", [[], STRETCHED], ids=["padded", "stretched"])
def test_images_and_clips(trained: Path, size: list[str]) -> None:
    model = load(TINY, trained / "model_final.pth", "cpu", [*SMALL, *size])
    check_images_and_clips(model)


def test_official_weights_answer_the_same(trained: Path, tmp_path: Path) -> None:
    native = load(TINY, trained / "model_final.pth", "cpu", SMALL)
    official = OFFICIAL_KEYS.to_foreign(native.state_dict())
    dead = "backbone.block1.0.attn.spatial_gating_unit.fusion.project_v.0.weight"
    write_weights(tmp_path / "official.pth", {**official, dead: torch.ones(8, 8, 1)})
    loaded = load(TINY, tmp_path / "official.pth", "cpu", SMALL)
    check_same_weights(native, loaded)


def test_public_backbone_weights_are_loaded_by_their_names(tmp_path: Path) -> None:
    cfg = load_config(TINY, SMALL)
    public = {
        key: torch.full_like(value, 0.5)
        for key, value in SYSTEM.build(cfg).backbone.state_dict().items()
        if ".fusion." not in key
    }
    write_weights(tmp_path / "mscan.pth", {**public, "head.weight": torch.ones(3, 8)})
    options = [*SMALL, "MODEL.SLVIT.BACKBONE_WEIGHTS", str(tmp_path / "mscan.pth")]
    cfg = load_config(TINY, options)
    model = SYSTEM.build(cfg)
    assert SYSTEM.load_parts(model, cfg, ()) == ("backbone.", "text_encoder.bert.")
    own = model.backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in public.items())


def test_bad_values_get_one_clear_error(trained: Path) -> None:
    def error(*options: str) -> str:
        with pytest.raises((ConfigError, CheckpointError)) as caught:
            load(TINY, trained / "model_final.pth", "cpu", [*SMALL, *options])
        return str(caught.value)

    assert "['attn_sum', 'logit_mean']" in error("MODEL.SLVIT.SCORE", "sum")
    assert "two multiples of 32" in error("MODEL.SLVIT.INPUT_SIZE", "(100, 96)")
    assert "four numbers each" in error("MODEL.SLVIT.DEPTHS", "(1, 2, 2)")
    assert "unknown text encoder 'none'" in error("MODEL.SLVIT.TEXT_ENCODER.NAME", "none")


def test_decay_spares_what_is_called_norm() -> None:
    cfg = load_config(TINY, SMALL)
    assert SYSTEM.parameter_group("backbone.block1.0.norm1.weight", cfg).weight_decay == 0
    assert SYSTEM.parameter_group("backbone.block1.0.layer_scale_1", cfg).weight_decay == 0.01


def test_every_kind_of_recording_is_known() -> None:
    for path in sorted((ROOT / "tests/data/slvit").glob("*.npz")):
        fitting = [k for k, replay in SYSTEM.replays.items() if replay.fits(Recording(path, {}))]
        assert len(fitting) == 1, path
    path = ROOT / "tests/data/slvit/slvit_urce.npz"
    recording = Recording(path, dict(np.load(path)))
    results = system("SLViT").replays["slvit_urce"].run(recording)
    assert len(results) == 7 and all(result.passed for result in results)


def test_the_published_model_is_the_default() -> None:
    cfg = load_config(ROOT / "configs/slvit.yaml")
    assert cfg.MODEL.SLVIT.SCORE == "attn_sum" and cfg.MODEL.SLVIT.INPUT_SIZE == (480, 480)
    model = SYSTEM.build(cfg)
    assert sum(p.numel() for p in model.parameters()) == 157_864_194 - 2_082_624 - 393_728
