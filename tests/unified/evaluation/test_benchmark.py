from __future__ import annotations

import pytest

from tests.unified.evaluation.benchmark import plain_boundary_accuracy, shape_map
from unified.metrics.davis import frame_scores


def test_the_plain_code_of_the_benchmark_gives_the_same_numbers() -> None:
    truth, prediction = shape_map(3, 0.0), shape_map(3, 9.0)
    plain = plain_boundary_accuracy(truth == 1, prediction == 1)
    assert 0.1 < plain < 1
    assert frame_scores(truth, prediction, [1])[0, 1] == pytest.approx(plain, abs=1e-15)
