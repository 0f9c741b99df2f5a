"""Masks of queries by convolutions whose weights each query predicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.layers import MLP, aligned_bilinear, xavier_init
from unified.structures import MASK_STRIDE, once

MASK_CHANNELS = 8


class PixelDecoder(nn.Module):
    """Top-down pyramid over encoder memory, without norms.

    Source: CondInst (arXiv:2003.05664), mask branch, as used by SeqFormer (arXiv:2112.08275).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(dim, dim, 3, padding=1)
        self.middle = nn.Conv2d(dim, dim, 3, padding=1)
        self.fine = nn.Conv2d(dim, dim, 3, padding=1)
        self.reduce = nn.Conv2d(dim, dim // 4, 3, padding=1)
        self.project = nn.Conv2d(dim // 4, MASK_CHANNELS, 3, padding=1)

    def forward(self, memory: Sequence[Tensor]) -> Tensor:
        """At least 3 levels (B, C, h, w), strides 8, 16, 32, ... -> (B, 8, H/8, W/8)."""
        x = F.relu(self.coarse(memory[2]))
        for level, conv in ((1, self.middle), (0, self.fine)):
            x = F.interpolate(x, size=memory[level].shape[-2:]) + memory[level]
            x = F.relu(conv(x))
        return F.relu(self.project(F.relu(self.reduce(x))))


class MaskHead(nn.Module):
    """Dynamic mask head with relative coordinates.

    Each query predicts three 1x1 convolutions (10 -> 8 -> 8 -> 1) over eight shared channels and
    the offset, in pixels of the unpadded input, from its reference point.

    Source: CondInst (arXiv:2003.05664), section 3.1.
    """

    def __init__(self, *, dim: int, high_res_dim: int) -> None:
        super().__init__()
        c = MASK_CHANNELS
        self.weight_sizes, self.bias_sizes = ((c + 2) * c, c * c, c), (c, c, 1)
        num_parameters = sum(self.weight_sizes) + sum(self.bias_sizes)
        self.controller = MLP(dim, dim, num_parameters, 3)
        self.pixel_decoder = PixelDecoder(dim)
        self.lateral_conv = nn.Conv2d(high_res_dim, c, 1)
        self.output_conv = nn.Conv2d(c, c, 3, padding=1)
        self.mask_conv = nn.Conv2d(c, c, 1)
        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        xavier_init(*self.controller.layers)

    def features(self, memory: Sequence[Tensor], high_res: Tensor) -> Tensor:
        """Shared mask features (B, 8, H/4, W/4) from memory and the un-fused stride-4 map."""
        x = self.pixel_decoder(memory)
        lateral = self.lateral_conv(once(high_res))
        x = F.interpolate(x, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_conv(F.relu(self.output_conv(x + lateral)))

    def forward(
        self, features: Tensor, hidden: Tensor, points: Tensor, *, mask_stride: int = MASK_STRIDE
    ) -> Tensor:
        """Mask logits of the given queries, in the dtype of the weights also under autocast.

        What a query predicts are weights that act on offsets of hundreds of pixels: rounding them
        to half precision moves the contour, and computing them costs little.

        Args:
            features: (B, 8, H/4, W/4) from ``features``.
            hidden: (B, K, C) query states.
            points: (B, K, 2) reference points (x, y) in pixels of the unpadded input.
            mask_stride: 4, or 1 to upsample to the padded input size.

        Returns:
            (B, K, H / mask_stride, W / mask_stride).
        """
        dtype = self.mask_conv.weight.dtype
        with torch.autocast(features.device.type, enabled=False):
            logits = self._decode(*(x.to(dtype) for x in (features, hidden, points)))
            return aligned_bilinear(logits, MASK_STRIDE // mask_stride)

    def _decode(self, features: Tensor, hidden: Tensor, points: Tensor) -> Tensor:
        """(B, K, h, w) at the stride of ``features``."""
        batch, num, height, width = *points.shape[:2], *features.shape[-2:]
        c = MASK_CHANNELS
        parameters = self.controller(hidden)
        *weights, bias0, bias1, bias2 = parameters.split(self.weight_sizes + self.bias_sizes, -1)
        first = weights[0].view(batch, num, c, c + 2)
        second = weights[1].view(batch, num, c, c)
        third = weights[2].view(batch, num, 1, c)

        offsets = self._relative_coordinates(points, height, width)  # (B, K, 2, h * w)
        shared = rearrange(features, "b c h w -> b 1 c (h w)")
        x = first[..., :2] @ offsets + first[..., 2:] @ shared + bias0[..., None]
        x = second @ F.relu(x) + bias1[..., None]
        x = third @ F.relu(x) + bias2[..., None]  # (B, K, 1, h * w)
        return x.view(batch, num, height, width)

    @staticmethod
    def _relative_coordinates(points: Tensor, height: int, width: int) -> Tensor:
        """Reference point minus pixel centre, in input pixels: (B, K, 2, h * w)."""
        y, x = torch.meshgrid(
            torch.arange(height, device=points.device, dtype=points.dtype),
            torch.arange(width, device=points.device, dtype=points.dtype),
            indexing="ij",
        )
        pixels = torch.stack((x, y)).flatten(1) * MASK_STRIDE + MASK_STRIDE // 2  # (2, h * w)
        return points[..., None] - pixels
