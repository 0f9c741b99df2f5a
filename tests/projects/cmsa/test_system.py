"""CMSA in the toolkit: trained, asked, evaluated and converted by its configuration alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from projects.cmsa.checkpoint import CMSA_KEYS
from projects.cmsa.deeplab import build_deeplab
from projects.cmsa.gates import GatedFusion, PaperGatedFusion
from projects.cmsa.system import SYSTEM
from tests.projects.sentences import check_evaluation, check_images_and_clips, check_same_weights
from unified.checkpoint import read_weights
from unified.engine.config import load_config
from unified.engine.models import load
from unified.engine.run import train
from unified.engine.system import Recording, system
from unified.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/lite/cmsa_tiny.yaml"
RECORDING = ROOT / "tests/data/cmsa/cmsa_derived_small.npz"
SMALL = [
    *("MODEL.CMSA.BACKBONE_WEIGHTS", "", "MODEL.CMSA.IMAGE_SIZE", "64", "MODEL.DEVICE", "cpu"),
    *("MODEL.CMSA.WORD_DIM", "8", "MODEL.CMSA.FUSION_DIM", "8", "MODEL.CMSA.VISUAL_DIM", "8"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"),
    *("INFERENCE.IMAGE_SHORT_SIDE", "64", "INFERENCE.MAX_SIZE", "64"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
]
NO_FILE = ["MODEL.CMSA.VOCABULARY", ""]
RUN = SMALL
pytestmark = pytest.mark.usefixtures("sets")


def test_it_trains_and_is_evaluated(trained: Path) -> None:
    check_evaluation(TINY, SMALL, trained)


def test_weights_bring_their_words_to_images_and_clips(trained: Path) -> None:
    model = load(TINY, trained / "model_final.pth", "cpu", [*SMALL, *NO_FILE])
    assert "arrow" in model.text_encoder.vocabulary.words
    check_images_and_clips(model)


def test_released_variables_answer_the_same(trained: Path, tmp_path: Path) -> None:
    """Of the trunk of DeepLab, since other backbones have no place in the released graph."""
    options = [*SMALL, "MODEL.CMSA.BACKBONE", "deeplab_resnet101"]
    native = SYSTEM.build(load_config(TINY, options)).eval()
    released = CMSA_KEYS.to_foreign(native.state_dict())
    np.savez(tmp_path / "cmsa.npz", **{key: value.numpy() for key, value in released.items()})
    loaded = load(TINY, tmp_path / "cmsa.npz", "cpu", options)
    check_same_weights(native, loaded)
    with pytest.raises(CheckpointError, match=r"do not hold it, the model has none"):
        load(TINY, tmp_path / "cmsa.npz", "cpu", [*options, *NO_FILE])


def test_the_trunk_alone_is_loaded_by_its_released_names(tmp_path: Path) -> None:
    trunk = {f"backbone.{key}": value for key, value in build_deeplab().state_dict().items()}
    released = CMSA_KEYS.to_foreign(trunk)
    np.savez(tmp_path / "init.npz", **{key: value.numpy() for key, value in released.items()})
    options = ["MODEL.CMSA.BACKBONE", "deeplab_resnet101", *SMALL, *NO_FILE]
    cfg = load_config(TINY, [*options, "MODEL.CMSA.BACKBONE_WEIGHTS", str(tmp_path / "init.npz")])
    model = SYSTEM.build(cfg)
    assert SYSTEM.load_parts(model, cfg, {}) == ("text_encoder.words", "backbone.")
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, trunk[f"backbone.{key}"]), key


def test_the_printed_gate_is_a_configuration() -> None:
    def gate(name: str) -> type:
        options = ["MODEL.CMSA.BACKBONE", "efficientnet_lite0", *SMALL, *NO_FILE]
        return type(SYSTEM.build(load_config(ROOT / f"configs/{name}.yaml", options)).fusion)

    assert (gate("cmsa"), gate("cmsa_paper")) == (GatedFusion, PaperGatedFusion)


def test_bad_values_get_one_clear_error(trained: Path, tmp_path: Path) -> None:
    def error(*options: str) -> str:
        with pytest.raises((ConfigError, CheckpointError)) as caught:
            load(TINY, trained / "model_final.pth", "cpu", [*SMALL, *options])
        return str(caught.value)

    assert "choose one of ['code', 'paper']" in error("MODEL.CMSA.GATE", "soft")
    assert "cannot be read" in error("MODEL.CMSA.VOCABULARY", str(tmp_path / "none.txt"))
    assert "words, expected 12112" in error("MODEL.CMSA.VOCABULARY_SIZE", "12112")
    other = tmp_path / "other.txt"
    other.write_text("<pad>\n<go>\n<eos>\n<unk>\nthe\nsofa\n")
    assert "know other words" in error("MODEL.CMSA.VOCABULARY", str(other))


def test_training_without_a_vocabulary_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"python tools/data\.py vocabulary"):
        train(load_config(TINY, [*SMALL, *NO_FILE, "OUTPUT_DIR", str(tmp_path)]), resume=False)


def test_its_recordings_are_told_apart_and_replayed() -> None:
    replay = system("CMSA").replays["graph"]
    recording = Recording(RECORDING, dict(np.load(RECORDING)))
    assert replay.fits(recording)
    assert not replay.fits(Recording(RECORDING, {"zv": np.zeros(3)}))
    results = replay.run(recording)
    assert results and all(result.passed for result in results)


def test_the_published_schedule() -> None:
    cfg = load_config(ROOT / "configs/cmsa.yaml")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR_END) == (2.5e-4, 1e-5)
    assert (cfg.SOLVER.POLY_LR_POWER, cfg.SOLVER.MAX_ITER) == (0.9, 800_000)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.WEIGHT_DECAY) == (1, 0.0)
    assert cfg.INPUT.MAX_SIZE_TRAIN == cfg.INFERENCE.MAX_SIZE == cfg.MODEL.CMSA.IMAGE_SIZE == 320


def test_the_backbone_may_learn_slower() -> None:
    cfg = load_config(ROOT / "configs/cmsa.yaml", ["MODEL.CMSA.BACKBONE_LR_MULTIPLIER", "0.1"])
    names = ("backbone.res5.0.conv1.weight", "fusion.shares.0", "text_encoder.table.weight")
    rates = [SYSTEM.parameter_group(name, cfg).lr for name in names]
    assert rates == pytest.approx([2.5e-5, 2.5e-4, 2.5e-4])


def test_a_run_keeps_its_words(trained: Path) -> None:
    weights = read_weights(trained / "model_final.pth")
    assert b"arrow" in bytes(weights["text_encoder.words"].tolist())
