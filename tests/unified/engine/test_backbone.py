from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode

from unified.engine.backbone import build_detectron2_backbone
from unified.engine.config import default_config
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


def test_a_missing_map_and_an_unknown_name_are_told() -> None:
    with pytest.raises(ConfigError, match=r"gives \['res4'\].*add res2, res3, res5"):
        build_detectron2_backbone("build_resnet_backbone", resnet18("res4"))
    with pytest.raises(ConfigError, match="no backbone is registered"):
        build_detectron2_backbone("build_nothing", resnet18(*STAGES))
