"""Answers of systems that give one logit per pixel."""

from __future__ import annotations

import torch

from unified.modeling.pixel_masks import joined_masks, pixel_segmentation
from unified.structures import FeaturePyramid, Target


def test_instances_are_joined_and_none_is_empty() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 3] = True
    nothing = torch.zeros(0, 4, 4, dtype=torch.bool)
    targets = [
        Target(torch.zeros(len(m), dtype=torch.int64), torch.zeros(len(m), 4), m)
        for m in (masks, nothing)
    ]
    joined = joined_masks(targets)
    assert joined.shape == (2, 1, 4, 4)
    assert joined[0].sum() == 5 and not joined[1].any()


def test_blocks_of_pixels_are_averaged() -> None:
    logits = torch.arange(64.0).reshape(1, 1, 8, 8)
    features = FeaturePyramid((logits,), (logits[:, 0] > 99,), ((8, 8),), (8, 8))
    answer = pixel_segmentation(logits, features, mask_stride=4)
    assert answer.mask_logits.flatten().tolist() == [13.5, 17.5, 45.5, 49.5]
    assert torch.equal(pixel_segmentation(logits, features, mask_stride=1).mask_logits, logits)
