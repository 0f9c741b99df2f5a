from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unified.modeling.selection import non_maximum_suppression, select_queries


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


def iou(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    overlap = max(width, 0) * max(height, 0)
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (first, second))
    return overlap / (areas - overlap)


def by_loop(boxes: Tensor, scores: Tensor, classes: Tensor, limit: float) -> list[int]:
    """Keeps a box unless it overlaps a kept one of its class."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        box = boxes[index].tolist()
        if all(
            classes[index] != classes[better] or iou(box, boxes[better].tolist()) <= limit
            for better in kept
        ):
            kept.append(index)
    return kept


@pytest.mark.parametrize("limit", [0.3, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_suppression_equals_the_loop(limit: float, seed: int) -> None:
    given = random_boxes(40, seed)
    kept = non_maximum_suppression(*given, limit).tolist()
    assert kept == by_loop(*given, limit)
    assert 1 < len(kept) < 40


def test_suppression_equals_torchvision() -> None:
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is optional for the core")
    boxes, scores, classes = random_boxes(80, seed=9)
    expected = ops.batched_nms(boxes, scores, classes, 0.5)
    assert torch.equal(non_maximum_suppression(boxes, scores, classes, 0.5), expected)


def test_a_suppressed_box_suppresses_nothing() -> None:
    """a hides b, b would hide c, a does not reach c."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    assert non_maximum_suppression(boxes, scores, classes, 0.4).tolist() == [0, 2]


def test_equal_scores_keep_their_order_and_empty_boxes_live() -> None:
    boxes, classes = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    assert non_maximum_suppression(boxes, torch.full((3,), 0.5), classes, 0.5).tolist() == [0, 1, 2]


def test_top_1_is_the_best_pair_of_query_and_class() -> None:
    logits = torch.tensor([[0.0, 1.0], [3.0, -2.0], [0.5, 2.0]])
    queries, scores, classes = select_queries(logits, torch.rand(3, 4), 1, 0.7)
    assert (queries.tolist(), classes.tolist()) == ([1], [0])
    assert scores.item() == pytest.approx(1 / (1 + math.exp(-3)))


def test_top_1_does_not_depend_on_suppression() -> None:
    boxes, scores, _ = random_boxes(30, seed=3)
    centred = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
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
