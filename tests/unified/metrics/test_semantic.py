from __future__ import annotations

import numpy as np
import pytest

from unified.errors import InputError
from unified.metrics.semantic import class_areas, semantic_summary


def test_areas_add_up_over_images_before_dividing() -> None:
    truth, prediction = np.array([[0, 1, 255]]), np.array([[0, 0, 1]])
    once = class_areas(truth, prediction, 3)
    found = semantic_summary(once + class_areas(np.array([[1, 1]]), np.array([[1, 1]]), 3))
    assert found["IoU"][:2].tolist() == [1 / 2, 2 / 3]
    assert np.isnan(found["IoU"][2])  # nobody drew class 2
    assert found["mIoU"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["aAcc"] == 3 / 4


def test_reduce_zero_label_moves_the_ground_truth_only() -> None:
    areas = class_areas(np.array([[0, 1, 2]]), np.array([[0, 0, 1]]), 2, reduce_zero_label=True)
    assert (areas.true.tolist(), areas.intersection.tolist()) == ([1, 1], [1, 1])


def test_labels_beyond_the_classes_are_named() -> None:
    with pytest.raises(InputError, match="prediction holds label 5, expected labels below 3"):
        class_areas(np.array([[0]]), np.array([[5]]), 3)
