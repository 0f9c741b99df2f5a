from __future__ import annotations

import numpy as np
import pytest

from unified.errors import InputError
from unified.metrics.few_shot import areas, few_shot_summary, vote


def test_areas_leave_out_ignored_pixels() -> None:
    truth = np.array([[1, 1, 0, 0]])
    prediction = np.array([[1, 0, 0, 1]])
    intersections, unions = areas(truth, prediction)
    assert (intersections.tolist(), unions.tolist()) == ([1, 1], [3, 3])
    intersections, unions = areas(truth, prediction, ignore=np.array([[0, 1, 0, 0]]))
    assert (intersections.tolist(), unions.tolist()) == ([1, 1], [2, 2])


def test_classes_are_averaged_not_images() -> None:
    intersections = np.array([[10, 8], [10, 8], [10, 2]])
    unions = np.array([[20, 10], [20, 10], [20, 10]])
    found = few_shot_summary(intersections, unions, [7, 7, 8], [7, 8])
    assert found["mIoU"] == pytest.approx(100 * (0.8 + 0.2) / 2)
    assert found["FB-IoU"] == pytest.approx(100 * (30 / 60 + 18 / 30) / 2)
    # a class of the fold that was never sampled counts 0
    assert few_shot_summary(intersections, unions, [7, 7, 8], [7, 8, 9, 10])["mIoU"] == 25
    with pytest.raises(InputError, match="no episode"):
        few_shot_summary(np.zeros((0, 2)), np.zeros((0, 2)), [], [7])


def test_votes_are_relative_to_the_largest_vote() -> None:
    masks = np.array([[[1, 1, 0]], [[1, 0, 0]], [[0, 0, 0]], [[0, 0, 0]], [[0, 0, 0]]])
    assert vote(masks).tolist() == [[True, True, False]]
    assert not vote(np.zeros((3, 2, 2))).any()
