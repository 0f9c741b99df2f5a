from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from projects.uniref.checkpoint import uniref_keys
from tests.projects.uniref.tiny import make_uniref
from unified.checkpoint import read_weights, write_weights
from unified.modeling.backbones import build_backbone

ROOT = Path(__file__).parents[4]
Tool = Callable[..., int]


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> Tool:
    """The tool, called with its command line."""
    spec = importlib.util.spec_from_file_location(
        "convert_checkpoint", ROOT / "tools" / "convert_checkpoint.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
        return module.main()

    return run


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """A tiny model as the reference would have saved it, with what it does not need."""
    backbone = build_backbone("efficientnet_lite0")
    model = make_uniref(backbone=backbone)
    weights = uniref_keys("efficientnet_lite0").to_foreign(model.state_dict())
    return {
        **weights,
        "criterion._iter": torch.tensor([12345.0]),
        "text_encoder.embeddings.position_ids": torch.arange(32)[None],
        "detr.detr.backbone.0.backbone._fc.weight": torch.ones(3, 2),
    }


def save_official(path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({"model": weights, "iteration": 7, "optimizer": {"state": {}}}, path)


def identical(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return ours.keys() == expected.keys() and all(
        ours[key].dtype == tensor.dtype
        and ours[key].shape == tensor.shape
        and ours[key]
        .contiguous()
        .view(-1)
        .view(torch.uint8)
        .equal(tensor.contiguous().view(-1).view(torch.uint8))
        for key, tensor in expected.items()
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_there_and_back_is_the_same_to_the_last_bit(
    convert: Tool,
    official: dict[str, Tensor],
    tmp_path: Path,
    suffix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, native, back = tmp_path / "in.pth", tmp_path / f"native{suffix}", tmp_path / "out.pth"
    save_official(first, official)
    assert convert(first, native) == 0
    told = capsys.readouterr().out
    for line in ("24 aliases, stored once", "3 unused, kept for the way back", "0 UNEXPECTED"):
        assert line in told
    for key in ("criterion._iter", "detr.detr.transformer.decoder.class_embed.2.bias"):
        assert f"  {key}\n" in told
    assert not any(key.startswith("detr.") for key in read_weights(native))
    assert convert(native, back, "--to", "official") == 0
    assert identical(read_weights(back), official)
    assert f"{len(official)} in the official layout" in capsys.readouterr().out


def test_an_entry_that_nobody_knows_is_told_kept_and_an_exit_code(
    convert: Tool,
    official: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {**official, "detr.surprise.weight": torch.ones(2), "other.thing": torch.zeros(1)}
    save_official(tmp_path / "in.pth", given)
    assert convert(tmp_path / "in.pth", tmp_path / "native.pth") == 1
    told = capsys.readouterr().out
    assert "2 UNEXPECTED" in told and "  detr.surprise.weight\n" in told
    assert convert(tmp_path / "native.pth", tmp_path / "out.pth", "--to", "official") == 0
    assert identical(read_weights(tmp_path / "out.pth"), given)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "does not exist"),
        ("truncated", "truncated"),
        ("malicious", "could run code"),
        ("another model", "holds weights of no system here: its first key is layer.weight"),
        ("no tensors", "holds no tensors"),
        ("altered alias", "should be the same as"),
        (
            "native already",
            "what was asked for: nothing to convert; choose --to official",
        ),
        ("no room", "cannot be written"),
    ],
)
def test_bad_files_end_with_one_sentence_and_leave_nothing(
    convert: Tool,
    official: dict[str, Tensor],
    tmp_path: Path,
    case: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target, boom = tmp_path / "in.pth", tmp_path / "out.pth", tmp_path / "boom"
    arguments: list[str] = []
    if case == "truncated":
        save_official(source, official)
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    elif case == "malicious":
        source.write_bytes(pickle.dumps({"model": Bomb(boom)}))
    elif case == "another model":
        write_weights(source, {"layer.weight": torch.ones(2)})
    elif case == "no tensors":
        torch.save({"model": {}}, source)
    elif case == "altered alias":
        key = "detr.detr.transformer.decoder.class_embed.0.bias"
        save_official(source, {**official, key: official[key] + 1})
    elif case == "native already":
        native, _ = uniref_keys("efficientnet_lite0").to_native(official)
        write_weights(source, native)
    elif case == "no room":
        save_official(source, official)
        (tmp_path / "file").write_text("")
        target = tmp_path / "file" / "out.pth"
    assert convert(source, target, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert not target.exists() and not boom.exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"in.pth", "file"}, left


def test_wrong_direction(
    convert: Tool,
    official: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_official(tmp_path / "in.pth", official)
    assert convert(tmp_path / "in.pth", tmp_path / "out.pth", "--to", "official") == 2
    assert "nothing to convert; choose --to native" in capsys.readouterr().err


def test_a_detector_of_365_classes_converts_too(convert: Tool, tmp_path: Path) -> None:
    """A pre-trained detector has neither sentences nor mask references."""
    backbone = build_backbone("efficientnet_lite0")
    model = make_uniref(kinds=(), num_classes=365, backbone=backbone)
    weights = uniref_keys("efficientnet_lite0").to_foreign(model.state_dict())
    save_official(tmp_path / "in.pth", weights)
    assert convert(tmp_path / "in.pth", tmp_path / "native.safetensors") == 0
    native = read_weights(tmp_path / "native.safetensors")
    assert identical(native, dict(model.state_dict()))


def test_a_small_file_holds_float16_and_lacks_what_was_left_out(
    convert: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_uniref(backbone=build_backbone("efficientnet_lite0"))
    weights = model.state_dict() | {"neck.count": torch.tensor(3)}
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_weights(source, weights)
    assert convert(source, target, "--half", "--without", "mask_head.", "head.") == 0
    assert f"of {len(weights)} entries" in capsys.readouterr().out
    assert identical(
        read_weights(target),
        {
            key: tensor.half() if tensor.is_floating_point() else tensor
            for key, tensor in weights.items()
            if not key.startswith(("mask_head.", "head."))
        },
    )
    assert convert(source, tmp_path / "c.pth", "--without", "nothing.") == 2
    assert "no entry that starts with 'nothing.'" in capsys.readouterr().err
    assert not (tmp_path / "c.pth").exists()


def test_small_files_are_made_of_our_layout_only(
    convert: Tool,
    official: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_official(tmp_path / "a.pth", official)
    assert convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "--half") == 2
    assert "convert it to ours first" in capsys.readouterr().err
