"""Mask logits of a model as masks of the frame's size, and as one label map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unified.structures import Size

MASK_THRESHOLD = 0.5
SAME_OBJECT_IOU = 0.5
MAX_LOGIT = 6.0  # logits beyond say no more when two masks are joined


def mask_probabilities(
    mask_logits: Tensor, *, stride: int, image_size: Size, original_size: Size
) -> Tensor:
    """Mask logits of the padded model input as probabilities at the size the user gave.

    Args:
        mask_logits: (N, h, w) at ``stride`` of the padded input; padding at the right and bottom.
        stride: pixels of the padded input per logit.
        image_size: (h, w) of the model input before padding.
        original_size: (H, W) of the result.

    Returns:
        (N, H, W) in [0, 1].

    Source: UniRef ``inference_vos_3f``: bilinear, sigmoid, crop, bilinear.
    """
    return _resize(_crop(mask_logits, stride, image_size), original_size, mode="bilinear")


def binary_masks(
    mask_logits: Tensor,
    *,
    stride: int,
    image_size: Size,
    original_size: Size,
    threshold: float = MASK_THRESHOLD,
) -> Tensor:
    """Like ``mask_probabilities``, but thresholded before a nearest resize: (N, H, W) bool.

    This is the rule of single images. Source: UniRef ``segmentation_postprocess``.
    """
    masks = (_crop(mask_logits, stride, image_size) > threshold).float()
    return _resize(masks, original_size, mode="nearest").bool()


def _crop(mask_logits: Tensor, stride: int, image_size: Size) -> Tensor:
    """(N, h, w) logits -> (N, h * stride, w * stride) probabilities without the padding."""
    if not len(mask_logits):  # torch resizes no empty stack
        return mask_logits.new_zeros(0, *image_size)
    logits = mask_logits[None]
    if stride > 1:
        logits = F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
    height, width = image_size
    return logits[0, :, :height, :width].sigmoid()


def _resize(masks: Tensor, size: Size, *, mode: str) -> Tensor:
    if masks.shape[-2:] == size:
        return masks
    if not len(masks):
        return masks.new_zeros(0, *size)
    align_corners = False if mode == "bilinear" else None
    return F.interpolate(masks[None], size=size, mode=mode, align_corners=align_corners)[0]


def resize_mask(mask: Tensor, size: Size) -> Tensor:
    """A mask (H, W) at ``size``, (h, w) bool; every object is left with a pixel at least.

    Nearest neighbour, the sample at the upper left of each pixel. Where that would lose more than
    half of an object, which is tiny or a thin line, every pixel is kept that the object touches.
    Source: UniRef ``inference_vos_3f``, ``F.interpolate`` of the merged mask.
    """
    if mask.dtype != torch.bool:
        mask = mask > MASK_THRESHOLD
    resized = _resize(mask.float()[None], size, mode="nearest")[0].bool()
    share = size[0] * size[1] / mask.numel()
    if resized.sum() < mask.sum() * share / 2:
        rows, columns = mask.nonzero(as_tuple=True)
        resized[rows * size[0] // mask.shape[0], columns * size[1] // mask.shape[1]] = True
    return resized


@dataclass(frozen=True)
class Joint:
    """One answer made of those about a picture and its mirror image.

    Attributes:
        probability: (H, W) in [0, 1].
        score: (), the sigmoid of the mean of both logits: shifting both logits shifts it alike.
        weights: (2,) of the answers, with sum 1.
    """

    probability: Tensor
    score: Tensor
    weights: Tensor


def join_mirrored(probabilities: Tensor, scores: Tensor) -> Joint:
    """The average of both masks if they show the same object, else that with the higher score.

    They do if their IoU is above 0.5, or both are empty.

    Args:
        probabilities: (2, H, W) in [0, 1], the second one of the mirror image.
        scores: (2,) in (0, 1).
    """
    maps = torch.stack((probabilities[0], probabilities[1].flip(-1)))
    first, second = maps > MASK_THRESHOLD
    shared, covered = (first & second).sum(), (first | second).sum()
    if shared > SAME_OBJECT_IOU * covered or not covered:
        weights = maps.new_full((2,), 0.5)
    else:
        weights = F.one_hot(scores.argmax(), 2).to(maps)
    return Joint(
        probability=(weights[:, None, None] * maps).sum(dim=0),
        score=scores.float().logit(eps=1e-6).mean().sigmoid(),
        weights=weights,
    )


def mean_logits(first: Tensor, second: Tensor) -> Tensor:
    """Mean of two mask logits of one shape, each held within +-``MAX_LOGIT``."""
    return (first.clamp(-MAX_LOGIT, MAX_LOGIT) + second.clamp(-MAX_LOGIT, MAX_LOGIT)) / 2


def soft_aggregate(probabilities: Tensor) -> Tensor:
    """(O, H, W) object probabilities -> (O + 1, H, W) with the background first.

    The background is what no object claims, the product of 1 - p; its argmax over the first axis
    is 0 where that product is the largest. Source: UniRef++ (arXiv:2312.15715), section 3.4.
    """
    background = (1 - probabilities).prod(dim=0, keepdim=True)
    return torch.cat([background, probabilities])


def merge(probabilities: Tensor, object_ids: Sequence[int]) -> Tensor:
    """The label map (H, W) uint8 of objects with probabilities (O, H, W), by soft aggregation.

    ``object_ids`` ascend: where two objects are equally likely, the smaller id gets the pixel.
    """
    winner = soft_aggregate(probabilities).max(dim=0).indices  # argmax is far slower on CPUs
    ids = torch.tensor([0, *object_ids], dtype=torch.uint8, device=probabilities.device)
    return ids[winner]
