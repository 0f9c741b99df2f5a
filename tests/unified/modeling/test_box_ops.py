from __future__ import annotations

import pytest
import torch

from unified.modeling.box_ops import (
    cxcywh_to_xyxy,
    giou_loss,
    pairwise_giou,
    pairwise_iou,
    xyxy_to_cxcywh,
)


def random_boxes(num: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(num, 2, generator=generator, dtype=torch.float64)
    size = torch.rand(num, 2, generator=generator, dtype=torch.float64) * 0.5
    return cxcywh_to_xyxy(torch.cat([centre, size], dim=1))


def slow_iou_and_giou(a: list[float], b: list[float]) -> tuple[float, float]:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    union = areas - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = width * height / union
    return iou, iou - (hull - union) / hull


def test_conversions_are_inverse_and_right_on_a_known_box() -> None:
    box = torch.tensor([[2.0, 3.0, 4.0, 2.0]])
    assert cxcywh_to_xyxy(box).tolist() == [[0.0, 2.0, 4.0, 4.0]]
    boxes = random_boxes(20, seed=0).view(4, 5, 4)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_pairwise_iou_and_giou_equal_the_loop() -> None:
    first, second = random_boxes(7, seed=1), random_boxes(5, seed=2)
    wanted = torch.tensor(
        [[slow_iou_and_giou(a, b) for b in second.tolist()] for a in first.tolist()],
        dtype=torch.float64,
    )
    torch.testing.assert_close(pairwise_iou(first, second), wanted[..., 0])
    # 1e-7 on the enclosing area moves the result by at most 1e-7 / smallest area.
    torch.testing.assert_close(pairwise_giou(first, second), wanted[..., 1], atol=1e-5, rtol=0)
    assert (wanted[..., 0] > 0).any() and (wanted[..., 1] < 0).any()


def test_giou_loss_equals_the_loop_of_fvcore() -> None:
    giou = pytest.importorskip("fvcore.nn", reason="fvcore comes with the training extra")
    first, second = random_boxes(30, seed=3), random_boxes(30, seed=4)
    wanted = giou.giou_loss(first, second, reduction="none")
    torch.testing.assert_close(giou_loss(first, second), wanted)


def test_identical_boxes_lose_nothing() -> None:
    boxes = random_boxes(5, seed=5)
    torch.testing.assert_close(
        giou_loss(boxes, boxes), torch.zeros(5, dtype=torch.float64), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(pairwise_iou(boxes, boxes).diagonal(), torch.ones(5).double())


@pytest.mark.parametrize("size", [0.0, 1e-12])
def test_empty_boxes_stay_finite_forward_and_backward(size: float) -> None:
    boxes = torch.tensor([[0.5, 0.5, size, size], [0.2, 0.3, size, 0.4]], requires_grad=True)
    corners = cxcywh_to_xyxy(boxes)
    target = cxcywh_to_xyxy(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.7, 0.7, 0.1, 0.1]]))
    assert pairwise_iou(corners, target).isfinite().all()
    assert pairwise_giou(corners, target).isfinite().all()
    giou_loss(corners, target).sum().backward()
    assert boxes.grad is not None and boxes.grad.isfinite().all()
