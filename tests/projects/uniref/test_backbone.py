"""A backbone of Detectron2 inside UniRef."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from projects.uniref.checkpoint import find_uniref_keys
from tests.unified.engine.test_backbone import STAGES, resnet18
from unified.checkpoint import load_weights, read_weights, write_weights
from unified.engine.system import system
from unified.errors import ConfigError


def test_it_is_named_in_a_config_and_its_weights_travel(tmp_path: Path) -> None:
    cfg = resnet18(*STAGES)
    cfg.MODEL.UNIREF.BACKBONE = "build_resnet_backbone"
    cfg.MODEL.UNIREF.HIDDEN_DIM = 64
    cfg.MODEL.UNIREF.FEEDFORWARD_DIM = 64
    cfg.MODEL.UNIREF.ENCODER_LAYERS = cfg.MODEL.UNIREF.DECODER_LAYERS = 1
    cfg.MODEL.UNIREF.TEXT_ENCODER.NAME = ""
    cfg.MODEL.UNIREF.MASK_ENCODER.WIDTH = 8
    builder = system("UniRef")
    model = builder.build(cfg).eval()
    with torch.inference_mode():
        images = model.preprocess([torch.randint(0, 255, (3, 96, 128))])
        found = model.segment(model.encode_image(images), [])
    assert found.mask_logits.shape == (1, 1, 24, 32)

    write_weights(tmp_path / "model.safetensors", model.state_dict())
    weights = read_weights(tmp_path / "model.safetensors")
    again = builder.build(cfg)
    load_weights(again, weights, table=find_uniref_keys(weights))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )

    write_weights(tmp_path / "resnet.pth", {**model.backbone.net.state_dict(), "fc": torch.ones(1)})
    cfg.MODEL.UNIREF.BACKBONE_WEIGHTS = str(tmp_path / "resnet.pth")
    fresh = builder.build(cfg)
    assert builder.load_parts(fresh, cfg, ()) == ("backbone.",)
    pairs = zip(fresh.backbone.parameters(), model.backbone.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_unknown_name_is_an_error() -> None:
    cfg = resnet18(*STAGES)
    cfg.MODEL.UNIREF.BACKBONE = "build_nothing"
    with pytest.raises(ConfigError, match="'build_nothing' is unknown"):
        system("UniRef").build(cfg)
