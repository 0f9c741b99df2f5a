"""Generalised referring, several targets or none: masks (GRES) and boxes (GREC)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unified.errors import InputError
from unified.metrics.iou import generalized_box_iou, overlap_ratio

PRECISION_THRESHOLDS = (0.7, 0.8, 0.9)
BOX_SCORE = 0.7
BOX_OVERLAP = 0.5


@dataclass(frozen=True)
class GeneralizedSamples:
    """N samples: pixel counts and who said "there is no such object".

    Attributes:
        intersections: (N,) pixels.
        unions: (N,) pixels.
        no_target: (N,) bool, the expression names nothing.
        refused: (N,) bool, the model said so; a flag of its own, not emptiness of the mask.
    """

    intersections: NDArray
    unions: NDArray
    no_target: NDArray[np.bool_]
    refused: NDArray[np.bool_]


def generalized_summary(samples: GeneralizedSamples) -> dict[str, float]:
    """Returns gIoU, cIoU, Pr@0.7..0.9 in percent, T_acc and N_acc as fractions.

    A right refusal counts 1 in gIoU and adds nothing to cIoU; a missed one counts 0 and adds the
    predicted area. A wrong refusal counts 0 and adds the union. T_acc and N_acc are 0 where the
    data has no expression without a target, as in the official program.

    Source: Liu et al., GRES, CVPR 2023, section 5; ReLA 3ca9551 ReferEvaluator.
    """
    if len(samples.unions) == 0:
        raise InputError("there is no sample to score: expected at least one mask pair")
    no_target = np.asarray(samples.no_target, dtype=bool)
    refused = np.asarray(samples.refused, dtype=bool)
    intersections, unions = counted_areas(samples)
    ious = sample_ious(samples)
    targets = ~no_target
    has_none = bool(no_target.any())
    total = float(unions.sum())
    return {
        "gIoU": 100.0 * float(ious.mean()),
        "cIoU": 100.0 * float(intersections.sum()) / total if total else 0.0,
        "T_acc": _share(~refused, targets) if has_none else 0.0,
        "N_acc": _share(refused, no_target) if has_none else 0.0,
        **{f"Pr@{t}": 100.0 * _share(ious >= t, targets) for t in PRECISION_THRESHOLDS},
    }


def sample_ious(samples: GeneralizedSamples) -> NDArray[np.float64]:
    """Returns the (N,) fractions that gIoU is the mean of: 1 for a right refusal, 0 for a wrong."""
    right_refusal = np.asarray(samples.no_target, dtype=bool) & np.asarray(samples.refused, bool)
    return np.where(right_refusal, 1.0, overlap_ratio(*counted_areas(samples)))


def counted_areas(samples: GeneralizedSamples) -> tuple[NDArray, NDArray]:
    """Returns (N,) intersections and unions as cIoU sums them: refusals intersect nothing."""
    no_target = np.asarray(samples.no_target, dtype=bool)
    refused = np.asarray(samples.refused, dtype=bool)
    intersections = np.where(no_target | refused, 0, samples.intersections)
    return intersections, np.where(no_target & refused, 0, samples.unions)


def box_f1(truth: NDArray, prediction: NDArray, scores: NDArray) -> float:
    """Returns F1 of the boxes scored at least 0.7, matched greedily by generalized IoU >= 0.5.

    Args:
        truth: (G, 4) xyxy; empty when the expression names nothing.
        prediction: (D, 4) xyxy.
        scores: (D,) in [0, 1].

    Source: gRefCOCO 41a8f00 RefExpEvaluator; the paper says IoU, the program uses generalized IoU.
    """
    kept = kept_boxes(prediction, scores)
    if len(truth) == 0:
        return float(len(kept) == 0)
    affinity = generalized_box_iou(kept, truth)
    matched = 0
    while affinity.size and affinity.max() >= BOX_OVERLAP:
        row, column = np.unravel_index(np.argmax(affinity), affinity.shape)
        affinity = np.delete(np.delete(affinity, row, axis=0), column, axis=1)
        matched += 1
    return 2.0 * matched / (len(kept) + len(truth))


def kept_boxes(prediction: NDArray, scores: NDArray) -> NDArray:
    """Returns the (K, 4) boxes that the program looks at: those scored at least 0.7."""
    return np.asarray(prediction, dtype=float).reshape(-1, 4)[np.asarray(scores) >= BOX_SCORE]


def box_summary(f1: NDArray, num_kept: NDArray, no_target: NDArray[np.bool_]) -> dict[str, float]:
    """Returns Pr@(F1=1, IoU>=0.5), T_acc and N_acc as fractions over N expressions."""
    no_target = np.asarray(no_target, dtype=bool)
    refused = np.asarray(num_kept) == 0
    return {
        "F1_score": float(np.mean(np.asarray(f1) >= 1.0)),
        "T_acc": _share(~refused, ~no_target),
        "N_acc": _share(refused, no_target),
    }


def _share(hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float(np.mean(hits[among])) if among.any() else 0.0
