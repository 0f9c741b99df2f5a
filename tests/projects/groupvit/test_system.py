"""GroupViT in the toolkit: trained, asked, evaluated and converted by its configuration alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from projects.groupvit.checkpoint import OFFICIAL_KEYS, TRANSFORMERS_KEYS
from projects.groupvit.system import SYSTEM
from tests.projects.sentences import check_evaluation
from unified import VideoPredictor
from unified.checkpoint import write_weights
from unified.data.synthetic.releases import RELEASES
from unified.data.synthetic.world import KINDS
from unified.engine.config import load_config
from unified.engine.models import load
from unified.engine.run import train
from unified.engine.system import Recording, system
from unified.errors import CheckpointError, ConfigError, InputError
from unified.inference.classes import ClassPredictor
from unified.mask_files import read_label_map
from unified.structures import Prompt

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/lite/groupvit_tiny.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.GROUPVIT.DIM", "24", "MODEL.GROUPVIT.WORD_DIM", "16"),
    *("MODEL.GROUPVIT.PROJECTOR_DIM", "16", "MODEL.GROUPVIT.TEXT_LAYERS", "1"),
    *("MODEL.GROUPVIT.VOCABULARY", "refcoco.txt"),
    *("DATASETS.TRAIN", "('refcoco-unc-train',)", "DATASETS.TEST", "('refcoco-unc-val',)"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
]
NO_FILE = ["MODEL.GROUPVIT.VOCABULARY", ""]
RUN = [*SMALL, "MODEL.GROUPVIT.NUM_LABELS", "2"]  # both losses
pytestmark = pytest.mark.usefixtures("sets")


def infer_image(arguments: list[str]) -> int:
    spec = importlib.util.spec_from_file_location("infer", ROOT / "tools/infer_image.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(arguments)


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)


def test_it_trains_and_is_evaluated(trained: Path) -> None:
    check_evaluation(TINY, SMALL, trained)


def test_it_learns_from_captions(sets: Path, tmp_path: Path) -> None:
    RELEASES["coco_captions"](sets, 3, 0)
    captions = ["DATASETS.TRAIN", "('coco-captions-train',)", "DATASETS.TEST", "()"]
    train(load_config(TINY, [*SMALL, *captions, "OUTPUT_DIR", str(tmp_path)]), resume=False)
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["loss_contrast"] > 0 and last["loss_labels"] > 0
    assert (tmp_path / "model_final.pth").is_file()


def test_clips_and_class_names(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load(TINY, trained / "model_final.pth", "cpu", [*SMALL, *NO_FILE])
    results = VideoPredictor(model).run(
        [picture(), picture()], {0: {1: Prompt(text="the red circle"), 2: Prompt(text="a star")}}
    )
    assert [sorted(result.scores) for result in results] == [[1, 2], [1, 2]]
    known = [word for word in KINDS if word in model.text_encoder.token_embedding.vocabulary.words]
    predictor = ClassPredictor(model, known[:2])
    predictor.set_image(picture())
    assert predictor.label_map().shape == (50, 70) and predictor.label_map().max() <= 2
    assert "knows no word" not in caplog.text
    ClassPredictor(model, [*known, "sofa"])
    assert "knows no word of 'sofa'" in caplog.text
    with pytest.raises(InputError, match="one or more class names"):
        ClassPredictor(model, [])


def test_a_map_of_classes_is_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    out = tmp_path / "out"
    arguments = ["--input", str(tmp_path / "a.png"), "--output", str(out)]
    model = ["--config-file", str(TINY), "--weights", str(trained / "model_final.pth")]
    opts = ["--device", "cpu", "--opts", *SMALL, *NO_FILE, "INFERENCE.MIRROR", "True"]
    opts += ["MODEL.GROUPVIT.BACKGROUND", "1.0"]
    assert infer_image([*arguments, *model, "--classes", "circle, star, red heart", *opts]) == 0
    labels = read_label_map(out / "masks/a.png")
    assert labels.min() >= 1 and labels.max() <= 3  # without a limit each pixel is of a class
    content = json.loads((out / "results.json").read_text())
    assert content["inference"]["mirror"] is False
    (row,) = content["images"]
    assert sum(entry["area"] for entry in row["objects"]) == labels.size
    assert (out / "overlay/a.jpg").is_file()
    assert infer_image([*arguments, *model, "--classes", "circle,,star", *opts]) == 2
    arguments[-1] = str(tmp_path / "none")
    assert infer_image([*arguments, *model, "--detect", *opts]) == 2
    assert "this model cannot detect" in capsys.readouterr().err
    cut = ["--classes", "circle", "--threshold", "0.5"]
    assert infer_image([*arguments, *model, *cut, *opts]) == 2
    assert "--threshold is about objects" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("table", [OFFICIAL_KEYS, TRANSFORMERS_KEYS], ids=["official", "hf"])
def test_released_weights_answer_the_same(trained: Path, tmp_path: Path, table: object) -> None:
    native = load(TINY, trained / "model_final.pth", "cpu", SMALL)
    words = "text_encoder.token_embedding."
    given = {k: v for k, v in native.state_dict().items() if k != f"{words}words"}
    write_weights(tmp_path / "released.pth", table.to_foreign(given))
    loaded = load(TINY, tmp_path / "released.pth", "cpu", SMALL)
    for key, value in given.items():
        if key != "multi_label_logit_scale":
            assert torch.equal(value, loaded.state_dict()[key]), key
    with pytest.raises(CheckpointError, match="do not hold it, the model has none"):
        load(TINY, tmp_path / "released.pth", "cpu", [*SMALL, *NO_FILE])


def test_bad_values_get_one_clear_error(trained: Path) -> None:
    def error(*options: str) -> str:
        with pytest.raises((ConfigError, CheckpointError)) as caught:
            load(TINY, trained / "model_final.pth", "cpu", [*SMALL, *options])
        return str(caught.value)

    assert "choose one of ['content', 'nltk', 'open_class']" in error(
        "MODEL.GROUPVIT.TAGGER", "spacy"
    )
    assert "'plain', 'simple', 'subset']" in error("MODEL.GROUPVIT.TEMPLATES", "all")
    assert "only the last 0" in error("MODEL.GROUPVIT.GROUP_TOKENS", "(0, 8)")
    assert "give one number for each" in error("MODEL.GROUPVIT.OUTPUT_GROUPS", "(8, 8)")


def test_decay_spares_vectors() -> None:
    cfg = load_config(TINY, SMALL)
    model = SYSTEM.build(load_config(TINY, [*SMALL, *NO_FILE]))
    for name, parameter in model.named_parameters():
        spared = SYSTEM.parameter_group(name, cfg).weight_decay == 0
        assert spared == (parameter.dim() <= 1), name


def test_every_kind_of_recording_is_known() -> None:
    for path in sorted((ROOT / "tests/data/groupvit").glob("*.npz")):
        fitting = [k for k, replay in SYSTEM.replays.items() if replay.fits(Recording(path, {}))]
        assert len(fitting) == 1, path
    path = ROOT / "tests/data/groupvit/groupvit_block.npz"
    recording = Recording(path, dict(np.load(path)))
    results = system("GroupViT").replays["groupvit_block"].run(recording)
    assert results and all(result.passed for result in results)


def test_the_published_model_is_the_default(caplog: pytest.LogCaptureFixture) -> None:
    model = SYSTEM.build(load_config(ROOT / "configs/groupvit.yaml"))
    assert sum(p.numel() for p in model.parameters()) == 55_726_610
    if "cannot read sentences yet" in caplog.text:
        with pytest.raises(ConfigError, match="has no vocabulary"):
            model.encode_text(["a cat"])
