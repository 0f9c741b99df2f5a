"""Encodes a mask on a frame into reference values at every feature level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.structures import exporting, once


class MaskEncoder(nn.Module):
    """A ResNet-18 on image and mask, fused with the projected image features of each level.

    Source: UniRef++ (arXiv:2312.15715), section 3.2, mask encoder; fusion blocks after STCN
    (arXiv:2106.05210).

    Attributes:
        folds: see ``unified.modeling.folding``.
    """

    folds: ClassVar[bool] = True

    def __init__(self, *, dim: int = 256, width: int = 64) -> None:
        """``width`` is the channel count of the first stage; stages double it three times."""
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.final_layer = nn.Sequential(
            nn.Conv2d(8 * width, dim, 3, stride=2, padding=1), nn.GroupNorm(32, dim)
        )
        self.fuser2 = FeatureFusion(dim + 2 * width, dim)
        self.fuser3 = FeatureFusion(dim + 4 * width, dim)
        self.fuser4 = FeatureFusion(dim + 8 * width, dim)
        self.fuser5 = FeatureFusion(2 * dim, dim)

    def forward(
        self, images: Tensor, masks: Tensor, features: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Reference values per level.

        Args:
            images: (B, 3, H, W) normalised and padded, H and W multiples of 32.
            masks: (B, H, W) bool or 0/1, zero on padding.
            features: L x (B, dim, H_l, W_l) projected features of the same images.

        Returns:
            L x (B, dim, H_l, W_l).
        """
        x = convolve(self.conv1, images, masks[:, None].to(images.dtype))
        if x.device.type == "cpu" and not x.requires_grad and not torch.compiler.is_compiling():
            # Pooling is faster on pixels whose channels lie together. Which of several equal pixels
            # gets the gradient depends on it, so training keeps the order of the reference.
            x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu(F.max_pool2d(self.bn1(x), 3, stride=2, padding=1)).contiguous()
        x = self.layer1(x)
        values = []
        stages = (self.layer2, self.layer3, self.layer4, self.final_layer)
        fusers = (self.fuser2, self.fuser3, self.fuser4, self.fuser5)
        for stage, fuser, feature in zip(stages, fusers, features, strict=True):
            x = stage(x)
            values.append(fuser(x, feature))
        return tuple(values)


def _stage(in_dim: int, dim: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(in_dim, dim, stride=stride), BasicBlock(dim, dim, stride=1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut. Source: ResNet (arXiv:1512.03385), figure 5 left."""

    def __init__(self, in_dim: int, dim: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(dim)
        self.downsample = None
        if stride != 1 or in_dim != dim:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_dim, dim, 1, stride=stride), nn.BatchNorm2d(dim)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim, H, W) -> (B, dim, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class FeatureFusion(nn.Module):
    """Residual block, plus channel and spatial attention on its output, residual block."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.block1 = PreActivationBlock(in_dim, dim)
        self.attention = CBAM(dim)
        self.block2 = PreActivationBlock(dim, dim)

    def forward(self, mask_feature: Tensor, image_feature: Tensor) -> Tensor:
        """Two maps of one size (B, C1, h, w), (B, C2, h, w) -> (B, dim, h, w)."""
        x = self.block1(mask_feature, image_feature)
        return self.block2(x + self.attention(x))


class PreActivationBlock(nn.Module):
    """ReLU before each convolution; the shortcut is projected from the raw input."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(in_dim, dim, 3, padding=1) if in_dim != dim else None
        self.conv1 = nn.Conv2d(in_dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, *parts: Tensor) -> Tensor:
        """Parts (B, C_i, h, w) of in_dim channels together -> (B, dim, h, w)."""
        if self.downsample is None:
            shortcut = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        else:
            shortcut = convolve(self.downsample, *parts)
        x = convolve(self.conv1, *(F.relu(once(part)) for part in parts))
        return shortcut + self.conv2(F.relu(x))


def convolve(conv: nn.Conv2d, *parts: Tensor) -> Tensor:
    """A convolution of parts (B, C_i, h, w) that are concatenated.

    A part that repeats one image, (1, C_i, h, w) or views of it, is convolved once: convolution is
    linear.
    """
    single = [once(part) for part in parts]
    if exporting() or all(part.shape[0] == single[0].shape[0] for part in single):
        return conv(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
    weights = conv.weight.split([part.shape[1] for part in parts], dim=1)
    pairs = zip(single, weights, strict=True)
    maps = [F.conv2d(x, w, stride=conv.stride, padding=conv.padding) for x, w in pairs]
    total = sum(maps[1:], maps[0])
    return total if conv.bias is None else total + conv.bias[:, None, None]


class CBAM(nn.Module):
    """Channel gate, then spatial gate. Source: CBAM (arXiv:1807.06521), without its norm layer."""

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, dim // reduction)
        self.channel = nn.Sequential(
            nn.Flatten(), nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape, gated."""
        pooled = self.channel(F.adaptive_avg_pool2d(x, 1)) + self.channel(
            F.adaptive_max_pool2d(x, 1)
        )
        x = x * pooled.sigmoid()[:, :, None, None]
        extremes = torch.stack((x.amax(dim=1), x.mean(dim=1)), dim=1)  # (B, 2, h, w)
        return x * self.spatial(extremes).sigmoid()
