"""Replays what the official GroupViT computed, and compares with transformers' class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.groupvit.checkpoint import (
    OFFICIAL_KEYS,
    TRANSFORMERS_KEYS,
    find_official_keys,
    find_transformers_keys,
)
from projects.groupvit.parity import check, image_encoder_of, model_of
from unified.checkpoint import KeyTable, load_weights
from unified.errors import InputError

DATA = Path(__file__).parents[2] / "data" / "groupvit"
SIZES = json.loads((DATA / "groupvit_s2_manifest.json").read_text())
TRANSFORMERS = json.loads((DATA / "groupvit_s2_hf_manifest.json").read_text())


@pytest.mark.parametrize("name", ["groupvit_block", "groupvit_tiny"])
def test_recorded_numbers(name: str) -> None:
    arrays = dict(np.load(DATA / f"{name}.npz"))
    results = check(DATA / f"{name}.npz", arrays)
    assert len(results) >= 4
    assert all(result.passed for result in results), "\n".join(map(str, results))
    broken = "seg_ctx" if name.endswith("tiny") else "soft"
    arrays[broken] = arrays[broken] + np.float32(0.01)
    failed = [r.name for r in check(DATA / f"{name}.npz", arrays) if not r.passed]
    assert failed == [broken]


def test_a_recorded_array_that_is_not_computed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "groupvit_block.npz"
    path.with_suffix(".json").write_text((DATA / "groupvit_block.json").read_text())
    arrays = dict(np.load(DATA / "groupvit_block.npz"))
    with pytest.raises(InputError, match="no replay for the recorded arrays novel"):
        check(path, {**arrays, "novel": np.zeros(1)})
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"groupvit_block\.json beside it, cannot be read"):
        check(path, arrays)


def test_a_one_stage_encoder_is_read_from_its_keys() -> None:
    shapes = {
        key.removeprefix("img_encoder."): list(shape)
        for key, shape in SIZES["keys"].items()
        if key.startswith("img_encoder.") and ".layers.2." not in key
    }
    shapes = {k: v for k, v in shapes.items() if "group_projector" not in k}
    for key in [key for key in shapes if key.startswith("layers.1.")]:
        if ".blocks." not in key:
            del shapes[key]
    for block in (3, 4, 5):
        shapes |= {
            f"layers.1.blocks.{block}.{key.split('.', 4)[4]}": shape
            for key, shape in shapes.items()
            if key.startswith("layers.1.blocks.0.")
        }
    shapes["layers.0.downsample.mlp_inter.fc2.weight"] = [8, 192]
    shapes["layers.0.downsample.mlp_inter.fc2.bias"] = [8]
    encoder = image_encoder_of(shapes, 6)
    assert {key: list(value.shape) for key, value in encoder.state_dict().items()} == shapes
    assert sum(p.numel() for p in encoder.parameters()) == 25_254_728  # as published
    with torch.no_grad():
        grouped = encoder(torch.zeros(1, 3, 64, 96))
    assert grouped.soft_map().shape == (1, 8, 4, 6)


@pytest.mark.parametrize(
    ("table", "keys"),
    [(OFFICIAL_KEYS, SIZES["keys"]), (TRANSFORMERS_KEYS, TRANSFORMERS)],
    ids=["official", "transformers"],
)
def test_keys_and_sizes_are_those_of_the_released_models(
    table: KeyTable, keys: dict[str, list[int]]
) -> None:
    model = model_of(SIZES["keys"], 6)
    released = {key: torch.rand(shape) for key, shape in keys.items()}
    assert find_official_keys(released) is (OFFICIAL_KEYS if table is OFFICIAL_KEYS else None)
    assert find_transformers_keys(released) is (None if table is OFFICIAL_KEYS else table)
    report = load_weights(model, released, table=table, optional=["multi_label_logit_scale"])
    assert report.missing == () and report.mismatched == ()
    exported = table.to_foreign(model.state_dict())
    assert exported.keys() == released.keys()
    for key, value in released.items():
        assert torch.equal(exported[key], value.to(exported[key].dtype)), key
    for name, part in (
        ("img_encoder", model.image_encoder),
        ("text_encoder", model.text_encoder),
        ("img_projector", model.image_projector),
        ("text_projector", model.text_projector),
        ("total", model),
    ):
        assert sum(p.numel() for p in part.parameters()) == SIZES["params"][name]


def test_transformers_class_with_random_weights_agrees() -> None:
    from transformers import GroupViTConfig, GroupViTModel

    torch.manual_seed(0)
    config = GroupViTConfig(
        text_config={
            "vocab_size": 50, "hidden_size": 64, "intermediate_size": 256,
            "num_hidden_layers": 2, "num_attention_heads": 1, "max_position_embeddings": 9,
            "eos_token_id": 49,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 192, "depths": [2, 1, 1],
            "num_hidden_layers": 4, "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 4],
            "num_attention_heads": 3, "image_size": 64, "patch_size": 16,
        },
        projection_dim=32,
        projection_intermediate_dim=40,
    )  # fmt: skip
    theirs = GroupViTModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    weights = theirs.state_dict()
    native, report = TRANSFORMERS_KEYS.to_native(weights)
    assert not report.unexpected
    official = OFFICIAL_KEYS.to_foreign({**native, "multi_label_logit_scale": torch.tensor(1.0)})
    ours = model_of({k: tuple(v.shape) for k, v in official.items()}, 3).eval()
    load_weights(ours, weights, table=TRANSFORMERS_KEYS, optional=["multi_label_logit_scale"])
    ids = torch.randint(1, 48, (5, 9))
    ids[:, 6] = 49
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(
            input_ids=ids, pixel_values=pixels, output_segmentation=True, return_dict=True
        )
        grouped = ours.image_encoder(pixels)
        text = torch.nn.functional.normalize(ours.text_vectors(ids), dim=-1)
        torch.testing.assert_close(ours.embed_image(grouped), expected.image_embeds)
        torch.testing.assert_close(text, expected.text_embeds)
        fit = ours.scale * ours.embed_groups(grouped) @ text.t()
        resized = torch.nn.functional.interpolate(grouped.soft_map(), (64, 64), mode="bilinear")
        maps = ours.scale * torch.einsum("bgn,bghw->bnhw", fit, resized)
    torch.testing.assert_close(maps, expected.segmentation_logits, atol=1e-3, rtol=1e-4)
