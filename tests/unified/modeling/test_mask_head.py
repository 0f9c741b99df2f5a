from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.modeling.layers import aligned_bilinear
from unified.modeling.mask_head import MaskHead, PixelDecoder

DIM = 32


def head() -> MaskHead:
    torch.manual_seed(0)
    mask_head = MaskHead(dim=DIM, high_res_dim=12).eval()
    with torch.no_grad():
        for parameter in mask_head.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return mask_head


def dynamic_inputs(size: tuple[int, int] = (6, 9)) -> tuple[Tensor, Tensor, Tensor]:
    """Mask features, states and points of 2 images with 3 queries each."""
    generator = torch.Generator().manual_seed(1)
    height, width = size
    extent = torch.tensor([4.0 * width, 4.0 * height])
    return (
        torch.randn(2, 8, height, width, generator=generator),
        torch.randn(2, 3, DIM, generator=generator),
        torch.rand(2, 3, 2, generator=generator) * extent,
    )


def query_by_query(mask_head: MaskHead, features: Tensor, hidden: Tensor, points: Tensor) -> Tensor:
    """Three 1x1 convolutions per query, over a map with the offsets written in pixel by pixel."""
    batch, num = points.shape[:2]
    height, width = features.shape[-2:]
    logits = torch.zeros(batch, num, height, width)
    for image in range(batch):
        for query in range(num):
            numbers = mask_head.controller(hidden[image, query])
            weights, biases = numbers[:152], numbers[152:]
            stacked = torch.zeros(1, 10, height, width)
            for row in range(height):
                for column in range(width):
                    centre = torch.tensor([4.0 * column + 2, 4.0 * row + 2])
                    stacked[0, :2, row, column] = points[image, query] - centre
            stacked[0, 2:] = features[image]
            x = F.relu(F.conv2d(stacked, weights[:80].view(8, 10, 1, 1), biases[:8]))
            x = F.relu(F.conv2d(x, weights[80:144].view(8, 8, 1, 1), biases[8:16]))
            x = F.conv2d(x, weights[144:].view(1, 8, 1, 1), biases[16:])
            logits[image, query] = x[0, 0]
    return logits


def test_masks_are_three_convolutions_that_the_query_predicts() -> None:
    mask_head = head()
    with torch.no_grad():
        expected = query_by_query(mask_head, *dynamic_inputs())
        torch.testing.assert_close(mask_head(*dynamic_inputs()), expected, atol=1e-4, rtol=1e-5)
        full = mask_head(*dynamic_inputs(), mask_stride=1)
    torch.testing.assert_close(full, aligned_bilinear(expected, 4), atol=1e-4, rtol=1e-5)


def test_queries_and_images_do_not_see_each_other() -> None:
    mask_head = head()
    features, hidden, points = dynamic_inputs()
    together = mask_head(features, hidden, points)
    for image in range(2):
        row = slice(image, image + 1)
        for query in range(3):
            one = slice(query, query + 1)
            alone = mask_head(features[row], hidden[row, one], points[row, one])
            torch.testing.assert_close(together[row, one], alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_offsets_of_a_large_image_survive_autocast(dtype: torch.dtype) -> None:
    """bfloat16 counts pixels in steps of 4 from 512 on, which would move contours."""
    mask_head = head()
    features, hidden, points = dynamic_inputs((64, 240))
    with torch.no_grad():
        expected = mask_head(features, hidden, points)
        with torch.autocast("cpu", dtype=dtype):
            ours = mask_head(features, hidden, points)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected)


def levels() -> list[Tensor]:
    """Encoder memory at strides 8 to 64 of a 96 x 160 input."""
    generator = torch.Generator().manual_seed(2)
    sizes = ((12, 20), (6, 10), (3, 5), (2, 3))
    return [torch.randn(2, DIM, h, w, generator=generator) for h, w in sizes]


def test_pixel_decoder_goes_from_coarse_to_fine() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(DIM).eval()
    fine, middle, coarse, _ = levels()
    x = decoder.coarse(coarse).relu()
    x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) + middle
    x = decoder.middle(x).relu()
    x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) + fine
    x = decoder.fine(x).relu()
    expected = decoder.project(decoder.reduce(x).relu()).relu()
    torch.testing.assert_close(decoder(levels()), expected)


def test_features_add_the_stride_4_map_before_the_last_convolutions() -> None:
    mask_head = head()
    high_res = torch.randn(2, 12, 24, 40, generator=torch.Generator().manual_seed(3))
    x = mask_head.pixel_decoder(levels())
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    x = mask_head.output_conv(x + mask_head.lateral_conv(high_res)).relu()
    torch.testing.assert_close(
        mask_head.features(levels(), high_res), mask_head.mask_conv(x), atol=1e-5, rtol=1e-5
    )


def test_gradient_reaches_every_parameter() -> None:
    mask_head = head().train()
    features, hidden, points = dynamic_inputs((24, 40))
    shared = mask_head.features(levels(), torch.randn(2, 12, 24, 40)) + features
    mask_head(shared, hidden, points).square().mean().backward()
    for name, parameter in mask_head.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
