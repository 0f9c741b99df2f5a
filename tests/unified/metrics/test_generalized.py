from __future__ import annotations

import numpy as np
import pytest

from unified.errors import InputError
from unified.metrics.generalized import GeneralizedSamples, box_f1, generalized_summary


def summary(rows: list[tuple[int, int, bool, bool]]) -> dict[str, float]:
    return generalized_summary(GeneralizedSamples(*(np.array(c) for c in zip(*rows, strict=True))))


def test_what_each_kind_of_sample_adds() -> None:
    hit, wrong_refusal = (80, 100, False, False), (50, 60, False, True)
    right_refusal, missed_refusal = (0, 30, True, True), (0, 40, True, False)
    found = summary([hit, wrong_refusal, right_refusal, missed_refusal])
    # a right refusal counts 1 even though its mask is not empty
    assert found["gIoU"] == pytest.approx(100 * (0.8 + 0 + 1 + 0) / 4)
    assert found["cIoU"] == pytest.approx(100 * 80 / (100 + 60 + 0 + 40))
    assert (found["T_acc"], found["N_acc"]) == (0.5, 0.5)
    assert (found["Pr@0.7"], found["Pr@0.8"], found["Pr@0.9"]) == (50, 50, 0)


def test_without_a_targetless_expression_the_accuracies_are_zero() -> None:
    found = summary([(80, 100, False, False)])
    assert (found["gIoU"], found["T_acc"], found["N_acc"]) == (80, 0, 0)
    with pytest.raises(InputError, match="no sample"):
        generalized_summary(GeneralizedSamples(*(np.array([]) for _ in range(4))))


def test_box_f1_is_greedy_and_drops_low_scores() -> None:
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], float)
    assert box_f1(truth, truth, np.array([0.7, 0.9])) == 1
    assert box_f1(truth, truth, np.array([0.69, 0.9])) == pytest.approx(2 / 3)
    assert box_f1(truth[:0], truth, np.array([0.1, 0.2])) == 1
    assert box_f1(truth[:0], truth, np.array([0.1, 0.8])) == 0
    assert box_f1(truth, np.zeros((0, 4)), np.zeros(0)) == 0
