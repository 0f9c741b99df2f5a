"""Which predictions answer for which targets: dynamic one-to-many (SimOTA) and one-to-one.

Both see one image: logits (Q, classes), boxes (Q, 4) and a ``Target`` with M instances, boxes
cxcywh divided by the image size. Nothing here carries gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from unified.modeling.box_ops import cxcywh_to_xyxy, pairwise_giou, pairwise_iou
from unified.structures import Target

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0

# SimOTA: costs of being outside, in the order in which they rule each other out.
CENTRE_RADIUS = 2.5 / 32
OUTSIDE_COST = 100.0
NOT_CANDIDATE_COST = 10_000.0
TAKEN_COST = 100_000.0
NUM_IOUS = 10


@dataclass(frozen=True)
class Match:
    """K matched pairs of one image.

    Attributes:
        queries: (K,) int64 prediction indices, ascending, each at most once.
        targets: (K,) int64 instance indices.
    """

    queries: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.queries.shape[0]


@torch.no_grad()
def match_simota(logits: Tensor, boxes: Tensor, target: Target) -> Match:
    """Gives each instance as many queries as its ten best IoUs sum up to, and at least one.

    A query whose centre lies in no instance's box nor near its centre is taken only in need. An
    instance can still go without: when its query is also the last resort of an earlier instance,
    or when there are fewer queries than instances.

    Source: Ge et al., YOLOX (arXiv:2107.08430) section 2.1, on queries instead of anchors as in
    UNINEXT (arXiv:2303.06674). There is no L1 cost.
    """
    if target.boxes.shape[0] == 0:
        return _no_match(boxes)
    boxes, wanted = boxes.float(), target.boxes.float()
    corners, wanted_corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted)
    candidate, inside_both = _centre_prior(boxes[:, :2], wanted, wanted_corners)
    cost = _class_cost(logits.float(), target.labels)
    cost = cost - 3.0 * pairwise_giou(corners, wanted_corners) + OUTSIDE_COST * ~inside_both
    cost = cost + NOT_CANDIDATE_COST * ~candidate[:, None]

    best_ious = pairwise_iou(corners, wanted_corners).topk(min(NUM_IOUS, len(boxes)), dim=0).values
    num_wanted = best_ious.sum(dim=0).int().clamp(min=1)  # (M,)
    rank = cost.argsort(dim=0, stable=True).argsort(dim=0)
    chosen = rank < num_wanted  # (Q, M)
    contested = chosen.sum(dim=1) > 1
    chosen = _keep_cheapest(chosen, cost, contested)
    chosen = _serve_forgotten(chosen, cost, contested)

    queries = chosen.any(dim=1).nonzero().squeeze(1)
    # Of two instances left on one query the first wins.
    return Match(queries=queries, targets=chosen[queries].int().argmax(dim=1))


@torch.no_grad()
def match_hungarian(logits: Tensor, boxes: Tensor, target: Target) -> Match:
    """The one-to-one assignment of least total cost: 2 class + 5 L1 + 2 (-GIoU).

    Source: Carion et al., DETR (arXiv:2005.12872) section 3.1, with the focal class cost of
    Deformable DETR (arXiv:2010.04159).
    """
    if target.boxes.shape[0] == 0:
        return _no_match(boxes)
    boxes, wanted = boxes.float(), target.boxes.float()
    giou = pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted))
    l1 = torch.cdist(boxes, wanted, p=1)
    cost = 2.0 * _class_cost(logits.float(), target.labels) + 5.0 * l1 - 2.0 * giou
    # A model that has diverged must reach the trainer's own check of the losses, not fail in here.
    queries, targets = linear_sum_assignment(torch.nan_to_num(cost, nan=1e9).cpu().numpy())
    return Match(
        queries=torch.as_tensor(queries, device=boxes.device),
        targets=torch.as_tensor(targets, device=boxes.device),
    )


def _class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal cost (Q, M) of calling query q what instance m is: positive minus negative term."""
    probability = logits[:, labels].sigmoid()
    missed = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * -(probability + 1e-8).log()
    alarm = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * -(1 - probability + 1e-8).log()
    return missed - alarm


def _centre_prior(centres: Tensor, wanted: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates (Q,), and (Q, M): inside the box of instance m and also near its centre."""
    points = centres[:, None]  # (Q, 1, 2)
    in_box = ((points > corners[:, :2]) & (points < corners[:, 2:])).all(dim=-1)
    low, high = wanted[:, :2] - CENTRE_RADIUS, wanted[:, :2] + CENTRE_RADIUS
    near_centre = ((points > low) & (points < high)).all(dim=-1)
    return (in_box | near_centre).any(dim=1), in_box & near_centre


def _keep_cheapest(chosen: Tensor, cost: Tensor, rows: Tensor) -> Tensor:
    """Each query of ``rows`` (Q,) goes to the instance it costs least, claimed by it or not."""
    cheapest = torch.zeros_like(chosen).scatter_(1, cost.argmin(dim=1, keepdim=True), True)
    return torch.where(rows[:, None], cheapest, chosen)


def _serve_forgotten(chosen: Tensor, cost: Tensor, contested: Tensor) -> Tensor:
    """Gives each instance that lost all its queries the cheapest query that is still free.

    As in the reference, the check for doubly used queries looks at those ``contested`` before this
    step: two forgotten instances may share a query. One round is enough while a query is free; the
    bound stops where the reference would go on for ever.
    """
    for _ in range(chosen.shape[1]):
        forgotten = ~chosen.any(dim=0)
        if not forgotten.any():
            break
        cost = cost + TAKEN_COST * chosen.any(dim=1, keepdim=True)
        last_resort = torch.zeros_like(chosen).scatter_(0, cost.argmin(dim=0, keepdim=True), True)
        chosen = chosen | (last_resort & forgotten)
        if (chosen.sum(dim=1) > 1).any():
            chosen = _keep_cheapest(chosen, cost, contested)
    return chosen


def _no_match(boxes: Tensor) -> Match:
    empty = torch.zeros(0, dtype=torch.int64, device=boxes.device)
    return Match(queries=empty, targets=empty)
