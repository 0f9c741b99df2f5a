"""What the predictors make of a model."""

from __future__ import annotations

import torch
from torch import nn

from unified.inference.prepared import prepared
from unified.modeling.backbones import build_backbone


def test_a_model_without_norms_is_run_as_it_is() -> None:
    plain = nn.Conv2d(1, 1, 1).eval()
    assert prepared(plain) is plain


def test_norms_are_folded_once_and_the_twin_can_be_used_anywhere() -> None:
    backbone = build_backbone("efficientnet_lite0").eval()
    with torch.inference_mode():
        ready = prepared(backbone)
    assert ready is not backbone and prepared(ready) is ready
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    ready(images)["res5"].sum().backward()  # no tensor of inference mode is in the way
    assert images.grad is not None
