"""Boxes: the two corner conventions, IoU and generalised IoU.

cxcywh and xyxy name the four numbers of the last dimension; any unit works as long as both boxes
of a function share it.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-7


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size (..., 4) to the top left and bottom right corner (..., 4)."""
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Top left and bottom right corner (..., 4) to centre and size (..., 4)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Areas (...) of xyxy boxes (..., 4)."""
    size = boxes[..., 2:] - boxes[..., :2]
    return size[..., 0] * size[..., 1]


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU (..., N, M) of xyxy boxes (..., N, 4) and (..., M, 4); 0 where both are empty."""
    intersection, union = _overlap(boxes1[..., :, None, :], boxes2[..., None, :, :])
    return intersection / _nonzero(union)


def pairwise_giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU (..., N, M) of xyxy boxes (..., N, 4) and (..., M, 4), as a matching cost.

    Source: Rezatofighi et al. (arXiv:1902.09630), equation in algorithm 1; the reference adds 1e-7
    to the enclosing area only.
    """
    first, second = boxes1[..., :, None, :], boxes2[..., None, :, :]
    intersection, union = _overlap(first, second)
    enclosing = _enclosing_area(first, second)
    return intersection / _nonzero(union) - (enclosing - union) / (enclosing + EPSILON)


def giou_loss(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """1 - generalised IoU (N,) of box i with box i, both xyxy (N, 4); finite on empty boxes.

    Source: as ``pairwise_giou``, with 1e-7 added to union and enclosing area, as fvcore does.
    """
    intersection, union = _overlap(boxes1, boxes2)
    enclosing = _enclosing_area(boxes1, boxes2)
    iou = intersection / (union + EPSILON)
    return 1 - (iou - (enclosing - union) / (enclosing + EPSILON))


def _overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    size = (high - low).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    return intersection, box_area(first) + box_area(second) - intersection


def _enclosing_area(first: Tensor, second: Tensor) -> Tensor:
    low = torch.minimum(first[..., :2], second[..., :2])
    high = torch.maximum(first[..., 2:], second[..., 2:])
    return box_area(torch.cat([low, high], dim=-1))


def _nonzero(area: Tensor) -> Tensor:
    """Keeps 0 / 0 of two empty boxes at 0; no other quotient changes."""
    return area.clamp(min=torch.finfo(area.dtype).tiny)
