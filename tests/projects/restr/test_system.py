"""ReSTR in the toolkit: trained, asked, evaluated and converted by its configuration alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from projects.restr.checkpoint import restr_keys
from projects.restr.fusion import Fusion, PaperFusion
from projects.restr.model import Restr
from projects.restr.system import SYSTEM
from projects.restr.vision import VisualEncoder
from tests.projects.sentences import check_evaluation, check_images_and_clips, check_same_weights
from unified import ImagePredictor
from unified.checkpoint import read_weights, write_weights
from unified.engine.config import load_config
from unified.engine.models import load
from unified.engine.run import train
from unified.engine.system import Recording, system
from unified.errors import CheckpointError, ConfigError, InputError
from unified.modeling.backbones import build_backbone
from unified.structures import Target

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/lite/restr_tiny.yaml"
RECORDING = ROOT / "tests/data/restr/restr_fusion_small.npz"
SMALL = [
    *("MODEL.RESTR.BACKBONE_WEIGHTS", "", "MODEL.RESTR.IMAGE_SIZE", "64", "MODEL.DEVICE", "cpu"),
    *("MODEL.RESTR.WORD_DIM", "8", "MODEL.RESTR.DIM", "48", "MODEL.RESTR.LANGUAGE_BLOCKS", "1"),
    *("MODEL.RESTR.PATCH_SIZE", "16", "MODEL.RESTR.NUM_HEADS", "6"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"),
    *("INFERENCE.IMAGE_SHORT_SIDE", "64", "INFERENCE.MAX_SIZE", "64"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
]
TINY_VIT = [*SMALL, "MODEL.RESTR.BACKBONE", "vit"]
NO_FILE = ["MODEL.RESTR.VOCABULARY", ""]
RUN = SMALL
pytestmark = pytest.mark.usefixtures("sets")


def test_it_trains_and_is_evaluated(trained: Path) -> None:
    check_evaluation(TINY, SMALL, trained)


def test_weights_bring_their_words_to_images_and_clips(trained: Path) -> None:
    model = load(TINY, trained / "model_final.pth", "cpu", [*SMALL, *NO_FILE])
    assert "arrow" in model.text_encoder.table.vocabulary.words
    check_images_and_clips(model)


def test_released_snapshots_answer_the_same(trained: Path, tmp_path: Path) -> None:
    """Of a ViT, since other backbones have no place in the released code."""
    native = SYSTEM.build(load_config(TINY, TINY_VIT)).eval()
    released = restr_keys().to_foreign(native.state_dict())
    released["encoder_v.head.weight"] = torch.zeros(1000, 48)
    torch.save(released, tmp_path / "refcoco_400000.pth")
    loaded = load(TINY, tmp_path / "refcoco_400000.pth", "cpu", TINY_VIT)
    check_same_weights(native, loaded)
    with pytest.raises(CheckpointError, match=r"do not hold it, the model has none"):
        load(TINY, tmp_path / "refcoco_400000.pth", "cpu", [*TINY_VIT, *NO_FILE])


def test_parts_come_from_where_the_configuration_says(tmp_path: Path) -> None:
    vit = VisualEncoder(image_size=48, patch_size=16, dim=48, num_heads=6).vit
    write_weights(tmp_path / "vit.safetensors", vit.state_dict())
    vectors = np.random.default_rng(0).standard_normal((31, 8)).astype(np.float32)
    np.save(tmp_path / "glove.npy", vectors)
    options = [*TINY_VIT, "MODEL.RESTR.BACKBONE_WEIGHTS", str(tmp_path / "vit.safetensors")]
    options += ["MODEL.RESTR.WORD_VECTORS", str(tmp_path / "glove.npy")]
    cfg = load_config(TINY, [*options, *NO_FILE, "MODEL.RESTR.VOCABULARY_SIZE", "31"])
    model = SYSTEM.build(cfg)
    assert SYSTEM.load_parts(model, cfg, {}) == ("text_encoder.table.words", "backbone.")
    assert torch.equal(model.backbone.vit.norm.weight, vit.norm.weight)
    assert model.backbone.vit.pos_embed.shape[1] == 17
    assert np.array_equal(model.text_encoder.table.table.weight[1:].detach(), vectors[1:])


def test_variants_are_named_configurations() -> None:
    def build(name: str) -> Restr:
        return SYSTEM.build(load_config(ROOT / f"configs/{name}.yaml", [*TINY_VIT, *NO_FILE]))

    code, paper, shared = build("restr"), build("restr_paper"), build("restr_shared")
    assert type(paper.fusion) is PaperFusion and type(code.fusion) is Fusion
    assert (code.patch_label, paper.patch_label) == ("any", "mean")
    blocks = [(len(model.fusion.joint), model.fusion.repeats) for model in (code, paper, shared)]
    assert blocks == [(2, 1), (2, 1), (1, 4)]


def test_the_visual_encoder_learns_slower() -> None:
    cfg = load_config(ROOT / "configs/restr.yaml")
    rates = {
        name: SYSTEM.parameter_group(name, cfg)
        for name in ("backbone.vit.norm.weight", "fusion.seed", "text_encoder.norm.bias")
    }
    assert [group.lr for group in rates.values()] == pytest.approx([1e-6, 1e-5, 1e-5])
    assert {group.weight_decay for group in rates.values()} == {5e-4}


def test_what_makes_the_classifier_may_learn_slower() -> None:
    cfg = load_config(ROOT / "configs/restr.yaml", ["MODEL.RESTR.CLASSIFIER_LR_MULTIPLIER", "0.5"])
    slower = ("fusion.seed", "fusion.classifier.0.norm1.weight", "fusion.norm.bias")
    others = ("fusion.seed_matrix", "fusion.joint.0.norm1.weight", "text_encoder.norm.bias")
    for names, rate in ((slower, 5e-6), (others, 1e-5)):
        for name in names:
            assert SYSTEM.parameter_group(name, cfg).lr == pytest.approx(rate), name


@pytest.mark.parametrize("backbone", ["vit", "efficientnet_lite0"])
def test_smaller_patches_come_back_to_pixels(sets: Path, backbone: str) -> None:
    options = ["MODEL.RESTR.BACKBONE", backbone, "MODEL.RESTR.PATCH_SIZE", "8"]
    model = SYSTEM.build(load_config(TINY, [*SMALL, *options]))
    features = model.encode_image(model.preprocess([torch.zeros(3, 64, 64)]))
    assert features.levels[0].shape[-2:] == (8, 8)
    answer = model.answer(features, [model.encode_text(["the red circle"])])
    assert answer.pixel_logits.shape[-2:] == (64, 64)


def test_all_that_learns_takes_part(sets: Path) -> None:
    """Else several processes could not average their gradients."""
    model = SYSTEM.build(load_config(TINY, [*SMALL, "MODEL.RESTR.PATCH_SIZE", "8"])).train()
    features = model.encode_image(model.preprocess([torch.rand(3, 64, 64) * 255]))
    box, mask = torch.full((1, 4), 0.5), torch.ones(1, 64, 64, dtype=torch.bool)
    target = Target(torch.zeros(1, dtype=torch.int64), box, mask)
    losses = model.losses(features, [model.encode_text(["the red circle"])], [target])
    sum(losses.values()).backward()
    idle = [name for name, x in model.named_parameters() if x.requires_grad and x.grad is None]
    assert idle == []


def test_the_backbone_of_imagenet_is_loaded_as_far_as_it_is_needed(tmp_path: Path) -> None:
    whole = build_backbone("efficientnet_lite0")
    write_weights(tmp_path / "net.safetensors", whole.state_dict())
    options = ["MODEL.RESTR.PATCH_SIZE", "8"]
    options += ["MODEL.RESTR.BACKBONE_WEIGHTS", str(tmp_path / "net.safetensors")]
    cfg = load_config(TINY, [*SMALL, *options, *NO_FILE])
    model = SYSTEM.build(cfg)
    SYSTEM.load_parts(model, cfg, {})
    kept = model.backbone.net.state_dict()
    assert not any(key.startswith(("res4.", "res5.")) for key in kept)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in kept.items())


def test_bad_values_get_one_clear_error(trained: Path, tmp_path: Path) -> None:
    def error(*options: str) -> str:
        with pytest.raises((ConfigError, CheckpointError)) as caught:
            load(TINY, trained / "model_final.pth", "cpu", [*SMALL, *options])
        return str(caught.value)

    assert "choose one of ['logit', 'sigmoid_scaled']" in error("MODEL.RESTR.GATE", "soft")
    assert "choose one of ['any', 'mean']" in error("MODEL.RESTR.PATCH_LABEL", "all")
    assert "expected a share between 0 and 1" in error("MODEL.RESTR.PRIOR", "0.0")
    for given in ("[0.1]", "[0.1, 0.0]"):
        assert "expected two numbers above 0" in error("MODEL.RESTR.INITIAL_STD", given)
    assert "expected a multiple of PATCH_SIZE, which is 16" in error("MODEL.RESTR.IMAGE_SIZE", "70")
    small = ("MODEL.RESTR.BACKBONE", "efficientnet_lite0", "MODEL.RESTR.PATCH_SIZE", "2")
    assert "no map with one cell for 2 x 2 pixels" in error(*small)
    assert "cannot be read" in error("MODEL.RESTR.VOCABULARY", str(tmp_path / "none.txt"))
    assert "words, expected 12112" in error("MODEL.RESTR.VOCABULARY_SIZE", "12112")
    other = tmp_path / "other.txt"
    other.write_text("<pad>\n<go>\n<eos>\n<unk>\nthe\nsofa\n")
    assert "know other words" in error("MODEL.RESTR.VOCABULARY", str(other))


def test_training_without_a_vocabulary_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"python tools/data\.py vocabulary"):
        train(load_config(TINY, [*SMALL, *NO_FILE, "OUTPUT_DIR", str(tmp_path)]), resume=False)


def test_its_recordings_are_told_apart_and_replayed() -> None:
    replays = system("ReSTR").replays
    recording = Recording(RECORDING, dict(np.load(RECORDING)))
    assert [kind for kind, replay in replays.items() if replay.fits(recording)] == ["fusion"]
    assert all(result.passed for result in replays["fusion"].run(recording))


def test_the_published_schedule() -> None:
    cfg = load_config(ROOT / "configs/restr.yaml")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR_END, cfg.SOLVER.WEIGHT_DECAY) == (1e-5, 0, 5e-4)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER) == (40_000, 400_000)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.POLY_LR_POWER) == (8, 0.9)
    assert cfg.INPUT.MAX_SIZE_TRAIN == cfg.INFERENCE.MAX_SIZE == cfg.MODEL.RESTR.IMAGE_SIZE == 480


def test_larger_pictures_than_positions_are_refused(trained: Path) -> None:
    options = [*SMALL, *NO_FILE, "INFERENCE.IMAGE_SHORT_SIDE", "65", "INFERENCE.MAX_SIZE", "80"]
    predictor = ImagePredictor(load(TINY, trained / "model_final.pth", "cpu", options))
    with pytest.raises(InputError, match="a side of 80 pixels, this model has positions for 64"):
        predictor.set_image(np.zeros((65, 80, 3), np.uint8))


def test_a_run_keeps_its_words(trained: Path) -> None:
    weights = read_weights(trained / "model_final.pth")
    assert b"arrow" in bytes(weights["text_encoder.table.words"].tolist())
