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
