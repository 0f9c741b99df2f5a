"""SimOTA against a loop written from the description, Hungarian against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unified.modeling.box_ops import cxcywh_to_xyxy, pairwise_giou, pairwise_iou
from unified.modeling.matcher import Match, PaddedTargets, match_hungarian, match_simota
from unified.structures import Target

Matcher = Callable[[Tensor, Tensor, PaddedTargets], Match]


def class_cost(logit: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    positive = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
    negative = 0.75 * p**2 * -math.log(1 - p + 1e-8)
    return positive - negative


def slow_simota(logits: Tensor, boxes: Tensor, target: Target) -> list[tuple[int, int]] | None:
    """Pairs (query, instance) by loops; None where the reference would never return.

    The last step keeps the reference's habit: doubly used queries are looked up in the list that
    was made before any forgotten instance was served.
    """
    num_queries, num_targets = len(boxes), len(target.boxes)
    corners, wanted = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target.boxes)
    ious, gious = pairwise_iou(corners, wanted), pairwise_giou(corners, wanted)
    cost = torch.zeros(num_queries, num_targets)
    for q in range(num_queries):
        x, y = boxes[q, 0], boxes[q, 1]
        inside, near = [], []
        for m in range(num_targets):
            x0, y0, x1, y1 = wanted[m]
            inside.append(bool(x0 < x < x1 and y0 < y < y1))
            cx, cy = target.boxes[m, :2]
            radius = 2.5 / 32
            near.append(bool(abs(x - cx) < radius and abs(y - cy) < radius))
        for m in range(num_targets):
            value = class_cost(float(logits[q, target.labels[m]])) - 3 * float(gious[q, m])
            value += 0 if inside[m] and near[m] else 100
            value += 0 if any(inside) or any(near) else 10000
            cost[q, m] = value

    owners: dict[int, set[int]] = {q: set() for q in range(num_queries)}
    for m in range(num_targets):
        best = sorted(ious[:, m].tolist(), reverse=True)[:10]
        for q in sorted(range(num_queries), key=lambda q: float(cost[q, m]))[
            : max(1, int(sum(best)))
        ]:
            owners[q].add(m)
    contested = [q for q in owners if len(owners[q]) > 1]

    def resolve() -> None:
        for q in contested:
            owners[q] = {min(range(num_targets), key=lambda m: float(cost[q, m]))}

    resolve()
    for _ in range(50):
        served = set().union(*owners.values())
        forgotten = [m for m in range(num_targets) if m not in served]
        if not forgotten:
            return [(q, min(owners[q])) for q in owners if owners[q]]
        for q in owners:
            if owners[q]:
                cost[q] += 100000.0
        for m in forgotten:
            owners[min(range(num_queries), key=lambda q: float(cost[q, m]))].add(m)
        if any(len(mine) > 1 for mine in owners.values()):
            resolve()
    return None


def random_case(seed: int, num_queries: int, num_targets: int, spread: float) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_queries, 3, generator=generator)
    sizes = torch.rand(num_targets, 2, generator=generator) * 0.4 + 0.02
    centres = torch.rand(num_targets, 2, generator=generator)
    wanted = torch.cat([centres, sizes], dim=1)
    # Queries crowd around instances, so that several instances claim one and IoUs add up.
    near = wanted[torch.randint(num_targets, (num_queries,), generator=generator)]
    boxes = near + spread * torch.randn(num_queries, 4, generator=generator)
    boxes[:, 2:] = boxes[:, 2:].clamp(min=0.01)
    labels = torch.randint(3, (num_targets,), generator=generator)
    return logits, boxes, Target(labels=labels, boxes=wanted)


def alone(match: Matcher, logits: Tensor, boxes: Tensor, target: Target) -> Match:
    return match(logits[None], boxes[None], PaddedTargets.from_targets([target]))


def as_pairs(match: Match) -> list[tuple[int, int]]:
    return list(zip(match.queries.tolist(), match.targets.tolist(), strict=True))


@pytest.mark.parametrize("num_queries, num_targets", [(60, 1), (60, 4), (40, 12), (25, 20), (8, 7)])
@pytest.mark.parametrize("spread", [0.02, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_simota_equals_the_loop(
    num_queries: int, num_targets: int, spread: float, seed: int
) -> None:
    case = random_case(seed, num_queries, num_targets, spread)
    wanted = slow_simota(*case)
    if wanted is not None:
        assert as_pairs(alone(match_simota, *case)) == wanted


def test_an_instance_far_from_every_query_still_gets_one() -> None:
    boxes = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.9, 0.1, 0.1]])
    target = Target(labels=torch.tensor([0]), boxes=torch.tensor([[0.1, 0.1, 0.05, 0.05]]))
    match = alone(match_simota, torch.zeros(3, 1), boxes, target)
    assert as_pairs(match) == slow_simota(torch.zeros(3, 1), boxes, target)
    assert len(match) == 1


def test_a_query_claimed_twice_goes_to_the_cheaper_and_the_other_gets_the_next_free_one() -> None:
    wanted = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.52, 0.5, 0.2, 0.2]])
    boxes = torch.tensor([[0.518, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1]])
    target = Target(labels=torch.tensor([0, 0]), boxes=wanted)
    match = alone(match_simota, torch.zeros(3, 1), boxes, target)
    assert (0, 1) in as_pairs(match) and set(match.targets.tolist()) == {0, 1}
    assert as_pairs(match) == slow_simota(torch.zeros(3, 1), boxes, target)


def test_two_forgotten_instances_may_share_a_query_as_in_the_reference() -> None:
    # Three instances claim query 0, which goes to the last. The first two then both find query 1
    # cheapest; it is not on the old list of contested queries, so both keep it, and one is told.
    wanted = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.52, 0.2, 0.2], [0.5, 0.51, 0.2, 0.2]])
    boxes = torch.tensor([[0.5, 0.51, 0.2, 0.2], [0.6, 0.6, 0.2, 0.2], [0.95, 0.95, 0.05, 0.05]])
    target = Target(labels=torch.tensor([0, 0, 0]), boxes=wanted)
    match = alone(match_simota, torch.zeros(3, 1), boxes, target)
    assert as_pairs(match) == [(0, 2), (1, 0)] == slow_simota(torch.zeros(3, 1), boxes, target)


def test_more_instances_than_queries_ends() -> None:
    logits, boxes, target = random_case(0, num_queries=3, num_targets=9, spread=0.1)
    match = alone(match_simota, logits, boxes, target)
    assert match.queries.tolist() == [0, 1, 2]


def test_a_good_detector_gives_an_instance_many_queries() -> None:
    target = Target(labels=torch.tensor([0]), boxes=torch.tensor([[0.5, 0.5, 0.4, 0.4]]))
    boxes = target.boxes.repeat(20, 1)
    assert len(alone(match_simota, torch.zeros(20, 1), boxes, target)) == 10
    assert len(alone(match_simota, torch.zeros(4, 1), boxes[:4], target)) == 4


def test_the_arguments_are_left_alone() -> None:
    logits, boxes, target = random_case(1, num_queries=8, num_targets=7, spread=0.1)
    before = [tensor.clone() for tensor in (logits, boxes, target.boxes)]
    alone(match_simota, logits, boxes, target)
    for old, new in zip(before, (logits, boxes, target.boxes), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("seed", range(5))
def test_hungarian_finds_the_least_cost_of_all_assignments(seed: int) -> None:
    logits, boxes, target = random_case(seed, num_queries=6, num_targets=3, spread=0.2)
    giou = pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target.boxes))

    def cost(q: int, m: int) -> float:
        l1 = float((boxes[q] - target.boxes[m]).abs().sum())
        return 2 * class_cost(float(logits[q, target.labels[m]])) + 5 * l1 - 2 * float(giou[q, m])

    best = min(
        itertools.permutations(range(6), 3),
        key=lambda queries: sum(cost(q, m) for m, q in enumerate(queries)),
    )
    assert as_pairs(alone(match_hungarian, logits, boxes, target)) == sorted(
        (q, m) for m, q in enumerate(best)
    )


@pytest.mark.parametrize("match", [match_simota, match_hungarian])
@pytest.mark.parametrize("num_queries, counts", [(60, (1, 4, 0, 20)), (8, (7, 1, 7, 12, 0))])
@pytest.mark.parametrize("seed", range(5))
def test_images_of_a_batch_are_matched_as_if_alone(
    match: Matcher, num_queries: int, counts: tuple[int, ...], seed: int
) -> None:
    """Also where some images forget instances, or have more than queries, and others do not."""
    nobody = Target(labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4))
    cases = [random_case(seed + num, num_queries, max(num, 1), 0.1) for num in counts]
    targets = [target if num else nobody for (_, _, target), num in zip(cases, counts, strict=True)]
    logits, boxes = (torch.stack([case[part] for case in cases]) for part in (0, 1))
    together = match(logits, boxes, PaddedTargets.from_targets(targets))
    for image, target in enumerate(targets):
        mine = together[(together.images == image).nonzero()[:, 0]]
        assert as_pairs(mine) == as_pairs(alone(match, logits[image], boxes[image], target))
    assert torch.equal(together.images, together.images.sort().values)


def test_padded_targets_know_their_places() -> None:
    cases = [random_case(num, 5, num, 0.1)[2] for num in (2, 3)]
    nobody = Target(labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4))
    padded = PaddedTargets.from_targets([cases[0], nobody, cases[1]])
    assert padded.rows.tolist() == [[0, 1, -1], [-1, -1, -1], [2, 3, 4]]
    assert padded.counts == (2, 0, 3)
    assert torch.equal(padded.labels[padded.valid], torch.cat([c.labels for c in cases]))
    assert torch.equal(padded.boxes[padded.valid], torch.cat([c.boxes for c in cases]))
    assert not padded.boxes[~padded.valid].any()


@pytest.mark.parametrize("match", [match_simota, match_hungarian])
def test_no_instance_no_pair(match: Matcher) -> None:
    target = Target(labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4))
    assert len(alone(match, torch.zeros(5, 2), torch.rand(5, 4), target)) == 0


@pytest.mark.parametrize("match", [match_simota, match_hungarian])
def test_a_diverged_model_does_not_fail_in_here(match: Matcher) -> None:
    _, boxes, target = random_case(0, num_queries=6, num_targets=2, spread=0.1)
    pairs = alone(match, torch.full((6, 3), torch.nan), boxes, target)
    assert len(pairs) >= 1
