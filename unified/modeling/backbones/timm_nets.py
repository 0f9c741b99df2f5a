"""Backbones whose blocks come from timm: ResNet, ConvNeXt, EfficientNet-Lite0.

timm is imported when one is built; no weights are downloaded.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.dependencies import require
from unified.modeling.backbones.base import Backbone, freeze_batch_norms
from unified.modeling.precision import widen
from unified.structures import exporting


def _create(name: str, drop_path: float) -> Any:
    timm = require("timm")
    return timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path)


def build_resnet(
    *, depth: int, drop_path: float = 0.0, freeze_at: int = 2, checkpoint: bool = False
) -> Backbone:
    """ResNet with stride in the 3x3 convolutions and frozen batch norms.

    Source: He et al. (arXiv:1512.03385); Detectron2 ``build_resnet_backbone`` with
    STRIDE_IN_1X1 False and norm FrozenBN.
    """
    net = _create(f"resnet{depth}", drop_path)
    freeze_batch_norms(net)
    return Backbone(
        stem=nn.Sequential(
            OrderedDict(conv1=net.conv1, bn1=net.bn1, act1=net.act1, maxpool=net.maxpool)
        ),
        stages=[net.layer1, net.layer2, net.layer3, net.layer4],
        channels=[256, 512, 1024, 2048],
        freeze_at=freeze_at,
        checkpoint=checkpoint,
    )


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a channels-first map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


def build_convnext(
    *, size: str, drop_path: float = 0.4, freeze_at: int = 0, checkpoint: bool = False
) -> Backbone:
    """ConvNeXt with a layer norm per output.

    Source: Liu et al. (arXiv:2201.03545); the output norms and the rate of stochastic depth are
    those of ``object_detection`` in facebookresearch/ConvNeXt.
    """
    net = _create(f"convnext_{size}", drop_path)
    stages = [
        nn.Sequential(OrderedDict(downsample=stage.downsample, blocks=stage.blocks))
        for stage in net.stages
    ]
    channels = [info["num_chs"] for info in net.feature_info]
    return Backbone(
        stem=net.stem,
        stages=stages,
        norms=[ChannelNorm(dim, eps=1e-6) for dim in channels],
        channels=channels,
        divisor=32,  # its unpadded strided convolutions would drop the last rows and columns
        freeze_at=freeze_at,
        checkpoint=checkpoint,
    )


class DepthwiseConv(nn.Module):
    """Depthwise convolution with TensorFlow's padding: at the right and bottom first.

    On CPUs it leaves autocast: its backward pass in bfloat16 takes several times as long there.
    """

    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        """Takes over weight and stride of ``conv``."""
        super().__init__()
        self.weight, self.stride = conv.weight, conv.stride
        self.register_parameter("bias", None)  # of a norm that was folded in

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        if x.device.type != "cpu":
            return self._convolve(x)
        with torch.autocast("cpu", enabled=False):
            return self._convolve(x.to(widen(self.weight).dtype))

    def _convolve(self, x: Tensor) -> Tensor:
        """One more row of zeros in the kernel is cheaper than a padded copy of the map.

        Programs pad the map: ONNX Runtime makes that part of the convolution, and mistakes a kernel
        that is padded for a map.
        """
        more, padding = [], []
        for size, kernel, stride in zip(
            x.shape[2:], self.weight.shape[2:], self.stride, strict=True
        ):
            total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            more.append(total % 2)
            padding.append(total - total // 2)
        weight, bias = self.weight, self.bias
        if x.device.type == "cpu":
            weight, bias = widen(weight), None if bias is None else widen(bias)
        if any(more) and exporting():
            top, left = (side - extra for side, extra in zip(padding, more, strict=True))
            x, padding = F.pad(x, (left, padding[1], top, padding[0])), [0, 0]
        elif any(more):
            weight = F.pad(weight, (more[1], 0, more[0], 0))
        return F.conv2d(x, weight, bias, stride=self.stride, padding=padding, groups=x.shape[1])


def _replace_depthwise_convs(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and child.groups == child.in_channels > 1:
            setattr(module, name, DepthwiseConv(child))
        else:
            _replace_depthwise_convs(child)


def build_efficientnet_lite0(
    *, drop_path: float = 0.0, freeze_at: int = 0, checkpoint: bool = False
) -> Backbone:
    """EfficientNet-Lite0 without its classification head, frozen batch norms.

    Images are normalised with mean 127 and standard deviation 128 on the 0..255 scale, and
    convolutions pad at the right and bottom first, both as TensorFlow trained it.

    Source: Liu, "Higher accuracy on vision models with EfficientNet-Lite" (TensorFlow blog).
    """
    net = _create("tf_efficientnet_lite0", drop_path)
    freeze_batch_norms(net)
    _replace_depthwise_convs(net)
    groups = list(net.blocks)  # seven, at strides 2, 4, 8, 16, 16, 32, 32
    return Backbone(
        stem=nn.Sequential(OrderedDict(conv_stem=net.conv_stem, bn1=net.bn1)),
        stages=[
            nn.Sequential(*groups[0], *groups[1]),
            groups[2],
            nn.Sequential(*groups[3], *groups[4]),
            nn.Sequential(*groups[5], *groups[6]),
        ],
        channels=[24, 40, 112, 320],
        freeze_at=freeze_at,
        checkpoint=checkpoint,
    )
