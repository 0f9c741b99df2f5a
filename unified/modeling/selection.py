"""Which queries of a decoder output are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from unified.modeling.box_ops import cxcywh_to_xyxy


def select_queries(
    logits: Tensor, boxes: Tensor, top_k: int, nms_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (query, class) pairs of one image.

    With ``top_k`` = 1 suppression cannot change the result and is skipped.

    Args:
        logits: (Q, num_classes).
        boxes: (Q, 4) cxcywh.
        nms_threshold: a query falls when its box has a higher IoU than this with that of a better
            query of the same class.

    Returns:
        Query indices, scores in [0, 1] and classes, each (K,), K <= top_k, best first.
    """
    from torchvision.ops import batched_nms

    scores = logits.sigmoid()
    queries = torch.arange(len(logits), device=logits.device)
    if top_k > 1:
        best, label = scores.max(dim=-1)
        # In float32: torchvision suppresses no boxes of half precision on the CPU.
        corners = cxcywh_to_xyxy(boxes).float()
        queries = batched_nms(corners, best.float(), label, nms_threshold)
    pairs = scores[queries].flatten()
    score, index = pairs.topk(min(top_k, len(pairs)))
    num_classes = logits.shape[-1]
    return queries[index // num_classes], score, index % num_classes


def select_in_steps(
    logits: Tensor, boxes: Tensor, top_k: int, nms_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``select_queries`` of every image, in steps that do not depend on values, for programs.

    Args:
        logits: (B, Q, num_classes).
        boxes: (B, Q, 4) cxcywh.

    Returns:
        Query indices, scores and classes, each (B, top_k); where fewer queries are left, the rest
        has score 0.
    """
    _, num_queries, num_classes = logits.shape
    scores = logits.sigmoid()
    if top_k == 1:
        best, index = scores.flatten(1).max(dim=1, keepdim=True)
        return index // num_classes, best, index % num_classes
    confidence, label = scores.max(dim=-1)  # (B, Q)
    corners = cxcywh_to_xyxy(boxes).float()
    kept = torch.zeros_like(confidence, dtype=torch.bool)
    left = torch.ones_like(kept)
    for _ in range(min(top_k, num_queries)):
        best = confidence.masked_fill(~left, -1.0).argmax(dim=1, keepdim=True)  # (B, 1)
        kept = kept | (torch.zeros_like(kept).scatter(1, best, True) & left)
        box = corners.gather(1, best[..., None].expand(-1, -1, 4))  # (B, 1, 4)
        same = label == label.gather(1, best)
        left = left & ~(same & (_iou(corners, box) > nms_threshold)) & ~kept
    pairs = (scores * kept[..., None]).flatten(1)
    best, index = pairs.topk(min(top_k, pairs.shape[1]), dim=1)
    return index // num_classes, best, index % num_classes


def _iou(boxes: Tensor, other: Tensor) -> Tensor:
    """IoU (B, Q) of xyxy boxes (B, Q, 4) with one of each image (B, 1, 4)."""
    overlap = torch.minimum(boxes[..., 2:], other[..., 2:]) - torch.maximum(
        boxes[..., :2], other[..., :2]
    )
    shared = overlap.clamp(min=0).prod(dim=-1)
    areas, area = ((x[..., 2:] - x[..., :2]).prod(dim=-1) for x in (boxes, other))
    return shared / (areas + area - shared)
