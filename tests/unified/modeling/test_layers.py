from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unified.modeling.layers import (
    MLP,
    DropPath,
    aligned_bilinear,
    box_position,
    inverse_sigmoid,
    masked_mean,
    resize_padding_mask,
    sine_position,
)


def padding(*sizes: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    mask = torch.ones(len(sizes), *shape, dtype=torch.bool)
    for row, (height, width) in zip(mask, sizes, strict=True):
        row[:height, :width] = False
    return mask


def code(angle: float, num_channels: int, temperature: float = 10000.0) -> list[float]:
    """Sine and cosine of one number at falling frequencies, by the formula."""
    values = []
    for channel in range(num_channels):
        value = angle / temperature ** (2 * (channel // 2) / num_channels)
        values.append(math.cos(value) if channel % 2 else math.sin(value))
    return values


def test_sine_position_is_the_formula_over_the_unpadded_extent() -> None:
    sizes = ((5, 7), (3, 4))
    ours = sine_position(padding(*sizes, shape=(5, 7)), 16)
    for image, (height, width) in enumerate(sizes):
        for row in range(height):
            for column in range(width):
                y = 2 * math.pi * (row + 0.5) / (height + 1e-6)
                x = 2 * math.pi * (column + 0.5) / (width + 1e-6)
                expected = torch.tensor([*code(y, 8), *code(x, 8)])
                torch.testing.assert_close(ours[image, :, row, column], expected, atol=2e-6, rtol=0)


def test_box_position_is_the_formula_per_coordinate() -> None:
    boxes = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    ours = box_position(boxes, 8)
    assert ours.shape == (2, 3, 32)
    for image in range(2):
        for query in range(3):
            box = boxes[image, query].tolist()
            expected = [value for side in box for value in code(2 * math.pi * side, 8)]
            torch.testing.assert_close(
                ours[image, query], torch.tensor(expected), atol=2e-6, rtol=0
            )


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_aligned_bilinear_interpolates_between_shifted_centres(factor: int) -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))

    def sample(position: int, length: int) -> tuple[int, int, float]:
        where = min(max((position - factor // 2) / factor, 0.0), length - 1.0)
        low = math.floor(where)
        return low, min(low + 1, length - 1), where - low

    ours = aligned_bilinear(logits, factor)
    assert ours.shape == (2, 3, 4 * factor, 5 * factor)
    for row in range(4 * factor):
        top, bottom, down = sample(row, 4)
        for column in range(5 * factor):
            left, right, across = sample(column, 5)
            upper = (1 - across) * logits[..., top, left] + across * logits[..., top, right]
            lower = (1 - across) * logits[..., bottom, left] + across * logits[..., bottom, right]
            expected = (1 - down) * upper + down * lower
            torch.testing.assert_close(ours[..., row, column], expected, atol=1e-5, rtol=0)


def test_masked_mean_is_the_mean_of_what_is_not_padding() -> None:
    tokens = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[False] * 4, [False, True, False, True], [True, True, True, False]])
    for row in range(3):
        expected = tokens[row][~mask[row]].mean(dim=0)
        torch.testing.assert_close(masked_mean(tokens, mask)[row], expected)


def test_masked_mean_ignores_the_padding_and_survives_nothing_else() -> None:
    tokens, mask = torch.randn(1, 4, 5), torch.tensor([[False, False, True, True]])
    changed = tokens.clone()
    changed[:, 2:] = 1e6
    torch.testing.assert_close(masked_mean(changed, mask), masked_mean(tokens, mask))
    assert masked_mean(tokens, torch.ones(1, 4, dtype=torch.bool)).isfinite().all()


def test_masked_mean_of_many_half_precision_tokens_is_finite() -> None:
    """A level of an 800 x 1333 image has 16,700 tokens; their sum is above float16's 65,504."""
    tokens = torch.full((1, 16700, 2), 5.0, dtype=torch.float16)
    mean = masked_mean(tokens, torch.zeros(1, 16700, dtype=torch.bool))
    assert mean.dtype == torch.float16
    torch.testing.assert_close(mean, torch.full((1, 2), 5.0, dtype=torch.float16))


def test_inverse_sigmoid() -> None:
    x = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    assert ends.isfinite().all()
    assert ends[0] == ends[1] == -ends[2] == -ends[3]


def test_resize_padding_mask_takes_the_nearest_pixel_above_and_left() -> None:
    mask = padding((37, 50), (64, 30), shape=(64, 64))
    ours = resize_padding_mask(mask, (8, 8))
    assert ours.dtype == torch.bool
    assert torch.equal(ours, mask[:, ::8, ::8])


def test_mlp_has_relu_between_its_layers_only() -> None:
    torch.manual_seed(0)
    mlp = MLP(3, 8, 2, num_layers=3)
    x = torch.randn(5, 3)
    first, second, third = mlp.layers
    torch.testing.assert_close(mlp(x), third(second(first(x).clamp(min=0)).clamp(min=0)))
    assert (mlp(torch.randn(200, 3)) < 0).any(), "no ReLU after the last layer"


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(2000, 3, 2)
    dropped = layer(x)
    assert all(len(row.unique()) == 1 for row in dropped)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(x), x)
