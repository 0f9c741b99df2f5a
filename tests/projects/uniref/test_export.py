"""Exported programs answer as the model does, through the predictors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unified
from projects.uniref.model import UniRef
from tests.projects.uniref.tiny import make_uniref
from tests.toy.clips import box_mask, frames
from tests.unified.modeling.test_deform_sum import Encode, pyramid
from unified import ImagePredictor, VideoPredictor
from unified.__main__ import main
from unified.errors import CheckpointError, ConfigError, InputError
from unified.export.programs import export_model
from unified.export.runtime import ExportedSegmenter, _onnx_engine, _openvino_engine
from unified.export.tracing import Program, prepared
from unified.export.writing import quiet, write_program
from unified.inference.image_io import write_image
from unified.inference.settings import ModelInfo
from unified.label_maps import write_label_map
from unified.modeling.attention import attend
from unified.modeling.backbones.timm_nets import DepthwiseConv
from unified.structures import FrameResult, Prompt

SIZE = (64, 96)
SETTINGS = {"short_side": 64, "max_size": 96, "score_threshold": 0.0}
MASK = Prompt(mask=box_mask(5, 5))


def make(*kinds: str) -> UniRef:
    model = make_uniref(kinds=kinds, num_layers=1)
    model.info = ModelInfo("tiny", "UniRef", config=None, weights="tiny.pth", sha256="0a")
    return model


@pytest.fixture(scope="module")
def sentences() -> UniRef:
    return make("text")


@pytest.fixture(scope="module")
def folder(sentences: UniRef, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of torch, for images."""
    folder = tmp_path_factory.mktemp("exported")
    export_model(sentences, folder, format="torch", what="image", size=SIZE)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> ExportedSegmenter:
    return unified.load(folder)


def find(model: nn.Module, text: str, image: np.ndarray) -> tuple[np.ndarray, float]:
    predictor = ImagePredictor(model, mirror=True, **SETTINGS)
    predictor.set_image(image)
    return predictor.predict_prob(Prompt(text=text))


