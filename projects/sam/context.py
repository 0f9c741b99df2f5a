"""What things are, beside where they end: features of a classifier for the fusion.

The embedding of a SAM knows edges and hardly any names. A classifier that has seen a thousand kinds
of things, as it is, tells the fusion more about what a sentence means.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.backbones import Backbone

MEAN, STD = 127.0, 128.0  # of EfficientNet-Lite


class Context(nn.Module):
    """A frozen classifier on the picture at half size, projected to the width of the embedding.

    Args:
        backbone: EfficientNet-Lite0, frozen.
        dim: of the embedding.
    """

    def __init__(self, backbone: Backbone, *, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        fine, coarse = (backbone.channels[name] for name in ("res4", "res5"))
        self.fine, self.coarse = nn.Conv2d(fine, dim, 1), nn.Conv2d(coarse, dim, 1)
        self.mix = nn.Sequential(
            nn.GroupNorm(1, dim), nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1), nn.GroupNorm(1, dim)
        )

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """RGB (B, 3, S, S) in 0..255 -> features at strides 32 and 64 of them, without gradient."""
        with torch.no_grad():
            half = F.avg_pool2d((pixels - MEAN) / STD, 2)
            features = self.backbone(half)
        return features["res4"], features["res5"]

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Those features -> (B, C, S / 16, S / 16)."""
        x = self.fine(fine)
        x = x + F.interpolate(self.coarse(coarse), size=x.shape[-2:], mode="nearest")
        return F.interpolate(self.mix(x), scale_factor=2, mode="nearest")
