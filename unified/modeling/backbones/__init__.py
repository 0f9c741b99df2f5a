"""Backbones: normalised images to feature maps res2..res5, behind one registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from unified.errors import ConfigError
from unified.modeling.backbones.base import Backbone
from unified.modeling.backbones.key_tables import KEY_TABLES
from unified.modeling.backbones.pretrained import load_pretrained
from unified.modeling.backbones.swin import build_swin
from unified.modeling.backbones.timm_nets import (
    build_convnext,
    build_efficientnet_lite0,
    build_resnet,
)

__all__ = ["BACKBONES", "KEY_TABLES", "Backbone", "build_backbone", "load_pretrained"]

# The window of base and large is that of their ImageNet-22k weights.
_swin_deep = partial(build_swin, depths=(2, 2, 18, 2))
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet50": partial(build_resnet, depth=50),
    "resnet101": partial(build_resnet, depth=101),
    "swin_tiny": partial(
        build_swin, embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window=7
    ),
    "swin_small": partial(_swin_deep, embed_dim=96, num_heads=(3, 6, 12, 24), window=7),
    "swin_base": partial(_swin_deep, embed_dim=128, num_heads=(4, 8, 16, 32), window=12),
    "swin_large": partial(_swin_deep, embed_dim=192, num_heads=(6, 12, 24, 48), window=12),
    "convnext_tiny": partial(build_convnext, size="tiny"),
    "convnext_base": partial(build_convnext, size="base"),
    "convnext_large": partial(build_convnext, size="large"),
    "efficientnet_lite0": build_efficientnet_lite0,
}


def build_backbone(name: str, **options: Any) -> Backbone:
    """The backbone ``name`` with freshly initialised weights.

    Args:
        name: a key of ``BACKBONES``.
        options: ``freeze_at``, ``checkpoint`` and ``drop_path`` for all; see the builders.

    Raises:
        ConfigError: the name is unknown, an option does not fit, or timm is needed and missing.
    """
    if name not in BACKBONES:
        raise ConfigError(f"backbone {name!r} is unknown: registered are {sorted(BACKBONES)}")
    backbone = BACKBONES[name](**options)
    backbone.name = name
    return backbone