@pytest.mark.parametrize("size", [(60, 80), (64, 96), (64, 64)], ids=str)
def test_an_image_is_segmented_as_by_the_model(
    sentences: UniRef,
    exported: ExportedSegmenter,
    size: tuple[int, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also one that the model itself pads to less than the input of the programs."""
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    for text in ("the red box", "a ball"):
        ours, score = find(exported, text, image)
        theirs, other = find(sentences, text, image)
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
        assert score == pytest.approx(other, abs=1e-4)
    assert not caplog.records


def test_an_image_that_is_larger_than_the_input_is_scaled_to_fit_and_told(
    exported: ExportedSegmenter, caplog: pytest.LogCaptureFixture
) -> None:
    assert find(exported, "a ball", np.zeros((100, 90, 3), np.uint8))[0].shape == (100, 90)
    assert "at 71 x 64 are scaled to 64 x 58" in caplog.text and "--size 71x64" in caplog.text


def follow(model: nn.Module) -> Iterator[FrameResult]:
    """One object, and two more from the second frame on."""
    predictor = VideoPredictor(model, keep_probabilities=True, **SETTINGS)
    later = {4: Prompt(mask=box_mask(20, 30)), 7: Prompt(mask=box_mask(30, 45))}
    return predictor.run(frames(4), {0: {1: MASK}, 1: later})


@pytest.fixture(scope="module")
def masks() -> UniRef:
    return make("mask")


@pytest.fixture(scope="module")
def for_clips(masks: UniRef, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of torch, for clips."""
    folder = tmp_path_factory.mktemp("clips")
    manifest = export_model(masks, folder, format="torch", what="video", size=SIZE)
    assert manifest.size == SIZE and set(manifest.programs) == {"image", "mask", "segment-mask"}
    return folder


def test_a_clip_is_followed_as_by_the_model(masks: UniRef, for_clips: Path) -> None:
    for ours, theirs in zip(follow(unified.load(for_clips)), follow(masks), strict=True):
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        for number, probability in theirs.probabilities.items():
            np.testing.assert_allclose(ours.probabilities[number], probability, atol=1e-3)


def test_the_tools_run_an_exported_folder(folder: Path, for_clips: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "frames/0.png", frames(1)[0])
    write_image(tmp_path / "frames/1.png", frames(2)[1])
    write_label_map(tmp_path / "first.png", np.uint8(box_mask(5, 5) + 2 * box_mask(30, 45)))
    out = tmp_path / "out"
    arguments = ["--input", str(tmp_path / "frames"), "--output", str(out), "--threshold", "0"]
    assert main(["image", *arguments, "--model", str(folder), "--text", "a ball"]) == 0
    content = json.loads((out / "results.json").read_text())
    assert content["exported"] == {
        "folder": str(folder),
        "runtime": f"torch {torch.__version__}",
        "input": list(SIZE),
    }
    assert (content["model"], content["weights"]["file"]) == ("tiny", "tiny.pth")
    masks = [*arguments, "--mask", str(tmp_path / "first.png")]
    assert main(["video", *masks, "--model", str(for_clips)]) == 0
    content = json.loads((out / "results.json").read_text())
    assert [len(frame["objects"]) for frame in content["frames"]] == [2, 2]
    assert content["exported"]["folder"] == str(for_clips)


@pytest.mark.parametrize("tool", ["image", "video"])
def test_the_tools_refuse_a_folder_that_cannot_answer(
    tool: str, folder: Path, for_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "frames/0.png", frames(1)[0])
    wrong = for_clips if tool == "image" else folder
    kind = ["--text", "a ball"] if wrong == folder else ["--box", "1,1,9,9"]
    arguments = [
        tool,
        "--input",
        str(tmp_path / "frames"),
        "--output",
        str(tmp_path / "out"),
        *kind,
    ]

    def refused(model: Path, *more: str) -> str:
        assert main([*arguments, "--model", str(model), *more]) == 2
        return capsys.readouterr().err

    assert "export the model with --what" in refused(wrong)
    assert "runs on the CPU" in refused(wrong, "--weights", "other.pth")
    damaged = shutil.copytree(wrong, tmp_path / "damaged")
    (damaged / "image.pt2").write_bytes(b"other")
    assert "image.pt2 is damaged or was replaced" in refused(damaged)
    (damaged / "image.pt2").unlink()
    assert "image.pt2 is missing" in refused(damaged)
    content = json.loads((damaged / "manifest.json").read_text())
    (damaged / "manifest.json").write_text(json.dumps(content | {"version": 1}))
    assert "is of version 1, this toolkit reads version 3" in refused(damaged)
    assert not (tmp_path / "out").exists()


def test_an_export_that_is_stopped_changes_nothing(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says which program is at work; a folder that was complete stays so."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    model = make("text")
    model.segment = stop
    given = shutil.copytree(folder, tmp_path / "given")
    before = {path.name: path.read_bytes() for path in given.iterdir()}
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        export_model(model, given, format="torch", what="image", size=SIZE)
    assert {path.name: path.read_bytes() for path in given.iterdir()} == before
    with pytest.raises(KeyboardInterrupt):
        export_model(model, tmp_path / "new", format="torch", what="image", size=SIZE)
    assert not (tmp_path / "new").exists()
    assert "program 1 of 3: image encoder" in caplog.text
    assert "program 3 of 3: masks by text" in caplog.text


class Averaged(nn.Module):
    """A backbone with an operation that does not know where the picture ends for the model."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.backbone(images - images.mean(dim=(2, 3), keepdim=True))


def test_other_padding_than_the_models_own_is_told_where_it_changes_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make("text")
    model.backbone = Averaged(model.backbone)
    assert not export_model(
        model, tmp_path, format="torch", what="image", size=SIZE
    ).sees_own_padding
    exported = unified.load(tmp_path)
    find(exported, "a ball", frames(1)[0])
    warnings = [each for each in caplog.records if each.levelname == "WARNING"]
    assert not warnings, "padded as by the model"
    find(exported, "a ball", np.zeros((64, 50, 3), np.uint8))
    assert "pads them to 64 x 64" in caplog.text and "--size 64x64" in caplog.text


def run_everywhere(module: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> set[str]:
    """Compares a module in ONNX Runtime and OpenVINO with torch; returns the operations of ONNX."""
    for package in ("onnxruntime", "openvino", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra export")
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    with torch.no_grad():
        expected = module(*inputs)
    ready, names = prepared(module), [f"input{index}" for index in range(len(inputs))]
    program = Program(ready, lambda named: {"output": ready(*named.values())}, names, ["output"])
    with torch.no_grad(), quiet():
        traced = torch.export.export(program, (list(inputs),))
        for format in ("onnx", "openvino"):
            write_program(traced, folder / "program", format, names, ["output"])
    for engine, suffix in ((_onnx_engine, ".onnx"), (_openvino_engine, ".xml")):
        (output,) = engine(folder / f"program{suffix}")(names, inputs)
        torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
    return {node.op_type for node in onnx.load(folder / "program.onnx").graph.node}


def test_deformable_attention_is_gathers_in_every_runtime(tmp_path: Path) -> None:
    operations = run_everywhere(Encode(), tuple(pyramid()), tmp_path)
    assert operations & {"Gather", "GatherND"}
    assert "GridSample" not in operations, "some runtimes convert it wrongly"


class Attend(nn.Module):
    """Query, key and value with padding."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor) -> Tensor:
        return attend(query, key, value, padding)


def test_attention_ignores_padding_in_every_runtime(tmp_path: Path) -> None:
    tokens = torch.randn(3, 2, 2, 7, 8, generator=torch.Generator().manual_seed(0)) * 3
    padding = torch.tensor([[False] * 5 + [True] * 2, [False] * 7])
    run_everywhere(Attend(), (*tokens, padding), tmp_path)


@pytest.mark.parametrize("size", [(8, 10), (9, 11)], ids=str)
def test_a_convolution_padded_at_one_side_runs_in_every_runtime(
    size: tuple[int, int], tmp_path: Path
) -> None:
    """ONNX Runtime took a padded kernel for a padded map."""
    torch.manual_seed(0)
    conv = DepthwiseConv(nn.Conv2d(4, 4, 3, stride=2, groups=4)).eval()
    run_everywhere(nn.Sequential(conv, nn.Conv2d(4, 4, 1)), (torch.randn(1, 4, *size),), tmp_path)


def test_what_an_export_cannot_do_is_said(
    exported: ExportedSegmenter, folder: Path, tmp_path: Path
) -> None:
    predictor = ImagePredictor(exported, **SETTINGS, mirror=False)
    predictor.set_image(frames(1)[0])
    with pytest.raises(InputError, match="cannot detect"):
        predictor.detect()
    with pytest.raises(InputError, match="follows text references, not mask"):
        predictor.predict(MASK)
    with pytest.raises(InputError, match="runs in float32, not bfloat16"):
        ImagePredictor(exported, precision="bfloat16")
    with pytest.raises(InputError, match="was exported for images, and videos are asked about"):
        VideoPredictor(exported)
    with pytest.raises(InputError, match="no part that is compiled"):
        ImagePredictor(exported, compile=True)
    with pytest.raises(InputError, match="exported for the best mask of a prompt in images"):
        exported.segment(
            predictor._image_frame().features, [exported.encode_text(["a ball"])], mask_stride=1
        )
    with pytest.raises(ConfigError, match="runs on the CPU"):
        unified.load(folder, device="cuda")
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        unified.load(tmp_path)


def test_a_folder_named_as_a_model_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uniref-lite").mkdir()
    monkeypatch.chdir(tmp_path)
    assert unified.load("uniref-lite").info.name == "uniref-lite"
