from __future__ import annotations

import torch
from torch import Tensor, nn

from unified.modeling.mask_encoder import CBAM, BasicBlock, MaskEncoder, PreActivationBlock

DIM = 32
SIZES = ((8, 12), (4, 6), (2, 3), (1, 2))


def encoder(dim: int = DIM) -> MaskEncoder:
    torch.manual_seed(0)
    module = MaskEncoder(dim=dim, width=8)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    return module.eval()


def inputs(dim: int = DIM) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Images, masks and projected features of 2 frames of 64 x 96."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 96, generator=generator)
    masks = torch.rand(2, 64, 96, generator=generator) < 0.3
    return images, masks, [torch.randn(2, dim, h, w, generator=generator) for h, w in SIZES]


def test_values_at_every_level() -> None:
    values = encoder()(*inputs())
    assert [tuple(value.shape) for value in values] == [(2, DIM, h, w) for h, w in SIZES]


def test_boolean_and_float_masks_are_the_same() -> None:
    images, masks, features = inputs()
    for ours, expected in zip(
        encoder()(images, masks.float(), features), encoder()(images, masks, features), strict=True
    ):
        assert torch.equal(ours, expected)


def test_mask_image_and_features_all_matter() -> None:
    module = encoder()
    images, masks, features = inputs()
    original = module(images, masks, features)
    changes = {
        "mask": module(images, ~masks, features),
        "image": module(images.flip(-1), masks, features),
        "features": module(images, masks, [x.flip(-1) for x in features]),
    }
    for name, changed in changes.items():
        for level, (before, after) in enumerate(zip(original, changed, strict=True)):
            assert (before - after).abs().max() > 1e-3, (name, level)


def test_batch_equals_loop() -> None:
    module = encoder()
    images, masks, features = inputs()
    together = module(images, masks, features)
    for row in (slice(0, 1), slice(1, 2)):
        alone = module(images[row], masks[row], [x[row] for x in features])
        for ours, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[row], expected, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_every_parameter() -> None:
    # One channel per group has nothing to normalise where a level is one pixel.
    module = encoder(dim=64).train()
    images, masks, features = inputs(dim=64)
    values = module(images, masks, features)
    sum((value * torch.randn(value.shape)).sum() for value in values).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_cbam_is_its_formula() -> None:
    torch.manual_seed(0)
    module = CBAM(DIM)
    x = torch.randn(2, DIM, 5, 6)
    _, squeeze, _, grow = module.channel
    assert isinstance(squeeze, nn.Linear) and squeeze.out_features == 2
    pooled = sum(
        grow(squeeze(summary).relu()) for summary in (x.mean(dim=(2, 3)), x.amax(dim=(2, 3)))
    )
    gated = x * pooled.sigmoid()[:, :, None, None]
    extremes = torch.stack([gated.max(dim=1).values, gated.mean(dim=1)], dim=1)
    expected = gated * module.spatial(extremes).sigmoid()
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


def test_blocks_are_residual() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8, 8)
    same = PreActivationBlock(6, 6)
    torch.testing.assert_close(same(x), x + same.conv2(same.conv1(x.relu()).relu()))
    wider = PreActivationBlock(6, 10)
    assert wider.downsample is not None
    torch.testing.assert_close(
        wider(x), wider.downsample(x) + wider.conv2(wider.conv1(x.relu()).relu())
    )
    block = BasicBlock(6, 6, stride=1).eval()
    inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    torch.testing.assert_close(block(x), (inner + x).relu())
    assert BasicBlock(6, 6, stride=2).downsample is not None
