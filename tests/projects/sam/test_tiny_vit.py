"""The image encoder of MobileSAM as it runs on a CPU, against timm's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from projects.sam.building import build_mobile
from projects.sam.tiny_vit import TinyVit
from unified.inference.frames import autocast

TOLERANCE = 1e-5


def encoder() -> TinyVit:
    """With norms as after training."""
    torch.manual_seed(0)
    vision = build_mobile(image_size=160).vision_encoder
    for module in vision.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.bias, std=0.2)
    return vision.eval()


def by_timm(vision: TinyVit, images: Tensor) -> Tensor:
    return vision.neck(vision.stages(vision.patch_embed(images)).permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [(2, 160, 160), (1, 224, 96), (1, 128, 256)])
@torch.inference_mode()
def test_strips_and_windows_give_the_numbers_of_timm(size: tuple[int, int, int]) -> None:
    """Windows of 7 and of 14 are padded in one way or the other, strips begin and end."""
    vision, (num, height, width) = encoder(), size
    images = torch.randn(num, 3, height, width)
    wanted = by_timm(vision, images)
    assert wanted.shape == (num, 256, height // 16, width // 16)
    assert wanted.std() > 0.1
    torch.testing.assert_close(vision(images), wanted, atol=TOLERANCE, rtol=TOLERANCE)


@torch.inference_mode()
def test_half_precision_is_near() -> None:
    vision, images = encoder(), torch.randn(1, 3, 160, 160)
    wanted = by_timm(vision, images)
    with autocast(images.device, "bfloat16"):
        found = vision(images).float()
    assert (found - wanted).abs().mean() < 0.02 * wanted.std()


def test_in_training_norms_see_the_batch() -> None:
    vision, images = encoder(), torch.randn(2, 3, 160, 160)
    before = vision.patch_embed.conv1.bn.running_mean.clone()
    vision.train()
    vision(images).mean().backward()
    assert not torch.equal(before, vision.patch_embed.conv1.bn.running_mean)
    assert all(p.grad is not None for p in vision.parameters())


def test_gradients_reach_weights_whose_norms_are_fixed() -> None:
    vision, images = encoder(), torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        wanted = vision(images)
    found = vision(images)
    found.mean().backward()
    torch.testing.assert_close(found.detach(), wanted, atol=TOLERANCE, rtol=TOLERANCE)
    silent = {name for name, p in vision.named_parameters() if p.grad is None}
    assert all("attention_biases" in name for name in silent)  # timm keeps them as they were
