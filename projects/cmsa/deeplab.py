"""The trunk of DeepLab: a ResNet-101 whose last three stages share one stride."""

from __future__ import annotations

from torch import Tensor, nn

from unified.dependencies import require
from unified.modeling.backbones.base import Backbone, FrozenBatchNorm2d, freeze_batch_norms

NAME = "deeplab_resnet101"
STRIDE = 8
SLIM_EPSILON = 1e-3
_DILATIONS = {"layer3": 2, "layer4": 4}


class _Stem(nn.Sequential):
    """Mirrors the channels first: DeepLab was trained on BGR."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1))


def build_deeplab(*, freeze_at: int = 5) -> Backbone:
    """ResNet-101 with stride 8 throughout res3, res4 and res5, frozen batch norms.

    The stride of a stage is in its first 1x1 convolution, res4 and res5 are dilated 2 and 4 times,
    and padding is TensorFlow's, at the right and bottom first. Images have sizes that are multiples
    of 8 and mean (122.679, 116.669, 104.007) RGB, no other scaling.

    Source: DeepLab (arXiv:1606.00915) as converted in DrSleep/tensorflow-deeplab-resnet, on which
    CMSA-Net builds.

    Args:
        freeze_at: as for any ``Backbone``; 5 freezes all of it.
    """
    net = require("timm").create_model("resnet101", pretrained=False, num_classes=0)
    for name, dilation in _DILATIONS.items():
        for block in getattr(net, name):
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    for stage in (net.layer2, net.layer3, net.layer4):
        stride = (2, 2) if stage is net.layer2 else (1, 1)
        stage[0].conv1.stride = stage[0].downsample[0].stride = stride
        stage[0].conv2.stride = (1, 1)
    net.conv1.padding = (0, 0)
    freeze_batch_norms(net)
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = SLIM_EPSILON
    stem = _Stem()
    for name, module in (
        ("pad1", nn.ZeroPad2d((2, 3, 2, 3))),
        ("conv1", net.conv1),
        ("bn1", net.bn1),
        ("act1", net.act1),
        ("pad2", nn.ZeroPad2d((0, 1, 0, 1))),  # what is pooled is not negative
        ("maxpool", nn.MaxPool2d(3, stride=2)),
    ):
        stem.add_module(name, module)
    backbone = Backbone(
        stem=stem,
        stages=[net.layer1, net.layer2, net.layer3, net.layer4],
        channels=[256, 512, 1024, 2048],
        strides=[4, STRIDE, STRIDE, STRIDE],
        freeze_at=freeze_at,
    )
    backbone.name = NAME
    return backbone
