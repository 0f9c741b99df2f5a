"""Folded norms: the same numbers from the same weights, and the original stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unified.modeling.backbones import build_backbone
from unified.modeling.folding import fold, foldable, twin
from unified.modeling.mask_encoder import MaskEncoder


def with_random_norms(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for part in module.modules():
        if hasattr(part, "running_var"):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(part, name).data.uniform_(0.5, 1.5)
    return module.eval()


def norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if hasattr(part, "running_var")]


def folded(module: nn.Module) -> nn.Module:
    ready = twin(module)
    for pair in list(foldable(ready)):
        fold(pair)
    return ready


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_lite0"])
def test_a_folded_backbone_gives_the_same_maps_without_a_norm(name: str) -> None:
    backbone = with_random_norms(build_backbone(name))
    kept = {key: value.clone() for key, value in backbone.state_dict().items()}
    ready, images = folded(backbone), torch.randn(1, 3, 40, 56)
    assert norms(backbone) and not norms(ready)
    with torch.no_grad():
        for ours, expected in zip(ready(images).values(), backbone(images).values(), strict=True):
            limit = 1e-5 * float(expected.abs().max())
            torch.testing.assert_close(ours, expected, rtol=0, atol=limit)
    assert all(torch.equal(value, kept[key]) for key, value in backbone.state_dict().items())


def test_a_folded_mask_encoder_gives_the_same_values() -> None:
    encoder = with_random_norms(MaskEncoder(dim=32, width=8))
    ready = folded(encoder)
    assert norms(encoder) and not norms(ready)
    images, masks = torch.randn(1, 3, 128, 128), torch.rand(1, 128, 128) > 0.5
    levels = [torch.randn(1, 32, 128 // stride, 128 // stride) for stride in (8, 16, 32, 64)]
    with torch.no_grad():
        pairs = zip(ready(images, masks, levels), encoder(images, masks, levels), strict=True)
        for ours, expected in pairs:
            limit = 1e-5 * float(expected.abs().max())
            torch.testing.assert_close(ours, expected, rtol=0, atol=limit)


def test_norms_that_learn_are_left_alone() -> None:
    assert not list(foldable(MaskEncoder(dim=32, width=8).train()))


def test_a_twin_shares_weights_and_nothing_else() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"first": shared, "second": nn.Sequential(shared, nn.ReLU())})
    copied = twin(model)
    assert copied["first"] is copied["second"][0] is not shared
    assert copied["first"].weight is shared.weight
    copied["first"].weight = nn.Parameter(torch.zeros(2, 2))
    copied["second"][1] = nn.Identity()
    assert shared.weight.any() and isinstance(model["second"][1], nn.ReLU)
