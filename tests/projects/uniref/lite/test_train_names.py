"""The command that trains names, for a tiny model whose backbone is not pretrained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import unified
from projects.uniref.lite import train_names
from projects.uniref.lite.train_names import main
from projects.uniref.model import UniRef
from unified import ImagePredictor
from unified.checkpoint import read_weights, write_weights
from unified.data.catalog import load_records
from unified.data.synthetic.releases import RELEASES
from unified.errors import CheckpointError
from unified.inference.image_io import read_image
from unified.structures import Prompt

ROOT = Path(__file__).parents[4]
SET = "coco_2017_train"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A config with as many names as the set has; weights in half, with a head without names."""
    RELEASES["coco"](tmp_path, 12, 0)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = {a["category_name"] for record in load_records(SET) for a in record["annotations"]}
    tiny = {
        "_BASE_": str(ROOT / "configs/lite/uniref_lite.yaml"),
        "MODEL": {
            "DEVICE": "cpu",
            "UNIREF": {
                "BACKBONE_WEIGHTS": "",
                "TEXT_ENCODER": {"WEIGHTS": ""},
                "HIDDEN_DIM": 64,
                "ENCODER_LAYERS": 1,
                "DECODER_LAYERS": 2,
                "LITE": {"NAMES": {"NUM": len(names)}},
            },
        },
        "INFERENCE": {"IMAGE_SHORT_SIDE": 64, "MAX_SIZE": 96},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    state = unified.load(tmp_path / "tiny.yaml", device="cpu").state_dict()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    write_weights(tmp_path / "a.safetensors", half)
    return tmp_path / "tiny.yaml", tmp_path / "a.safetensors"


def command(files: tuple[Path, Path], *more: str) -> list[str]:
    start = ["--config-file", str(files[0]), "--weights", str(files[1]), "--device", "cpu"]
    sizes = ["--sizes", "48", "64", "--pictures", "24"]
    return [*start, *sizes, "--output", str(files[1].with_name("b.safetensors")), *more]


def test_names_are_learnt_and_the_rest_stays(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(files, "--sets", SET, "--val", SET)) == 0
    printed = capsys.readouterr().out
    assert f"objects of {SET} are called by their name" in printed
    before = read_weights(files[1])
    after = read_weights(files[1].with_name("b.safetensors"))
    assert {key: value.dtype for key, value in after.items()} == {
        key: value.dtype for key, value in before.items()
    }
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"name_head.names", "name_head.embed.4.weight"} < changed
    assert all(key.startswith("name_head.") for key in changed)
    assert not any(key.startswith("name_head.backbone.") for key in changed)

    model = unified.load(files[0], weights=files[1].with_name("b.safetensors"), device="cpu")
    record = load_records(SET)[0]
    predictor = ImagePredictor(model, short_side=64, max_size=96, mirror=False)
    predictor.set_image(read_image(record["file_name"]))
    prompt = Prompt(text=f"the {record['annotations'][0]['category_name']}")
    with_names = predictor.predict(prompt)[1]
    model.name_head.names.zero_()
    without = ImagePredictor(model, short_side=64, max_size=96, mirror=False)
    without.set_image(read_image(record["file_name"]))
    assert abs(with_names - without.predict(prompt)[1]) > 1e-3


def test_wrong_number_of_names_is_refused_before_any_work(
    files: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_names, "describe_objects", lambda *_: pytest.fail("work was done"))
    files[0].write_text(files[0].read_text().replace("NUM: ", "NUM: 1"))
    assert main(command(files, "--sets", SET)) == 2
    assert "set it to" in capsys.readouterr().err
    assert not files[1].with_name("b.safetensors").exists()


def test_a_config_without_names_is_refused(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    without = ["--opts", "MODEL.UNIREF.LITE.NAMES.NUM", "0"]
    assert main(command(files, "--sets", SET, *without)) == 2
    assert "set MODEL.UNIREF.LITE.NAMES.NUM" in capsys.readouterr().err


def test_a_model_without_names_loads_weights_with_them(files: tuple[Path, Path]) -> None:
    options = ["MODEL.UNIREF.LITE.NAMES.NUM", "0"]
    model = unified.load(files[0], weights=files[1], device="cpu", options=options)
    assert type(model) is UniRef
    weights = read_weights(files[1])
    weights["name_hat.names"] = torch.zeros(2)
    write_weights(files[1], weights)
    with pytest.raises(CheckpointError, match=r"name_hat\.names"):
        unified.load(files[0], weights=files[1], device="cpu", options=options)


def test_names_can_be_learnt_again_with_another_number(files: tuple[Path, Path]) -> None:
    content = yaml.safe_load(files[0].read_text())
    weights = read_weights(files[1])
    weights["name_head.names"] = torch.ones(3, weights["name_head.names"].shape[1]).half()
    write_weights(files[1], weights)
    assert main(command(files, "--sets", SET)) == 0
    after = read_weights(files[1].with_name("b.safetensors"))
    assert len(after["name_head.names"]) == content["MODEL"]["UNIREF"]["LITE"]["NAMES"]["NUM"]


def test_names_need_a_pretrained_backbone(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = read_weights(files[1])
    write_weights(files[1], {k: v for k, v in weights.items() if not k.startswith("name_head.")})
    unified.load(files[0], weights=files[1], device="cpu")  # without names it works as before
    assert main(command(files, "--sets", SET)) == 2
    assert "set MODEL.UNIREF.BACKBONE_WEIGHTS" in capsys.readouterr().err


def test_numbers_are_above_zero(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command(files, "--sets", SET, "--pictures", "0"))
    assert "expected a whole number above 0, got 0" in capsys.readouterr().err


def test_objects_without_names_are_refused(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    RELEASES["fss1000"](files[0].parent, 2, 0)
    assert main(command(files, "--sets", SET, "--val", "fss-1000-train")) == 2
    assert "have no names" in capsys.readouterr().err
    assert not files[1].with_name("b.safetensors").exists()
