from __future__ import annotations

import numpy as np
import pytest

from unified.errors import InputError
from unified.metrics.iou import (
    CRIS,
    LAVT,
    UNIREF,
    ReferringRule,
    box_overlap,
    generalized_box_iou,
    mask_overlap,
    overlap_ratio,
    referring_summary,
    xywh_to_xyxy,
)


@pytest.mark.parametrize(
    ("rule", "hits"),
    [
        (LAVT, [1, 1, 1, 1, 1]),  # at the threshold counts
        (UNIREF, [0, 0, 0, 0, 0]),  # it does not
        (CRIS, [0, 0, 1, 0, 1]),  # 0.7 and 0.9 are lower in 32 bits
    ],
)
def test_ties_at_the_thresholds(rule: ReferringRule, hits: list[int]) -> None:
    for threshold, hit in zip((5, 6, 7, 8, 9), hits, strict=True):
        summary = referring_summary(np.array([threshold * 10]), np.array([100]), rule)
        assert summary[f"P@{threshold / 10}"] == 100 * hit


def test_large_objects_weigh_more_in_oiou_only() -> None:
    summary = referring_summary(np.array([900, 0]), np.array([1000, 10]), LAVT)
    assert summary["oIoU"] == pytest.approx(100 * 900 / 1010)
    assert summary["mIoU"] == pytest.approx(45)


def test_two_empty_masks_count_zero() -> None:
    assert overlap_ratio(np.array([0]), np.array([0])).tolist() == [0]
    assert referring_summary(np.array([0]), np.array([0]), LAVT)["oIoU"] == 0


def test_overlap_of_masks_and_its_errors() -> None:
    first, second = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    first[:2], second[1:3] = True, True
    assert mask_overlap(first, second) == (4, 12)
    with pytest.raises(InputError, match=r"prediction is \(2, 4\): resize"):
        mask_overlap(first, second[:2])
    with pytest.raises(InputError, match="no sample"):
        referring_summary(np.array([]), np.array([]), LAVT)


def test_boxes() -> None:
    boxes = xywh_to_xyxy([[0, 0, 2, 2], [4, 0, 2, 2]])
    intersection, union = box_overlap(boxes[:1], boxes)
    assert intersection.tolist() == [[4, 0]]
    assert union.tolist() == [[4, 8]]
    # the hull of the two boxes is 6 x 2, of which 4 pixels belong to neither
    assert generalized_box_iou(boxes[:1], boxes) == pytest.approx(np.array([[1, -4 / 12]]))
