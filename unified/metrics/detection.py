"""Average precision and recall of scored detections: COCO images and YouTube-VIS clips alike.

The caller says how much detections and ground truths overlap (boxes, masks or mask tubes);
pycocotools matches and counts. Source: Lin et al., Microsoft COCO, ECCV 2014; YTVOSeval of
youtubevos/cocoapi f3f9948 differs in the overlaps and the ranges of areas only.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

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
class AveragePrecision:
    """Fractions; -1 where nothing counts.

    Attributes:
        summary: the 12 numbers of COCO in the order they are printed.
        per_category: AP of each category.
    """

    summary: dict[str, float]
    per_category: tuple[float, ...]


def average_precision(
    categories: Sequence[Sequence[Scored]], areas: Sequence[AreaRange] = COCO_AREAS
) -> AveragePrecision:
    """Matches every detection, best score first, and averages over IoU 0.5 to 0.95.

    Args:
        categories: per category, one entry per image or clip.
        areas: all, small, medium, large.
    """
    precision, recall = _evaluate(categories, areas)
    whole = precision[..., 0, -1]
    names = [area.name for area in areas]
    summary = {
        "AP": _mean(whole),
        "AP50": _mean(whole[0]),
        "AP75": _mean(whole[5]),
        **{f"AP{name}": _mean(precision[..., a, -1]) for a, name in enumerate(names) if name},
        **{f"AR{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate(MAX_DETECTIONS)},
        **{f"AR{name}": _mean(recall[..., a, -1]) for a, name in enumerate(names) if name},
    }
    return AveragePrecision(summary, tuple(_mean(whole[:, :, c]) for c in range(len(categories))))


def _evaluate(
    categories: Sequence[Sequence[Scored]], areas: Sequence[AreaRange]
) -> tuple[NDArray, NDArray]:
    """Precision (IoU, recall points, categories, areas, limits) and recall without its points."""
    evaluation = COCOeval(iouType="segm")
    params = evaluation.params
    params.catIds = list(range(len(categories)))
    params.imgIds = list(range(max(map(len, categories), default=0)))
    params.areaRng = [[area.low, area.high] for area in areas]
    params.maxDets = list(MAX_DETECTIONS)
    for category, entries in enumerate(categories):
        for image, entry in enumerate(entries):
            _add(evaluation, (image, category), entry)
    evaluation.evalImgs = [
        evaluation.evaluateImg(image, category, area, MAX_DETECTIONS[-1])
        for category in params.catIds
        for area in params.areaRng
        for image in params.imgIds
    ]
    evaluation._paramsEval = params
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _add(evaluation: Any, key: tuple[int, int], entry: Scored) -> None:
    """Enters the objects of one category in one image, as ``COCOeval.evaluate`` prepares them."""
    order = np.argsort(-np.asarray(entry.scores, float), kind="stable")[: MAX_DETECTIONS[-1]]
    shape = len(entry.scores), len(entry.truth_areas)
    evaluation.ious[key] = np.asarray(entry.overlaps, float).reshape(shape)[order]
    # An id of 0 would mean that nothing matched.
    evaluation._dts[key] = [
        {"id": place, "score": float(entry.scores[d]), "area": float(entry.detection_areas[d])}
        for place, d in enumerate(order, start=1)
    ]
    truths = zip(entry.truth_areas, entry.crowd, strict=True)
    evaluation._gts[key] = [
        {"id": place, "area": float(area), "iscrowd": int(crowd), "ignore": int(crowd)}
        for place, (area, crowd) in enumerate(truths, start=1)
    ]


def _mean(values: NDArray) -> float:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0
