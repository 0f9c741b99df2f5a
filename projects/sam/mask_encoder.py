"""Encodes a mask on a frame into reference values at SAM's one feature level."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.mask_encoder import BasicBlock, FeatureFusion


class SamMaskEncoder(nn.Module):
    """The first three stages of a ResNet-18 on image and mask, fused with SAM's embedding.

    Source: UniRef++ (arXiv:2312.15715), section 3.2, as its SAM variant has it: to stride 16.
    """

    def __init__(self, *, dim: int = 256, width: int = 64) -> None:
        """``width`` is the channel count of the first stage; the others double it."""
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.fuser = FeatureFusion(dim + 4 * width, dim)

    def forward(self, images: Tensor, masks: Tensor, embedding: Tensor) -> Tensor:
        """Reference values (B, dim, H / 16, W / 16).

        Args:
            images: (B, 3, H, W) normalised and padded.
            masks: (B, H, W) bool or 0/1, zero on padding.
            embedding: (B, dim, H / 16, W / 16) of the same images.
        """
        x = torch.cat([images, masks[:, None].to(images.dtype)], dim=1)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fuser(x, embedding)


def _stage(in_dim: int, dim: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(in_dim, dim, stride=stride), BasicBlock(dim, dim, stride=1))
