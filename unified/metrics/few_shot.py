"""Few-shot segmentation: class mIoU, foreground-background IoU and k-shot voting.

Source: Min et al., Hypercorrelation Squeeze, ICCV 2021, section 5; hsnet 6b1bc12 Evaluator,
AverageMeter and predict_mask_nshot, whose sums are 32-bit (agreement to 1e-4 percent).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unified.errors import InputError


def areas(
    truth: NDArray, prediction: NDArray, ignore: NDArray | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (2,) intersections and (2,) unions in pixels: background, foreground.

    Pixels where ``ignore`` is set are left out.
    """
    truth, prediction = np.asarray(truth, dtype=bool), np.asarray(prediction, dtype=bool)
    keep = np.ones_like(truth) if ignore is None else ~np.asarray(ignore, dtype=bool)
    intersections = [
        np.count_nonzero(keep & (truth == value) & (prediction == value)) for value in (False, True)
    ]
    unions = [
        np.count_nonzero(keep & ((truth == value) | (prediction == value)))
        for value in (False, True)
    ]
    return np.array(intersections), np.array(unions)


def few_shot_summary(
    intersections: NDArray, unions: NDArray, class_ids: Sequence[int], classes: Sequence[int]
) -> dict[str, float]:
    """Returns class mIoU and FB-IoU in percent.

    Args:
        intersections: (N, 2) background and foreground pixels per episode.
        unions: (N, 2).
        class_ids: (N,) class of each episode.
        classes: all classes of the fold; one that was never sampled counts 0.
    """
    if len(class_ids) == 0:
        raise InputError("there is no episode to score: expected at least one mask pair")
    intersections, unions = np.asarray(intersections), np.asarray(unions)
    member = np.asarray(class_ids)[None, :] == np.asarray(classes)[:, None]  # (classes, N)
    class_intersections = member.astype(np.float64) @ intersections  # (classes, 2)
    class_unions = member.astype(np.float64) @ unions
    class_ious = class_intersections[:, 1] / np.maximum(class_unions[:, 1], 1)
    # max(.., 1): masks that fill every image leave no background to divide by
    both = class_intersections.sum(axis=0) / np.maximum(class_unions.sum(axis=0), 1)
    return {"mIoU": 100.0 * float(class_ious.mean()), "FB-IoU": 100.0 * float(both.mean())}


def vote(masks: NDArray, threshold: float = 0.5) -> NDArray[np.bool_]:
    """Returns the k-shot mask: votes over the largest number of votes, above the threshold.

    Args:
        masks: (K, H, W) predictions of one query, one per support.
        threshold: share of the largest vote a pixel must reach.
    """
    votes = np.asarray(masks, dtype=bool).sum(axis=0)
    return votes / max(int(votes.max()), 1) >= threshold
