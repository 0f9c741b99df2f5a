"""Overlap of masks and boxes, and the referring-expression numbers made of it.

Published programs differ in ties and empty masks; ``ReferringRule`` names what each one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unified.errors import InputError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ReferringRule:
    """How a program turns intersections and unions into precision at a threshold.

    Attributes:
        strict: a sample must be above the threshold, not at it.
        epsilon: added to the union before dividing.
        single_precision: thresholds and shares are 32-bit, so that 0.7 means 0.69999999.
        needs_truth: samples with an empty ground truth are left out, not counted as 0.
    """

    strict: bool
    epsilon: float = 0.0
    single_precision: bool = False
    needs_truth: bool = False


# Source: LAVT-RIS 1da0af9 test.py; CRIS.pytorch e596332 engine; UniRef 16442cf RefCOCOeval.
LAVT = ReferringRule(strict=False)
CRIS = ReferringRule(strict=True, epsilon=1e-6, single_precision=True)
UNIREF = ReferringRule(strict=True, needs_truth=True)


def mask_overlap(truth: NDArray, prediction: NDArray) -> tuple[int, int]:
    """Returns intersection and union, in pixels, of two (H, W) masks.

    Raises:
        InputError: the masks differ in size.
    """
    truth, prediction = np.asarray(truth, dtype=bool), np.asarray(prediction, dtype=bool)
    if truth.shape != prediction.shape:
        raise InputError(
            f"ground truth is {truth.shape}, prediction is {prediction.shape}: "
            "resize the prediction to the size of the ground truth with nearest neighbour"
        )
    return int(np.count_nonzero(truth & prediction)), int(np.count_nonzero(truth | prediction))


def overlap_ratio(
    intersections: NDArray, unions: NDArray, epsilon: float = 0.0
) -> NDArray[np.float64]:
    """Returns (N,) intersection over union; 0 where both masks are empty."""
    intersections = np.asarray(intersections, dtype=np.float64)
    unions = np.asarray(unions, dtype=np.float64)
    ratio = np.zeros_like(unions)
    np.divide(intersections, unions + epsilon, out=ratio, where=unions > 0)
    return ratio


def referring_summary(
    intersections: NDArray, unions: NDArray, rule: ReferringRule
) -> dict[str, float]:
    """Returns oIoU, mIoU and P@0.5..0.9 in percent.

    Args:
        intersections: (N,) per sample, in pixels (or box area).
        unions: (N,) likewise.
        rule: which program to agree with.
    """
    intersections, unions = np.asarray(intersections), np.asarray(unions)
    if len(unions) == 0:
        raise InputError("there is no sample to score: expected at least one mask pair")
    ious = overlap_ratio(intersections, unions, rule.epsilon)
    total = float(unions.sum())
    return {
        "oIoU": 100.0 * float(intersections.sum()) / total if total else 0.0,
        "mIoU": 100.0 * float(ious.mean()),
        **{f"P@{t}": 100.0 * precision_at(ious, t, rule) for t in THRESHOLDS},
    }


def precision_at(ious: NDArray[np.float64], threshold: float, rule: ReferringRule) -> float:
    """Returns the share of samples whose IoU passes ``threshold`` under ``rule``."""
    limit = float(np.float32(threshold)) if rule.single_precision else threshold
    share = float(np.mean(ious > limit if rule.strict else ious >= limit))
    return float(np.float32(share)) if rule.single_precision else share


def box_overlap(first: NDArray, second: NDArray) -> tuple[NDArray, NDArray]:
    """Returns (N, M) intersections and unions of xyxy boxes (N, 4) and (M, 4)."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    first, second = first.reshape(-1, 1, 4), second.reshape(1, -1, 4)
    top_left = np.maximum(first[..., :2], second[..., :2])
    bottom_right = np.minimum(first[..., 2:], second[..., 2:])
    intersection = np.prod(np.clip(bottom_right - top_left, 0, None), axis=-1)
    areas = [np.prod(np.clip(b[..., 2:] - b[..., :2], 0, None), axis=-1) for b in (first, second)]
    return intersection, areas[0] + areas[1] - intersection


def generalized_box_iou(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """Returns (N, M) generalized IoU in [-1, 1] of xyxy boxes.

    Source: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, algorithm 1.
    """
    intersection, union = box_overlap(first, second)
    first = np.asarray(first, dtype=float).reshape(-1, 1, 4)
    second = np.asarray(second, dtype=float).reshape(1, -1, 4)
    hull = np.prod(
        np.maximum(first[..., 2:], second[..., 2:]) - np.minimum(first[..., :2], second[..., :2]),
        axis=-1,
    )
    return overlap_ratio(intersection, union) - (hull - union) / np.where(hull > 0, hull, 1.0)


def xywh_to_xyxy(boxes: NDArray | Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Returns (N, 4) corner boxes of COCO-style (N, 4) x, y, width, height."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
