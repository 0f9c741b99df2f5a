"""Average precision and recall of scored detections: COCO images and YouTube-VIS clips alike.

The caller says how much detections and ground truths overlap (boxes, masks or mask tubes); what is
counted is the same. Source: Lin et al., Microsoft COCO, ECCV 2014; pycocotools COCOeval and
youtubevos/cocoapi f3f9948 YTVOSeval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = (1, 10, 100)
LARGEST = 1e10


@dataclass(frozen=True)
class AreaRange:
    """Ground truths inside [low, high] pixels count, others are ignored."""

    name: str
    low: float
    high: float


COCO_AREAS = (
    AreaRange("", 0, LARGEST),
    AreaRange("s", 0, 32**2),
    AreaRange("m", 32**2, 96**2),
    AreaRange("l", 96**2, LARGEST),
)
YOUTUBE_VIS_AREAS = (
    AreaRange("", 0, LARGEST),
    AreaRange("s", 0, 128**2),
    AreaRange("m", 128**2, 256**2),
    AreaRange("l", 256**2, LARGEST),
)


@dataclass(frozen=True)
class Scored:
    """Everything of one category in one image or clip.

    Attributes:
        overlaps: (D, G) IoU; for a crowd, intersection over the detection.
        scores: (D,).
        detection_areas: (D,) pixels.
        truth_areas: (G,) pixels.
        crowd: (G,) bool; a crowd is ignored and may be matched any number of times.
    """

    overlaps: NDArray
    scores: NDArray
    detection_areas: NDArray
    truth_areas: NDArray
    crowd: NDArray


@dataclass(frozen=True)
class Matches:
    """Detections of one image by falling score: (D,) scores, (10, D) hit, (10, D) ignored."""

    scores: NDArray
    hit: NDArray
    ignored: NDArray
    num_truths: int


def detection_summary(
    categories: Sequence[Sequence[Scored]], areas: Sequence[AreaRange] = COCO_AREAS
) -> dict[str, float]:
    """Returns the 12 numbers of COCO in the order they are printed, -1 where nothing counts.

    Args:
        categories: per category, one entry per image or clip.
        areas: all, small, medium, large.
    """
    precision, recall = {}, {}
    for area in areas:
        for limit in MAX_DETECTIONS if not area.name else MAX_DETECTIONS[-1:]:
            curves = [
                precision_recall([match(s, area, limit) for s in entries]) for entries in categories
            ]
            precision[area.name, limit] = np.array([p for p, _ in curves])  # (C, 10, 101)
            recall[area.name, limit] = np.array([r for _, r in curves])  # (C, 10)
    top = MAX_DETECTIONS[-1]
    whole = precision["", top]
    return {
        "AP": _mean(whole),
        "AP50": _mean(whole[:, 0]),
        "AP75": _mean(whole[:, 5]),
        **{f"AP{a.name}": _mean(precision[a.name, top]) for a in areas[1:]},
        **{f"AR{limit}": _mean(recall["", limit]) for limit in MAX_DETECTIONS},
        **{f"AR{a.name}": _mean(recall[a.name, top]) for a in areas[1:]},
    }


def average_precision(entries: Sequence[Scored]) -> float:
    """Returns AP of one category, as fraction; -1 without ground truth."""
    matches = [match(entry, COCO_AREAS[0], MAX_DETECTIONS[-1]) for entry in entries]
    return _mean(precision_recall(matches)[0])


def match(entry: Scored, area: AreaRange, limit: int) -> Matches:
    """Gives each detection, best score first, the free ground truth it overlaps most."""
    order = np.argsort(-np.asarray(entry.scores), kind="stable")[:limit]
    truth_areas = np.asarray(entry.truth_areas, dtype=float)
    crowd = np.asarray(entry.crowd, dtype=bool)
    truth_ignored = crowd | (truth_areas < area.low) | (truth_areas > area.high)
    truths = np.argsort(truth_ignored, kind="stable")  # those that count come first
    overlaps = np.asarray(entry.overlaps, float).reshape(len(entry.scores), len(truth_areas))
    overlaps = overlaps[order][:, truths]
    truth_ignored, crowd = truth_ignored[truths], crowd[truths]
    outside = np.asarray(entry.detection_areas, dtype=float)[order]
    outside = (outside < area.low) | (outside > area.high)
    shape = (len(IOU_THRESHOLDS), len(order))
    hit, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        taken = np.zeros(len(truths), dtype=bool)
        for d, row in enumerate(overlaps):
            best = _best_truth(row, taken & ~crowd, truth_ignored, threshold)
            if best is None:
                ignored[t, d] = outside[d]
                continue
            taken[best] = True
            hit[t, d], ignored[t, d] = True, truth_ignored[best]
    scores = np.asarray(entry.scores, dtype=float)[order]
    return Matches(scores, hit, ignored, int(np.count_nonzero(~truth_ignored)))


def precision_recall(images: Sequence[Matches]) -> tuple[NDArray, NDArray]:
    """Returns (10, 101) precision at the recall points and (10,) final recall; -1 without truth."""
    num_thresholds = len(IOU_THRESHOLDS)
    num_truths = sum(image.num_truths for image in images)
    if num_truths == 0:
        return -np.ones((num_thresholds, len(RECALL_POINTS))), -np.ones(num_thresholds)
    order = np.argsort(-np.concatenate([i.scores for i in images]), kind="stable")
    hit = np.concatenate([i.hit for i in images], axis=1)[:, order]
    counted = ~np.concatenate([i.ignored for i in images], axis=1)[:, order]
    true = np.cumsum(hit & counted, axis=1).astype(float)
    false = np.cumsum(~hit & counted, axis=1).astype(float)
    precision = np.zeros((num_thresholds, len(RECALL_POINTS)))
    final = np.zeros(num_thresholds)
    for t in range(num_thresholds):
        recall = true[t] / num_truths
        envelope = true[t] / (true[t] + false[t] + np.spacing(1))
        envelope = np.maximum.accumulate(envelope[::-1])[::-1]
        at = np.searchsorted(recall, RECALL_POINTS, side="left")
        precision[t, at < len(envelope)] = envelope[at[at < len(envelope)]]
        final[t] = recall[-1] if len(recall) else 0.0
    return precision, final


def _best_truth(
    overlaps: NDArray, blocked: NDArray, ignored: NDArray, threshold: float
) -> int | None:
    """Index of the best ground truth, one that counts before one that is ignored."""
    for group in (~ignored, ignored):
        open_to = np.flatnonzero(group & ~blocked & (overlaps >= min(threshold, 1 - 1e-10)))
        if len(open_to):
            # the last of equals, as in the official loop
            best = overlaps[open_to]
            return int(open_to[len(best) - 1 - np.argmax(best[::-1])])
    return None


def _mean(values: NDArray) -> float:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0
