"""Backbones that are registered with Detectron2, for our models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from unified.checkpoint import load_weights, read_weights
from unified.errors import ConfigError

STAGES = ("res2", "res3", "res4", "res5")


class Detectron2Backbone(nn.Module):
    """A Detectron2 backbone with the contract of ours: maps res2..res5, channels and strides."""

    def __init__(self, name: str, net: Any) -> None:
        """``net`` maps (B, 3, H, W) to a dict and has ``output_shape()``.

        Raises:
            ConfigError: one of the four maps is missing.
        """
        super().__init__()
        shapes = net.output_shape()
        missing = [stage for stage in STAGES if stage not in shapes]
        if missing:
            raise ConfigError(
                f"backbone {name} gives {sorted(shapes)}, expected {', '.join(STAGES)}: add "
                f"{', '.join(missing)} to its OUT_FEATURES"
            )
        self.name, self.net = name, net
        self.channels = {stage: shapes[stage].channels for stage in STAGES}
        self.strides = {stage: shapes[stage].stride for stage in STAGES}

    def load(self, path: Path) -> None:
        """Fills the network with a file of its own keys; entries it does not have are left out.

        Raises:
            CheckpointError: the file cannot be read or lacks entries of the network.
        """
        own = self.net.state_dict()
        weights = {key: value for key, value in read_weights(path).items() if key in own}
        load_weights(self.net, weights, source=str(path))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised -> res2..res5."""
        found = self.net(images)
        return {stage: found[stage] for stage in STAGES}


def build_detectron2_backbone(name: str, cfg: CfgNode) -> Detectron2Backbone:
    """The backbone registered with Detectron2 as ``name``, built from its own config keys.

    Raises:
        ConfigError: nothing is registered under this name.
    """
    if name not in BACKBONE_REGISTRY:
        raise ConfigError(f"no backbone is registered with Detectron2 as {name!r}")
    return Detectron2Backbone(name, BACKBONE_REGISTRY.get(name)(cfg, ShapeSpec(channels=3)))
