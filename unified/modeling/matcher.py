"""Which predictions answer for which targets: dynamic one-to-many (SimOTA) and one-to-one.

Both see a batch: logits (B, Q, classes), boxes (B, Q, 4) and targets padded to M instances, boxes
cxcywh divided by the image size. No image has a say in another one's pairs. Nothing here carries
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from unified.modeling.box_ops import cxcywh_to_xyxy, pairwise_giou, pairwise_iou
from unified.structures import Target, upload

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0

# SimOTA: costs of being outside, in the order in which they rule each other out.
CENTRE_RADIUS = 2.5 / 32
OUTSIDE_COST = 100.0
NOT_CANDIDATE_COST = 10_000.0
TAKEN_COST = 100_000.0
NUM_IOUS = 10


@dataclass(frozen=True)
class PaddedTargets:
    """The instances of B images, padded to the largest number M of them, at least 1.

    Attributes:
        labels: (B, M) int64, 0 on padding.
        boxes: (B, M, 4) cxcywh divided by the unpadded image size, 0 on padding.
        rows: (B, M) int64 place among the instances of the whole batch, -1 on padding.
        counts: instances of each image.
    """

    labels: Tensor
    boxes: Tensor
    rows: Tensor
    counts: tuple[int, ...]

    @classmethod
    def from_targets(cls, targets: Sequence[Target]) -> PaddedTargets:
        """The same instances, in order."""
        counts = tuple(len(target.labels) for target in targets)
        rows = torch.full((len(counts), max(1, *counts)), -1)
        for row, numbers in zip(rows, torch.arange(sum(counts)).split(counts), strict=True):
            row[: len(numbers)] = numbers
        labels, boxes = [target.labels for target in targets], [target.boxes for target in targets]
        rows = upload(rows, labels[0].device)
        # On padding -1 reads the last row, which stands for nothing.
        return cls(
            labels=torch.cat([*labels, labels[0].new_zeros(1)])[rows],
            boxes=torch.cat([*boxes, boxes[0].new_zeros(1, 4)])[rows],
            rows=rows,
            counts=counts,
        )

    @property
    def valid(self) -> Tensor:
        """(B, M) False on padding."""
        return self.rows >= 0

    def without_labels(self) -> PaddedTargets:
        """Every label 0."""
        return replace(self, labels=torch.zeros_like(self.labels))


@dataclass(frozen=True)
class Match:
    """K matched pairs of a batch, image by image.

    Attributes:
        images: (K,) int64 places in the batch, ascending.
        queries: (K,) int64 prediction indices, ascending and each at most once within an image.
        targets: (K,) int64 instance indices within the image.
    """

    images: Tensor
    queries: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.queries.shape[0]

    def __getitem__(self, pairs: Tensor) -> Match:
        """Some of the pairs, by index (k,)."""
        return Match(self.images[pairs], self.queries[pairs], self.targets[pairs])


@torch.no_grad()
def match_simota(logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Match:
    """Gives each instance as many queries as its ten best IoUs sum up to, and at least one.

    A query whose centre lies in no instance's box nor near its centre is taken only in need. An
    instance can still go without: when its query is also the last resort of an earlier instance,
    or when there are fewer queries than instances.

    Source: Ge et al., YOLOX (arXiv:2107.08430) section 2.1, on queries instead of anchors as in
    UNINEXT (arXiv:2303.06674). There is no L1 cost.
    """
    boxes, wanted, valid = boxes.float(), targets.boxes.float(), targets.valid
    corners, wanted_corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted)
    candidate, inside_both = _centre_prior(boxes[..., :2], wanted, wanted_corners, valid)
    cost = _class_cost(logits.float(), targets.labels)
    cost = cost - 3.0 * pairwise_giou(corners, wanted_corners) + OUTSIDE_COST * ~inside_both
    cost = cost + NOT_CANDIDATE_COST * ~candidate[..., None]
    cost = cost.masked_fill(~valid[:, None], torch.inf)  # (B, Q, M)

    ious = pairwise_iou(corners, wanted_corners)
    best_ious = ious.topk(min(NUM_IOUS, boxes.shape[1]), dim=1).values
    num_wanted = best_ious.sum(dim=1).int().clamp(min=1) * valid  # (B, M)
    rank = cost.argsort(dim=1, stable=True).argsort(dim=1)
    chosen = rank < num_wanted[:, None]  # (B, Q, M)
    contested = chosen.sum(dim=2) > 1
    chosen = _keep_cheapest(chosen, cost, contested)
    chosen = _serve_forgotten(chosen, cost, contested, valid)

    images, queries = chosen.any(dim=2).nonzero(as_tuple=True)
    # Of two instances left on one query the first wins.
    return Match(images, queries, chosen.int().argmax(dim=2)[images, queries])


@torch.no_grad()
def match_hungarian(logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Match:
    """The one-to-one assignment of least total cost: 2 class + 5 L1 + 2 (-GIoU).

    Source: Carion et al., DETR (arXiv:2005.12872) section 3.1, with the focal class cost of
    Deformable DETR (arXiv:2010.04159).
    """
    boxes, wanted = boxes.float(), targets.boxes.float()
    giou = pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted))
    l1 = torch.cdist(boxes, wanted, p=1)
    cost = 2.0 * _class_cost(logits.float(), targets.labels) + 5.0 * l1 - 2.0 * giou
    # A model that has diverged must reach the trainer's own check of the losses, not fail in here.
    costs = torch.nan_to_num(cost, nan=1e9).cpu().numpy()
    pairs = []
    for image, (rows, num) in enumerate(zip(costs, targets.counts, strict=True)):
        queries, instances = linear_sum_assignment(rows[:, :num])
        pairs.append(np.stack([np.full_like(queries, image), queries, instances]))
    images, queries, instances = upload(torch.from_numpy(np.concatenate(pairs, 1)), boxes.device)
    return Match(images, queries, instances)


def _class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal cost (B, Q, M) of calling query q what instance m is: positive minus negative term."""
    labels = labels[:, None].expand(-1, logits.shape[1], -1)  # (B, Q, M)
    probability = logits.gather(2, labels).sigmoid()
    missed = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * -(probability + 1e-8).log()
    alarm = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * -(1 - probability + 1e-8).log()
    return missed - alarm


