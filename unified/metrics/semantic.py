"""Semantic segmentation: per-class IoU, accuracy, Dice and F-score from summed areas.

Source: mmsegmentation 0.30.0 core/evaluation/metrics; NaN marks a class that nobody drew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unified.errors import InputError

IGNORE = 255


@dataclass(frozen=True)
class ClassAreas:
    """Pixels per class, each (C,); add those of all images before dividing."""

    intersection: NDArray[np.float64]
    predicted: NDArray[np.float64]
    true: NDArray[np.float64]

    def __add__(self, other: ClassAreas) -> ClassAreas:
        return ClassAreas(
            self.intersection + other.intersection,
            self.predicted + other.predicted,
            self.true + other.true,
        )


def class_areas(
    truth: NDArray,
    prediction: NDArray,
    num_classes: int,
    *,
    reduce_zero_label: bool = False,
    ignore: int = IGNORE,
) -> ClassAreas:
    """Counts pixels per class of (H, W) label maps without those that are ``ignore`` in the truth.

    ``reduce_zero_label`` turns label 0 of the ground truth into "ignore" and lowers the others by
    one (ADE20K). The prediction is taken as it is.
    """
    truth = np.asarray(truth).astype(np.int64)
    keep = truth != ignore
    if reduce_zero_label:
        keep &= truth != 0
        truth = truth - 1
    truth, prediction = truth[keep], np.asarray(prediction)[keep].astype(np.int64)
    for labels, side in ((truth, "ground truth"), (prediction, "prediction")):
        if labels.size and labels.max() >= num_classes:
            raise InputError(
                f"{side} holds label {labels.max()}, expected labels below {num_classes}: "
                "check the number of classes and reduce_zero_label"
            )

    def count(labels: NDArray) -> NDArray[np.float64]:
        return np.bincount(labels, minlength=num_classes).astype(np.float64)

    return ClassAreas(count(truth[truth == prediction]), count(prediction), count(truth))


def semantic_summary(areas: ClassAreas) -> dict[str, float | NDArray[np.float64]]:
    """Returns aAcc, mIoU and the (C,) IoU, Acc, Dice, Fscore, Precision, Recall as fractions."""
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = areas.intersection / (areas.predicted + areas.true - areas.intersection)
        precision = areas.intersection / areas.predicted
        recall = areas.intersection / areas.true
        fscore = 2 * precision * recall / (precision + recall)
        dice = 2 * areas.intersection / (areas.predicted + areas.true)
        all_accuracy = float(areas.intersection.sum() / areas.true.sum())
    return {
        "aAcc": all_accuracy,
        "mIoU": float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan"),
        "IoU": iou,
        "Acc": recall,
        "Dice": dice,
        "Fscore": fscore,
        "Precision": precision,
        "Recall": recall,
    }
