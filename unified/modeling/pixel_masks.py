"""What systems share that give one mask per image, straight from its pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unified.errors import InputError
from unified.structures import FeaturePyramid, References, Segmentation, Target


def joined_masks(targets: Sequence[Target]) -> Tensor:
    """(B, 1, H, W) float, 1 where any instance of an image is."""
    masks = [target.masks for target in targets if target.masks is not None]
    assert len(masks) == len(targets)
    return torch.stack([mask.any(dim=0) for mask in masks])[:, None].float()


def only_sentence(references: Sequence[References]) -> References:
    """The sentence by which a system of sentences alone segments.

    Raises:
        InputError: there is none, or something beside it.
    """
    if len(references) != 1:
        raise InputError(
            f"expected one sentence about each picture, got {len(references)} references"
        )
    return references[0]


def pixel_segmentation(
    logits: Tensor, features: FeaturePyramid, *, mask_stride: int
) -> Segmentation:
    """The answer of a system that gives one logit per pixel.

    Args:
        logits: (B, 1, H, W) at the padded input size.
        features: of the same images.
        mask_stride: 1, or more to average blocks of so many pixels a side.
    """
    if mask_stride > 1:
        logits = F.avg_pool2d(logits, mask_stride)
    return Segmentation.of_masks(logits, features)
