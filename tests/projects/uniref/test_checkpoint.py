"""Key names of the official checkpoints, on their complete lists; no tensor holds real numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from projects.uniref.checkpoint import find_uniref_keys, uniref_keys
from projects.uniref.config import build
from unified.checkpoint import FOREIGN_PREFIX
from unified.engine.config import load_config
from unified.engine.models import CONFIGS
from unified.modeling.backbones import KEY_TABLES, build_backbone

DATA = Path(__file__).parents[2] / "data" / "uniref"
OFFICIAL = {
    "r50": ("video_joint_r50", "resnet50"),
    "swinl": ("video_joint_swin_l", "swin_large"),
    "pretrain_r50": ("pretrain_objects365_r50", "resnet50"),
}
ALIASES = (
    "detr.detr.transformer.decoder.bbox_embed.",
    "detr.detr.transformer.decoder.class_embed.",
)

each_official = pytest.mark.parametrize("name", OFFICIAL)


def manifest(name: str) -> dict[str, list]:
    return json.loads((DATA / f"manifest_{name}.json").read_text())


def official(name: str) -> dict[str, Tensor]:
    """A number of its own for every entry; aliases are the very tensor of their original."""
    weights: dict[str, Tensor] = {}
    for number, key in enumerate(manifest(name)):
        original = key.replace(".transformer.decoder.", ".") if key.startswith(ALIASES) else key
        tensor = weights.setdefault(original, torch.tensor([number]))
        weights[key] = tensor
    return {key: weights[key] for key in manifest(name)}


@each_official
def test_there_and_back_gives_the_same_entries(name: str) -> None:
    table = uniref_keys(OFFICIAL[name][1])
    native, _ = table.to_native(official(name))
    back = table.to_foreign(native)
    assert set(back) == set(manifest(name))
    assert all(back[key] is tensor for key, tensor in official(name).items()) or all(
        torch.equal(back[key], tensor) for key, tensor in official(name).items()
    )


@each_official
def test_every_entry_is_renamed_aliased_or_known_to_be_unused(name: str) -> None:
    native, report = uniref_keys(OFFICIAL[name][1]).to_native(official(name))
    assert report.unexpected == []
    assert report.aliases == [key for key in manifest(name) if key.startswith(ALIASES)]
    assert all(key.startswith(("criterion.", "text_encoder.embeddings.")) for key in report.unused)
    renamed = [key for key in native if not key.startswith(FOREIGN_PREFIX)]
    assert len(renamed) + len(report.aliases) + len(report.unused) == len(manifest(name))


def test_the_numbers_of_the_r50_video_model() -> None:
    native, report = uniref_keys("resnet50").to_native(official("r50"))
    assert len(manifest("r50")) == 1079
    assert len(report.aliases) == 56 and report.unused == ["criterion._iter"]
    assert len(native) == 1079 - 56


@each_official
def test_our_model_needs_exactly_these_entries_in_these_shapes(name: str) -> None:
    config, backbone = OFFICIAL[name]
    native, _ = uniref_keys(backbone).to_native(official(name))
    with torch.device("meta"):
        model = build(load_config(CONFIGS / f"{config}.yaml"))
    own = model.state_dict()
    assert set(own) == {key for key in native if not key.startswith(FOREIGN_PREFIX)}
    theirs = uniref_keys(backbone).to_foreign(own)
    for key, (shape, dtype) in manifest(name).items():
        if key in theirs:
            assert list(theirs[key].shape) == shape, key
            assert str(theirs[key].dtype) == f"torch.{dtype}", key


@each_official
def test_the_layout_and_the_backbone_are_recognised(name: str) -> None:
    weights = official(name)
    table = find_uniref_keys(weights)
    assert table.is_foreign(weights)
    native, report = table.to_native(weights)
    assert report.unexpected == []
    again = find_uniref_keys(native)
    assert not again.is_foreign(native)
    assert set(again.to_foreign(native)) == set(weights)


@pytest.mark.parametrize("backbone", sorted(KEY_TABLES))
def test_every_backbone_is_told_from_the_others(backbone: str) -> None:
    """A file names no backbone, its keys must: else it would be written in another's layout."""
    with torch.device("meta"):
        keys = build_backbone(backbone).state_dict()
    native = {f"backbone.{key}": tensor for key, tensor in keys.items()}
    expected = uniref_keys(backbone).to_foreign(native)
    assert find_uniref_keys(native).to_foreign(native).keys() == expected.keys()
    found = find_uniref_keys(expected)
    assert found.is_foreign(expected)
    assert found.to_native(expected)[0].keys() == native.keys()


def test_entries_of_other_versions_of_the_text_encoder_are_unused() -> None:
    weights = official("r50")
    for name in ("position_ids", "token_type_ids"):
        weights[f"text_encoder.embeddings.{name}"] = torch.arange(5)[None]
    native, report = find_uniref_keys(weights).to_native(weights)
    assert report.unexpected == [] and len(report.unused) == 3
    assert set(find_uniref_keys(native).to_foreign(native)) == set(weights)


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["model.layer.weight"],
        ["backbone.something.else.entirely"],
        ["detr.detr.backbone.0.backbone.unheard.of"],
        ["stem.conv1.weight", "res2.0.conv1.weight"],
    ],
)
def test_weights_of_no_uniref(keys: list[str]) -> None:
    assert find_uniref_keys(keys) is None
