"""Logits to masks: padding, sizes and which object gets a pixel."""

from __future__ import annotations

import numpy as np
import torch

from unified.masks import binary_masks, mask_probabilities, merge, soft_aggregate


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
