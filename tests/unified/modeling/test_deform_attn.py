from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.modeling.deform_attn import MultiScaleDeformableAttention
from unified.modeling.deform_sum import sum_of_bags, sum_of_gathers, sum_of_grids

SHAPES = ((6, 8), (3, 4), (2, 2))
TOKENS = sum(h * w for h, w in SHAPES)


def by_grid_sample(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The same sum, one level, head and point at a time."""
    batch, _, heads, dim = value.shape
    total = torch.zeros(batch, locations.shape[1], heads, dim, dtype=value.dtype)
    start = 0
    for level, (height, width) in enumerate(SHAPES):
        stop = start + height * width
        for head in range(heads):
            image = value[:, start:stop, head].transpose(1, 2).unflatten(2, (height, width))
            for point in range(locations.shape[4]):
                grid = 2 * locations[:, :, head, level, point] - 1
                sampled = F.grid_sample(
                    image, grid[:, :, None], padding_mode="zeros", align_corners=False
                )  # (B, D, Q, 1)
                weight = weights[:, :, head, level, point, None]
                total[:, :, head] = total[:, :, head] + weight * sampled[..., 0].transpose(1, 2)
        start = stop
    return total.flatten(2)


def random_inputs(outside: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """value, locations from -outside to 1 + outside, weights; B 2, Q 9, heads 2, D 5, points 3."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, TOKENS, 2, 5, generator=generator)
    locations = torch.rand(2, 9, 2, len(SHAPES), 3, 2, generator=generator)
    weights = torch.rand(2, 9, 2, len(SHAPES), 3, generator=generator)
    return value, locations * (1 + 2 * outside) - outside, weights


@pytest.mark.parametrize("sample", [sum_of_bags, sum_of_gathers, sum_of_grids])
@pytest.mark.parametrize("outside", [0.0, 0.4, 3.0])
def test_sampling_and_its_gradients_equal_the_loop(
    sample: Callable[..., Tensor], outside: float
) -> None:
    ours = [x.requires_grad_() for x in random_inputs(outside)]
    theirs = [x.requires_grad_() for x in random_inputs(outside)]
    result = sample(ours[0], SHAPES, ours[1], ours[2])
    expected = by_grid_sample(theirs[0], theirs[1], theirs[2])
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)

    direction = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    (result * direction).sum().backward()
    (expected * direction).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, reference.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sample", [sum_of_bags, sum_of_gathers, sum_of_grids])
@pytest.mark.parametrize("corner", [0.0, 1.0])
def test_samples_at_the_border_count_only_what_is_inside(
    sample: Callable[..., Tensor], corner: float
) -> None:
    """At the very corner a quarter of the corner pixel is inside."""
    value = torch.ones(1, TOKENS, 1, 1)
    locations = torch.full((1, 1, 1, len(SHAPES), 1, 2), corner)
    weights = torch.ones(1, 1, 1, len(SHAPES), 1)
    assert sample(value, SHAPES, locations, weights).item() == pytest.approx(0.25 * len(SHAPES))


@pytest.mark.parametrize("sample", [sum_of_bags, sum_of_gathers, sum_of_grids])
def test_output_has_the_dtype_of_the_values(sample: Callable[..., Tensor]) -> None:
    value, locations, weights = random_inputs()
    half = sample(value.bfloat16(), SHAPES, locations, weights)
    assert half.dtype == torch.bfloat16
    full = sample(value, SHAPES, locations, weights)
    torch.testing.assert_close(half.float(), full, atol=3e-2, rtol=3e-2)


def module(seed: int = 0) -> MultiScaleDeformableAttention:
    torch.manual_seed(seed)
    attention = MultiScaleDeformableAttention(dim=16, num_heads=2, num_levels=3, num_points=3)
    with torch.no_grad():
        attention.sampling_offsets.weight.normal_(std=0.3)
        attention.attention_weights.weight.normal_(std=0.5)
    return attention


@pytest.mark.parametrize("coordinates", [2, 4])
def test_module_equals_the_formula(coordinates: int) -> None:
    attention = module()
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(2, 9, 16, generator=generator)
    tokens = torch.randn(2, TOKENS, 16, generator=generator)
    reference = torch.rand(2, 9, 3, coordinates, generator=generator)
    padding_mask = torch.rand(2, TOKENS, generator=generator) < 0.3

    value = attention.value_proj(tokens) * (~padding_mask)[..., None]
    weights = attention.attention_weights(query).view(2, 9, 2, 9).softmax(-1).view(2, 9, 2, 3, 3)
    offsets = attention.sampling_offsets(query).view(2, 9, 2, 3, 3, 2)
    locations = torch.empty_like(offsets)
    for level, (height, width) in enumerate(SHAPES):
        for point in range(3):
            move = offsets[:, :, :, level, point]  # (B, Q, heads, 2)
            if coordinates == 2:
                move = move / torch.tensor([width, height])
            else:
                move = move * reference[:, :, None, level, 2:] / (2 * 3)
            locations[:, :, :, level, point] = reference[:, :, None, level, :2] + move
    summed = by_grid_sample(value.view(2, TOKENS, 2, 8), locations, weights)
    expected = attention.output_proj(summed)
    ours = attention(query, reference, tokens, SHAPES, padding_mask)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_padded_tokens_have_no_influence() -> None:
    attention = module()
    query, reference = torch.randn(1, 4, 16), torch.rand(1, 4, 3, 2)
    tokens, padding_mask = torch.randn(1, TOKENS, 16), torch.zeros(1, TOKENS, dtype=torch.bool)
    padding_mask[:, ::3] = True
    changed = tokens.masked_fill(padding_mask[..., None], 1e4)
    torch.testing.assert_close(
        attention(query, reference, changed, SHAPES, padding_mask),
        attention(query, reference, tokens, SHAPES, padding_mask),
    )


def test_gradient_reaches_every_parameter() -> None:
    attention = module()
    output = attention(
        torch.randn(1, 4, 16), torch.rand(1, 4, 3, 4), torch.randn(1, TOKENS, 16), SHAPES
    )
    (output * torch.randn(output.shape)).sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_starts_with_heads_that_look_in_different_directions() -> None:
    attention = MultiScaleDeformableAttention(dim=32, num_heads=8, num_levels=4, num_points=4)
    offsets = attention.sampling_offsets.bias.detach().view(8, 4, 4, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 3])
    torch.testing.assert_close(
        offsets.abs().amax(dim=-1), torch.arange(1.0, 5).expand(8, 4, 4), atol=1e-5, rtol=0
    )
    angles = torch.atan2(offsets[:, 0, 0, 1], offsets[:, 0, 0, 0]) % (2 * math.pi)
    torch.testing.assert_close(angles, torch.arange(8) * (math.pi / 4), atol=1e-5, rtol=0)
    assert not attention.attention_weights.weight.any()


def test_width_must_be_divisible_by_heads() -> None:
    with pytest.raises(ValueError, match="dim 30 is not divisible by num_heads 8"):
        MultiScaleDeformableAttention(dim=30, num_heads=8)
