"""Exported programs answer as the model does, through the predictors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import unified
from projects.uniref.model import UniRef
from tests.projects.uniref.tiny import make_uniref
from tests.toy.clips import box_mask, frames
from tests.unified.modeling.test_deform_sum import Encode, pyramid
from unified import ImagePredictor, VideoPredictor
from unified.errors import CheckpointError, ConfigError, InputError
from unified.export.programs import Program, export_model, prepared
from unified.export.runtime import ExportedSegmenter, _onnx_engine, _openvino_engine
from unified.export.writing import quiet, write_program
from unified.inference.settings import ModelInfo
from unified.structures import FrameResult, Prompt

SIZE = (64, 96)
SETTINGS = {"short_side": 64, "max_size": 96, "score_threshold": 0.0}
MASK = Prompt(mask=box_mask(5, 5))


def make(*kinds: str) -> UniRef:
    model = make_uniref(kinds=kinds, num_layers=1)
    model.info = ModelInfo(name="tiny", system="UniRef", config=None, weights=None, sha256=None)
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


def find(model: torch.nn.Module, text: str, image: np.ndarray) -> tuple[np.ndarray, float]:
    predictor = ImagePredictor(model, mirror=True, **SETTINGS)
    predictor.set_image(image)
    return predictor.predict_prob(Prompt(text=text))


@pytest.mark.parametrize("size", [(60, 80), (64, 96), (300, 100)], ids=str)
def test_an_image_is_segmented_as_by_the_model(
    sentences: UniRef, exported: ExportedSegmenter, size: tuple[int, int]
) -> None:
    """One that is smaller than the input is padded, one that is larger is scaled to fit."""
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    for text in ("the red box", "a ball"):
        ours, score = find(exported, text, image)
        assert ours.shape == size
        if size == SIZE:
            theirs, other = find(sentences, text, image)
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
            assert score == pytest.approx(other, abs=1e-4)


def follow(model: torch.nn.Module) -> Iterator[FrameResult]:
    """One object, and two more from the second frame on."""
    predictor = VideoPredictor(model, keep_probabilities=True, **SETTINGS)
    later = {4: Prompt(mask=box_mask(20, 30)), 7: Prompt(mask=box_mask(30, 45))}
    return predictor.run(frames(4), {0: {1: MASK}, 1: later})


def test_a_clip_is_followed_as_by_the_model(tmp_path: Path) -> None:
    model = make("mask")
    manifest = export_model(model, tmp_path, format="torch", what="video", size=SIZE)
    assert manifest.size == SIZE and set(manifest.programs) == {"image", "mask", "segment-mask"}
    for ours, theirs in zip(follow(unified.load(tmp_path)), follow(model), strict=True):
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        for number, probability in theirs.probabilities.items():
            np.testing.assert_allclose(ours.probabilities[number], probability, atol=1e-3)


def test_deformable_attention_is_gathers_in_every_runtime(tmp_path: Path) -> None:
    for package in ("onnxruntime", "openvino", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra export")
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    encode, levels = Encode(), pyramid()
    expected = encode(*levels).detach()
    ready = prepared(encode)
    names = ["fine", "coarse"]
    module = Program(
        ready, lambda named: {"memory": ready(*(named[name] for name in names))}, names, ["memory"]
    )
    with torch.no_grad(), quiet():
        program = torch.export.export(module, (levels,))
        for format in ("onnx", "openvino"):
            write_program(program, tmp_path / "encode", format, names, ["memory"])
    for engine, suffix in ((_onnx_engine, ".onnx"), (_openvino_engine, ".xml")):
        (memory,) = engine(tmp_path / f"encode{suffix}")(names, levels)
        assert memory.shape == expected.shape
        torch.testing.assert_close(memory, expected, atol=1e-4, rtol=1e-4)
    operations = {node.op_type for node in onnx.load(tmp_path / "encode.onnx").graph.node}
    assert operations & {"Gather", "GatherND"}
    assert "GridSample" not in operations, "some runtimes convert it wrongly"


def test_what_an_export_cannot_do_is_said(
    exported: ExportedSegmenter, folder: Path, tmp_path: Path
) -> None:
    predictor = ImagePredictor(exported, **SETTINGS, mirror=False)
    predictor.set_image(frames(1)[0])
    with pytest.raises(InputError, match="cannot detect"):
        predictor.detect()
    with pytest.raises(InputError, match="follows text references, not mask"):
        predictor.predict(MASK)
    with pytest.raises(InputError, match="run in float32"):
        ImagePredictor(exported, precision="bfloat16").set_image(frames(1)[0])
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
