"""Visual encoders: images of one size to tokens of their patches."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.checkpoint import load_weights, read_weights
from unified.dependencies import require
from unified.errors import ConfigError
from unified.modeling.backbones import build_backbone, load_pretrained
from unified.modeling.backbones.base import STRIDES, Backbone

PLACES = 12  # a side
EPSILON = 1e-5  # of the released code; timm has 1e-6


class VisualEncoder(nn.Module):
    """timm's ViT: tokens of patches after the last norm.

    Source: ViT (arXiv:2010.11929); ViT-B/16 by default.
    """

    def __init__(
        self,
        *,
        image_size: int = 480,
        patch_size: int = 16,
        dim: int = 768,
        num_blocks: int = 12,
        num_heads: int = 12,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.vit = require("timm.models.vision_transformer").VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=dim,
            depth=num_blocks,
            num_heads=num_heads,
            num_classes=0,
            drop_path_rate=drop_path,
            norm_layer=partial(nn.LayerNorm, eps=EPSILON),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) -> (B, P, dim), without the token of the whole image."""
        tokens: Tensor = self.vit.forward_features(images)
        return tokens[:, 1:]

    def load(self, source: str | Path) -> None:
        """Weights of the same ViT, of timm's layout, whatever the size of its images.

        Raises:
            CheckpointError: the file is missing, damaged or of another model.
        """
        weights = {key: x for key, x in read_weights(source).items() if not key.startswith("head.")}
        places = weights.get("pos_embed")
        if places is not None:
            weights["pos_embed"] = resize_positions(places, self.vit.pos_embed.shape[1] - 1)
        load_weights(self.vit, weights, source=str(source))


class ConvolutionalEncoder(nn.Module):
    """A small backbone in the ViT's place: its map at the patches' stride, projected, and a learned
    place, read between those of a fixed grid so that weights serve pictures of every size.

    Not part of ReSTR: it learns on a laptop what a ViT needs a large training set for.
    """

    def __init__(self, backbone: Backbone, *, dim: int, patch_size: int = 16) -> None:
        """Takes out of the backbone what comes after that map.

        Raises:
            ConfigError: the backbone has no map of this stride.
        """
        super().__init__()
        stages = {stride: stage for stage, stride in STRIDES.items()}
        if patch_size not in stages:
            raise ConfigError(
                f"a backbone has no map with one cell for {patch_size} x {patch_size} pixels: "
                f"choose a patch size of {sorted(stages)}"
            )
        self.stage = stages[patch_size]
        self.net = _up_to(backbone, self.stage)
        self.project = nn.Linear(backbone.channels[self.stage], dim)
        self.places = nn.Parameter(torch.empty(PLACES**2, dim))
        nn.init.trunc_normal_(self.places, std=0.02)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P, dim)."""
        features = self.net(images)[self.stage]
        grid = self.places.T.unflatten(1, (PLACES, PLACES))[None]
        places = F.interpolate(grid, size=features.shape[-2:], mode="bilinear", align_corners=False)
        tokens = self.project(features.flatten(2).transpose(1, 2))
        return self.norm(tokens + places.flatten(2).transpose(1, 2))

    def load(self, source: str | Path) -> None:
        """ImageNet weights of the backbone.

        Raises:
            CheckpointError: the file is missing, damaged or of another model.
        """
        whole = build_backbone(self.net.name)
        load_pretrained(whole, source)
        kept = self.net.state_dict().keys()
        self.net.load_state_dict({key: x for key, x in whole.state_dict().items() if key in kept})


def _up_to(backbone: Backbone, last: str) -> Backbone:
    """The backbone without the stages after ``last`` and the norms of other maps."""
    for stage, stride in STRIDES.items():
        if stride > STRIDES[last]:
            setattr(backbone, stage, nn.Identity())
        if stage != last and stage in backbone.norms:
            del backbone.norms[stage]
    return backbone


def resize_positions(positions: Tensor, num_patches: int) -> Tensor:
    """Position code (1, 1 + P, C) of a square grid, bilinearly for another number of patches."""
    old, side = int((positions.shape[1] - 1) ** 0.5), int(num_patches**0.5)
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, (old, old))
    grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    return torch.cat((positions[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)
