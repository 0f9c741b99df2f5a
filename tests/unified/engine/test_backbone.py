from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from projects.uniref.checkpoint import find_uniref_keys
from unified.checkpoint import load_weights, read_weights, write_weights
from unified.engine.backbone import build_detectron2_backbone
from unified.engine.config import default_config
from unified.engine.system import system
from unified.errors import ConfigError

STAGES = ["res2", "res3", "res4", "res5"]


def resnet18(*outputs: str) -> CfgNode:
    cfg = default_config()
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = list(outputs)
    return cfg


def test_a_backbone_of_detectron2_keeps_our_contract() -> None:
    backbone = build_detectron2_backbone("build_resnet_backbone", resnet18(*STAGES))
    maps = backbone(torch.rand(2, 3, 64, 96))
    assert list(maps) == STAGES
    for stage, x in maps.items():
        stride = backbone.strides[stage]
        assert x.shape == (2, backbone.channels[stage], 64 // stride, 96 // stride)


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


def test_a_missing_map_and_an_unknown_name_are_told() -> None:
    with pytest.raises(ConfigError, match=r"gives \['res4'\].*add res2, res3, res5"):
        build_detectron2_backbone("build_resnet_backbone", resnet18("res4"))
    with pytest.raises(ConfigError, match="no backbone is registered"):
        build_detectron2_backbone("build_nothing", resnet18(*STAGES))
    cfg = resnet18(*STAGES)
    cfg.MODEL.UNIREF.BACKBONE = "build_nothing"
    with pytest.raises(ConfigError, match="'build_nothing' is unknown"):
        system("UniRef").build(cfg)
