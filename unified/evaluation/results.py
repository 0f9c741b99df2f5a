"""Scoring results in JSON: COCO, YouTube-VIS, boxes of referring expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified.data.formats.files import read_json
from unified.errors import InputError
from unified.evaluation import images
from unified.evaluation.detections import coco_entries, read_results, youtube_vis_entries
from unified.evaluation.images import Overlap
from unified.evaluation.report import MISSING_RESULT, Problems, Request, Row, Scores, percent
from unified.metrics import detection, generalized, iou
from unified.metrics.detection import Scored

NO_BOX = (0.0, 0.0, 0.0, 0.0)
COCO_KEYS = ("images", "annotations", "categories")


def score_coco(request: Request, *, boxes: bool) -> Scores:
    """The 12 numbers of COCO for masks or boxes."""
    truth = read_json(request.truth, "COCO instances", COCO_KEYS)
    shape = "bbox" if boxes else "segmentation"
    results = _read(request, truth, ("image_id", "category_id", "score", shape))
    entries = coco_entries(truth, results, boxes=boxes)
    return detection_scores(truth, entries, detection.COCO_AREAS)


def score_youtube_vis(request: Request) -> Scores:
    """The 12 numbers of YouTube-VIS."""
    truth = read_json(request.truth, "YouTube-VIS instances", ("videos", *COCO_KEYS[1:]))
    keys = ("video_id", "category_id", "score", "segmentations")
    entries = youtube_vis_entries(truth, _read(request, truth, keys))
    return detection_scores(truth, entries, detection.YOUTUBE_VIS_AREAS)


def _read(request: Request, truth: Mapping[str, Any], keys: Sequence[str]) -> list[dict[str, Any]]:
    """The results, whose classes must be those of the ground truth."""
    path = _results_file(request)
    found = read_results(path, keys)
    known = {category["id"] for category in truth["categories"]}
    for index, entry in enumerate(found):
        if entry["category_id"] not in known:
            raise InputError(
                f"{path}, entry {index} has category_id {entry['category_id']}, which "
                f"{request.truth} does not: are the class ids those of this benchmark?"
            )
    return found


def detection_scores(
    truth: Mapping[str, Any],
    entries: Sequence[Sequence[Scored]],
    areas: Sequence[detection.AreaRange],
) -> Scores:
    """The 12 numbers in percent and AP per category."""
    summary = detection.detection_summary(entries, areas)
    numbers = {key: 100 * v if v >= 0 else float("nan") for key, v in summary.items()}
    each = [detection.average_precision(category) for category in entries]
    rows = [
        Row(category["name"], "", {"AP": 100 * ap if ap >= 0 else float("nan")})
        for category, ap in zip(truth["categories"], each, strict=True)
    ]
    return Scores(numbers, rows, Problems(allowed=False), "category")


def score_referring_boxes(request: Request) -> Scores:
    """Box P@X: the best scored box of every expression, one annotation per image entry."""
    truth = read_json(request.truth, "one box per expression, COCO style", COCO_KEYS)
    results = read_results(_results_file(request), ("image_id", "bbox", "score"))
    problems = Problems(request.allow_missing)
    best: dict[int, Any] = {}
    for entry in results:
        held = best.get(entry["image_id"])
        if held is None or entry["score"] > held["score"]:
            best[entry["image_id"]] = entry
    samples = []
    for annotation in truth["annotations"]:
        image = annotation["image_id"]
        found = best.get(image, {"bbox": NO_BOX})
        if found["bbox"] is NO_BOX:
            problems.found(
                MISSING_RESULT,
                f"{_results_file(request)} has no box for image entry {image}: give one each",
            )
        samples.append(measure_boxes(str(image), annotation["bbox"], found["bbox"]))
    return images.referring_scores(samples, iou.UNIREF, problems)


def measure_boxes(name: str, truth: Sequence[float], prediction: Sequence[float]) -> Overlap:
    """Areas of two boxes (x, y, width, height)."""
    inter, union = iou.box_overlap(*(iou.xywh_to_xyxy([box]) for box in (truth, prediction)))
    areas = (float(box[2]) * float(box[3]) for box in (truth, prediction))
    true, predicted = areas
    return Overlap(name, float(inter[0, 0]), float(union[0, 0]), true, predicted)


def score_generalized_boxes(request: Request) -> Scores:
    """GREC: Pr@(F1=1), T-acc, N-acc; results are image id -> scores and boxes_xyxy."""
    truth = read_json(request.truth, "gRefCOCO boxes, COCO style", COCO_KEYS)
    path = _results_file(request)
    results = read_json(path, "an object: image id -> scores, boxes_xyxy")
    problems = Problems(request.allow_missing)
    f1, kept, no_target, rows = [], [], [], []
    for image in truth["images"]:
        found = results.get(str(image["id"])) if isinstance(results, dict) else None
        if found is None or not {"scores", "boxes_xyxy"} <= set(found):
            problems.found(
                MISSING_RESULT,
                f"{path} has no scores and boxes_xyxy for image {image['id']}: give every image",
            )
            found = {"scores": [], "boxes_xyxy": []}
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = [a["bbox"] for a in mine if a["category_id"] != -1]
        predicted = np.array(found["boxes_xyxy"]).reshape(-1, 4), np.array(found["scores"])
        f1.append(generalized.box_f1(iou.xywh_to_xyxy(boxes), *predicted))
        kept.append(len(generalized.kept_boxes(*predicted)))
        no_target.append(not boxes)
        rows.append(Row(str(image["id"]), "", {"F1": 100 * f1[-1], "boxes": float(kept[-1])}))
    summary = generalized.box_summary(np.array(f1), np.array(kept), np.array(no_target))
    return Scores(percent(summary), rows, problems, "expression")


def _results_file(request: Request) -> Path:
    """The JSON file itself, or ``results.json`` inside a folder."""
    path = request.prediction
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path} is missing: expected results in JSON")
    return path