def _centre_prior(
    centres: Tensor, wanted: Tensor, corners: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidates (B, Q), and (B, Q, M): inside the box of instance m and also near its centre."""
    points = centres[:, :, None]  # (B, Q, 1, 2)
    wanted, corners = wanted[:, None], corners[:, None]  # (B, 1, M, 4)
    in_box = ((points > corners[..., :2]) & (points < corners[..., 2:])).all(dim=-1)
    low, high = wanted[..., :2] - CENTRE_RADIUS, wanted[..., :2] + CENTRE_RADIUS
    near_centre = ((points > low) & (points < high)).all(dim=-1)
    return ((in_box | near_centre) & valid[:, None]).any(dim=2), in_box & near_centre


def _keep_cheapest(chosen: Tensor, cost: Tensor, queries: Tensor) -> Tensor:
    """Each query of ``queries`` (B, Q) goes to the instance it costs least, claimed or not."""
    cheapest = torch.zeros_like(chosen).scatter_(2, cost.argmin(dim=2, keepdim=True), True)
    return torch.where(queries[..., None], cheapest, chosen)


def _serve_forgotten(chosen: Tensor, cost: Tensor, contested: Tensor, valid: Tensor) -> Tensor:
    """Gives each instance that lost all its queries the cheapest query that is still free.

    As in the reference, the check for doubly used queries looks at those ``contested`` before this
    step: two forgotten instances may share a query. One round is enough while a query is free; the
    bound, the image's number of instances, stops where the reference would go on for ever. Images
    without a forgotten instance stay as they are while others are served.
    """
    for rounds in range(chosen.shape[2]):
        forgotten = valid & ~chosen.any(dim=1) & (valid.sum(dim=1, keepdim=True) > rounds)
        if not forgotten.any():
            break
        served = forgotten.any(dim=1)[:, None]  # (B, 1)
        cost = cost + TAKEN_COST * (chosen.any(dim=2) & served)[..., None]
        last_resort = torch.zeros_like(chosen).scatter_(1, cost.argmin(dim=1, keepdim=True), True)
        chosen = chosen | (last_resort & forgotten[:, None])
        doubled = (chosen.sum(dim=2) > 1).any(dim=1, keepdim=True)
        chosen = _keep_cheapest(chosen, cost, contested & doubled & served)
    return chosen
