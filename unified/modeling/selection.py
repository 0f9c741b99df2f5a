"""Which queries of a decoder output are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from unified.modeling.box_ops import cxcywh_to_xyxy, pairwise_iou


def non_maximum_suppression(boxes: Tensor, scores: Tensor, classes: Tensor, limit: float) -> Tensor:
    """Indices that survive greedy suppression within each class, best first.

    Args:
        boxes: (N, 4) xyxy in any unit.
        scores: (N,).
        classes: (N,) int.
        limit: a box falls when its IoU with a better box of its class exceeds this.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, classes = boxes[order], classes[order]
    iou = pairwise_iou(boxes, boxes)
    conflicts = ((iou > limit) & (classes[:, None] == classes[None])).cpu().numpy()
    alive = [True] * len(order)
    for better in range(len(order)):
        if alive[better]:
            for worse in conflicts[better, better + 1 :].nonzero()[0]:
                alive[better + 1 + worse] = False
    return order[torch.tensor(alive, device=order.device)]


def select_queries(
    logits: Tensor, boxes: Tensor, top_k: int, nms_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (query, class) pairs of one image.

    With ``top_k`` = 1 suppression cannot change the result and is skipped.

    Args:
        logits: (Q, num_classes).
        boxes: (Q, 4) cxcywh.

    Returns:
        Query indices, scores in [0, 1] and classes, each (K,), K <= top_k, best first.
    """
    scores = logits.sigmoid()
    queries = torch.arange(len(logits), device=logits.device)
    if top_k > 1:
        best, label = scores.max(dim=-1)
        queries = non_maximum_suppression(cxcywh_to_xyxy(boxes), best, label, nms_threshold)
    pairs = scores[queries].flatten()
    score, index = pairs.topk(min(top_k, len(pairs)))
    num_classes = logits.shape[-1]
    return queries[index // num_classes], score, index % num_classes
