from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unified.modeling.box_ops import cxcywh_to_xyxy, pairwise_iou, xyxy_to_cxcywh
from unified.modeling.selection import select_in_steps, select_queries


def random_boxes(num: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """xyxy boxes that overlap a lot, scores and two classes."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num, 2, generator=generator)
    boxes = torch.cat([corner, corner + 0.6 + 0.5 * torch.rand(num, 2, generator=generator)], dim=1)
    return (
        boxes,
        torch.rand(num, generator=generator),
        torch.randint(2, (num,), generator=generator),
    )


@pytest.mark.parametrize("limit", [0.3, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_overlaps_less_and_what_fell_had_a_reason(
    limit: float, dtype: torch.dtype
) -> None:
    boxes, scores, classes = random_boxes(40, seed=1)
    logits = torch.full((40, 2), -20.0)
    logits[torch.arange(40), classes] = torch.logit(scores)
    logits, centred = logits.to(dtype), xyxy_to_cxcywh(boxes).to(dtype)
    kept, found, label = select_queries(logits, centred, 40, limit)
    likely = found > 1e-3  # the other class of a query follows at the end
    kept, label = kept[likely], label[likely]
    assert 1 < len(kept) < 40 and torch.equal(label, classes[kept])
    corners = cxcywh_to_xyxy(centred).float()
    conflicts = pairwise_iou(corners, corners) > limit
    conflicts &= classes[:, None] == classes
    assert conflicts[kept][:, kept].sum() == len(kept)  # each with itself
    fallen = [q for q in range(40) if q not in kept.tolist()]
    best = logits.amax(dim=1)
    for query in fallen:
        better = kept[conflicts[query, kept]]
        assert len(better) and best[better].max() >= best[query]


def test_top_1_is_the_best_pair_of_query_and_class() -> None:
    logits = torch.tensor([[0.0, 1.0], [3.0, -2.0], [0.5, 2.0]])
    queries, scores, classes = select_queries(logits, torch.rand(3, 4), 1, 0.7)
    assert (queries.tolist(), classes.tolist()) == ([1], [0])
    assert scores.item() == pytest.approx(1 / (1 + math.exp(-3)))


def test_top_1_does_not_depend_on_suppression() -> None:
    boxes, scores, _ = random_boxes(30, seed=3)
    centred = xyxy_to_cxcywh(boxes)
    logits = torch.logit(scores)[:, None]
    one = select_queries(logits, centred, 1, 0.3)
    many = select_queries(logits, centred, 30, 0.3)
    assert all(torch.equal(a[:1], b[:1]) for a, b in zip(one, many, strict=True))


def test_the_best_pairs_of_what_survives() -> None:
    """Query 1 covers the same place as query 0 with the same best class, so both its pairs fall."""
    same = [0.5, 0.5, 0.4, 0.4]
    boxes = torch.tensor([same, same, [0.1, 0.1, 0.1, 0.1]])
    logits = torch.tensor([[2.0, -3.0], [1.5, 1.0], [-1.0, 0.5]])
    queries, scores, classes = select_queries(logits, boxes, 10, 0.7)
    assert list(zip(queries.tolist(), classes.tolist(), strict=True)) == [
        (0, 0),
        (2, 1),
        (2, 0),
        (0, 1),
    ]
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert len(select_queries(logits, boxes, 2, 0.7)[0]) == 2


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("top_k", [1, 5, 30])
def test_steps_select_what_suppression_leaves(top_k: int, num_classes: int) -> None:
    boxes = torch.stack([xyxy_to_cxcywh(random_boxes(20, seed)[0]) for seed in (1, 2, 3)])
    logits = torch.randn(3, 20, num_classes, generator=torch.Generator().manual_seed(4))
    if num_classes > 1:  # one class of each query counts
        logits = logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True), -30.0)
    found = zip(*select_in_steps(logits, boxes, top_k, 0.5), strict=True)
    for image, (index, scores, classes) in enumerate(found):
        kept, best, label = select_queries(logits[image], boxes[image], top_k, 0.5)
        likely = best > 1e-6
        num = int(likely.sum())
        assert top_k == 1 or 0 < num < 20
        assert torch.equal(index[:num], kept[likely])
        torch.testing.assert_close(scores[:num], best[likely])
        assert torch.equal(classes[:num], label[likely]) and not scores[num:].gt(1e-6).any()
