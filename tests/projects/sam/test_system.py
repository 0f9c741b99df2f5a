"""UniFusion in MobileSAM as a system: built, trained, asked and converted by its configuration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.sam.system import SYSTEM
from tests.projects.sam.tiny import SIDE, make_model
from unified import ImagePredictor, VideoPredictor
from unified.checkpoint import FOREIGN_PREFIX
from unified.data.synthetic.releases import RELEASES
from unified.engine.config import load_config
from unified.engine.inference import settings_of
from unified.engine.models import attach_chooser, load, models
from unified.engine.profiles import count_multiply_adds
from unified.engine.run import train
from unified.engine.system import find_systems
from unified.errors import ConfigError
from unified.structures import Prompt

ROOT = Path(__file__).parents[3]
BASE = ROOT / "configs/base_sam.yaml"
MOBILE = ROOT / "configs/lite/sam_mobile.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.SAM.WEIGHTS", "", "MODEL.SAM.IMAGE_SIZE", "64"),
    *("MODEL.SAM.NAME", "mobile", "MODEL.SAM.TEXT_ENCODER.NAME", "minilm"),
    *("MODEL.SAM.MASK_ENCODER.WIDTH", "8", "MODEL.SAM.FUSION.HEAD_DIM", "16"),
    *("MODEL.SAM.TEXT_ENCODER.WEIGHTS", "", "MODEL.SAM.CACHE_GIGABYTES", "0.01"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"),
    *("INFERENCE.IMAGE_SHORT_SIDE", "64", "INFERENCE.VIDEO_SHORT_SIDE", "64"),
    *("INFERENCE.MAX_SIZE", "64", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"),
    *("DATALOADER.NUM_WORKERS", "0", "DATASETS.TRAIN", "('refcoco-unc-train',)"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, with the cache of embeddings in it."""
    folder = tmp_path_factory.mktemp("run")
    RELEASES["refcoco"](folder / "sets", 3, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder / "sets"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        train(load_config(BASE, [*SMALL, "OUTPUT_DIR", str(folder)]), resume=False)
    return folder


def test_it_trains_and_answers_about_images_and_clips(trained: Path) -> None:
    assert list((trained / "cache/unified/embeddings").glob("*.safetensors"))
    model = load(BASE, trained / "model_final.pth", "cpu", SMALL)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    mask = np.zeros((50, 70), bool)
    mask[10:30, 20:50] = True
    predictor = ImagePredictor(model)
    predictor.set_image(image)
    found, score = predictor.predict(Prompt(text="the red circle"))
    assert found.shape == (50, 70) and 0 <= score <= 1
    prompts = {0: {1: Prompt(text="the red circle"), 2: Prompt(mask=mask)}}
    results = list(VideoPredictor(model).run([image, image], prompts))
    assert [sorted(result.scores) for result in results] == [[1, 2], [1, 2]]
    assert results[0].areas[2] == mask.sum()


def test_checkpoints_of_the_reference_fit_with_nothing_missing() -> None:
    """Against the keys and shapes of the reference's own model, on no memory."""
    manifest = json.loads((ROOT / "tests/data/sam/manifest_sam.json").read_text())
    official = {key: torch.empty(shape, device="meta") for key, shape in manifest.items()}
    table = SYSTEM.table_of(official)
    assert table is not None and table.is_foreign(official)
    native, report = table.to_native(official)
    with torch.device("meta"):
        own = SYSTEM.build(load_config(ROOT / "configs/sam_video.yaml")).state_dict()
    assert not report.unexpected
    assert not any(key.startswith(FOREIGN_PREFIX) for key in native)
    assert {key: value.shape for key, value in native.items()} == {
        key: value.shape for key, value in own.items()
    }
    assert table.to_foreign(native).keys() == official.keys()


def test_files_of_mobile_sam_go_there_and_back(trained: Path) -> None:
    model = SYSTEM.build(load_config(BASE, SMALL))
    table = SYSTEM.table_of(model.state_dict())
    assert table is not None
    official = table.to_foreign(model.state_dict())
    assert "model.sam.image_encoder.layers.2.blocks.5.attn.attention_biases" in official
    assert table.to_native(official)[0].keys() == model.state_dict().keys()


def test_rates_and_frozen_parts_are_those_of_the_reference() -> None:
    cfg = load_config(ROOT / "configs/sam_image.yaml")
    rates = [
        SYSTEM.parameter_group(name, cfg).lr
        for name in ("text_encoder.bert.x", "text_encoder.project.fc.bias", "fusion.norm_key.bias")
    ]
    assert rates == [1e-5, 2e-4, 2e-4]
    video = load_config(ROOT / "configs/sam_video.yaml")
    assert (video.SOLVER.BASE_LR, video.MODEL.SAM.LOSS.BCE, video.MODEL.SAM.LOSS.DICE) == (
        1e-4,
        2.0,
        0.5,
    )
    with torch.device("meta"):
        model = SYSTEM.build(video)
    learning = {n.rpartition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert not any(
        name.startswith(("text_encoder.bert", "sam.vision", "sam.p")) for name in learning
    )
    assert {"text_encoder.project.fc", "fusion.norm_key", "sam.mask_decoder.iou_token"} <= learning


def test_memory_is_renewed_every_third_frame_and_the_box_of_the_sam_alone_every_frame() -> None:
    found = [
        settings_of(load_config(ROOT / "configs/lite" / name)).video.memory_interval
        for name in ("sam_mobile.yaml", "sam_box.yaml")
    ]
    assert found == [3, 1]


def test_its_models_are_those_that_follow_points() -> None:
    assert set(SYSTEM.models) <= set(models(points=True)) < set(models())


def test_without_the_model_that_guides_it_sentences_get_its_own_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    others = {name: found for name, found in find_systems().items() if name != "UniRef"}
    monkeypatch.setattr("unified.engine.models.find_systems", lambda: others)
    model = make_model()
    attach_chooser(model, load_config(MOBILE), None)
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        "INFERENCE.CHOOSER: the model uniref-lite is not installed"
    ]
    predictor = ImagePredictor(model, short_side=SIDE, max_size=SIDE, score_threshold=0.0)
    predictor.set_image(np.full((SIDE, SIDE, 3), 90, np.uint8))
    found, score = predictor.predict(Prompt(text="the red man"))
    assert found.shape == (SIDE, SIDE) and 0 < score <= 1


def test_bad_values_get_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="choose one of mobile, sam2_tiny"):
        SYSTEM.build(load_config(MOBILE, ["MODEL.SAM.NAME", "vit_g"]))
    with pytest.raises(ConfigError, match="IMAGE_SIZE is 100: expected a multiple of 16"):
        SYSTEM.build(load_config(MOBILE, ["MODEL.SAM.IMAGE_SIZE", "100"]))


def test_multiply_adds_are_counted() -> None:
    model = SYSTEM.build(load_config(MOBILE, SMALL)).eval()
    small, large = (count_multiply_adds(model, torch.zeros(num, 3, 64, 64)) for num in (1, 2))
    assert 0 < small < large
