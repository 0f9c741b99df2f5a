"""Logits to masks: padding, sizes and which object gets a pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unified.masks import (
    binary_masks,
    join_mirrored,
    mask_probabilities,
    merge,
    soft_aggregate,
)


def logits(value: float) -> float:
    return float(np.log(value / (1 - value)))


def test_soft_aggregation_of_two_objects() -> None:
    probabilities = torch.tensor([[[0.9, 0.3, 0.6, 0.1]], [[0.8, 0.4, 0.1, 0.1]]])
    merged = soft_aggregate(probabilities)
    expected = torch.tensor([0.1 * 0.2, 0.7 * 0.6, 0.4 * 0.9, 0.9 * 0.9])
    torch.testing.assert_close(merged[0, 0], expected)
    assert torch.equal(merged[1:], probabilities)
    # Second pixel: no object reaches one half, and the background (0.42) still beats 0.40.
    assert merge(probabilities, [3, 7]).tolist() == [[3, 0, 3, 0]]


def test_merge_gives_ties_to_the_smaller_id_and_no_object_is_all_background() -> None:
    assert merge(torch.ones(2, 1, 1), [4, 200]).tolist() == [[4]]
    empty = merge(torch.zeros(0, 2, 3), [])
    assert empty.shape == (2, 3) and empty.dtype == torch.uint8 and not empty.any()


def test_probabilities_leave_the_padding_out() -> None:
    """A model input of 8x12 of which 6x10 are image; beyond it the logits say object."""
    padded = torch.full((1, 8, 12), logits(0.2))
    padded[:, 6:] = padded[:, :, 10:] = logits(0.99)
    result = mask_probabilities(padded, stride=1, image_size=(6, 10), original_size=(12, 20))
    assert result.shape == (1, 12, 20)
    torch.testing.assert_close(result, torch.full((1, 12, 20), 0.2))


def test_probabilities_follow_the_formula_at_stride_4() -> None:
    """Bilinear in the logits first, then the sigmoid; written out for one row of two logits."""
    row = torch.tensor([[[-2.0, 6.0]]])
    result = mask_probabilities(row, stride=4, image_size=(4, 8), original_size=(4, 8))
    # Pixel centres at (i + 0.5) / 4 - 0.5 logits, clamped to the two logits at 0 and 1.
    position = ((torch.arange(8) + 0.5) / 4 - 0.5).clamp(0, 1)
    expected = (-2 + 8 * position).sigmoid().expand(4, 8)
    torch.testing.assert_close(result[0], expected)


def test_probabilities_are_resized_bilinearly_binary_masks_by_nearest() -> None:
    pair = torch.tensor([[[logits(0.9), logits(0.2)]]])
    sizes = {"stride": 1, "image_size": (1, 2), "original_size": (1, 4)}
    soft = mask_probabilities(pair, **sizes)
    torch.testing.assert_close(soft, torch.tensor([[[0.9, 0.725, 0.375, 0.2]]]))
    assert binary_masks(pair, **sizes).tolist() == [[[True, True, False, False]]]
    three = {"stride": 1, "image_size": (1, 2), "original_size": (1, 3)}
    # In between bilinear gives 0.55, above the threshold; nearest takes the left neighbour's.
    assert binary_masks(pair.flip(-1), **three).tolist() == [[[False, False, True]]]


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("size", [(16, 24), (30, 40)])
def test_no_mask_at_all_is_resized_too(stride: int, size: tuple[int, int]) -> None:
    nothing = torch.zeros(0, 16 // stride, 24 // stride)
    for resized in (mask_probabilities, binary_masks):
        found = resized(nothing, stride=stride, image_size=(16, 24), original_size=size)
        assert found.shape == (0, *size)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ((8, 8), [0.5, 0.5]),
        ((8, 5), [0.5, 0.5]),  # IoU 5/8
        ((8, 4), [0.0, 1.0]),  # IoU 1/2
        ((0, 4), [0.0, 1.0]),
        ((0, 0), [0.5, 0.5]),
    ],
)
def test_answers_are_averaged_where_they_show_the_same_object(
    columns: tuple[int, int], expected: list[float]
) -> None:
    maps = torch.full((2, 3, 10), 0.5)
    for answer, width in zip(maps, columns, strict=True):
        answer[:, :width] = 0.6
    maps[1] = maps[1].flip(-1)
    scores = torch.tensor([0.2, 0.3])
    joint = join_mirrored(maps, scores)
    assert joint.weights.tolist() == expected
    both = expected[0] * maps[0] + expected[1] * maps[1].flip(-1)
    torch.testing.assert_close(joint.probability, both)
    assert join_mirrored(maps, scores.flip(0)).weights.tolist() == expected[::-1]
    # What tools/calibrate.py relies on: a shift of both logits is the shift of the joint one.
    shifted = join_mirrored(maps, (scores.logit() + 1.5).sigmoid())
    assert float(shifted.score.logit()) == pytest.approx(float(joint.score.logit()) + 1.5, abs=1e-5)
