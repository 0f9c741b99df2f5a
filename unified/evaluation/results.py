"""Scoring results in JSON: COCO, YouTube-VIS, boxes of referring expressions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified.data.formats.files import read_json
from unified.data.formats.refer import NO_TARGET
from unified.errors import InputError
from unified.evaluation import images
from unified.evaluation.detections import (
    check_entries,
    coco_entries,
    read_results,
    read_truth,
    youtube_vis_entries,
)
from unified.evaluation.images import Overlap
from unified.evaluation.report import (
    MISSING_RESULT,
    Problems,
    Request,
    Row,
    Scores,
    counted,
    percent,
)
from unified.metrics import detection, generalized, iou
from unified.metrics.detection import Scored

logger = logging.getLogger(__name__)

NO_BOX = (0.0, 0.0, 0.0, 0.0)
YOUTUBE_VIS_KEYS = {
    "videos": ("id", "height", "width", "length"),
    "annotations": ("video_id", "category_id", "segmentations", "areas"),
    "categories": ("id",),
}
EXPRESSION_KEYS = {"images": ("id",), "annotations": ("image_id", "category_id", "bbox")}


def score_coco(request: Request, *, boxes: bool) -> Scores:
    """The 12 numbers of COCO for masks or boxes."""
    shape = "bbox" if boxes else "segmentation"
    truth = read_coco(request.truth, shape)
    results = _read(request, truth, ("image_id", "category_id", "score", shape))
    named = {entry["category_id"] for entry in results}
    present = {entry["category_id"] for entry in truth["annotations"]}
    if len(named) == 1 < len(present) and not request.class_agnostic:
        logger.warning(
            "all results are of category %s, the ground truth has %d: of a model without classes "
            "score them with --class-agnostic",
            *named,
            len(present),
        )
    with _naming(request):
        scores = coco_scores(truth, results, boxes=boxes, class_agnostic=request.class_agnostic)
    return replace(scores, notes=(*scores.notes, *_without_result(scores, results, "image_id")))


def coco_scores(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    boxes: bool,
    class_agnostic: bool = False,
) -> Scores:
    """The 12 numbers of COCO; of a model without classes those of all categories as one.

    Such a model calls everything by one category. Judged by categories, perfect masks would have
    next to no precision, so the categories are merged and a note says so.
    """
    notes: tuple[str, ...] = ()
    if class_agnostic and len(truth["categories"]) > 1:
        notes = (f"class-agnostic: {len(truth['categories'])} categories merged",)
        merged = [{**entry, "category_id": 1} for entry in truth["annotations"]]
        categories = [{"id": 1, "name": "any category"}]
        truth = {**truth, "annotations": merged, "categories": categories}
        results = [{**entry, "category_id": 1} for entry in results]
    entries = coco_entries(truth, results, boxes=boxes)
    return replace(detection_scores(truth, entries, detection.COCO_AREAS), notes=notes)


def read_coco(path: Path, shape: str) -> Mapping[str, list[dict[str, Any]]]:
    """COCO instances that have what scoring needs; ``shape`` is segmentation or bbox.

    Raises:
        InputError: the file is missing, or an entry lacks something.
    """
    keys = {
        "images": ("id", "height", "width"),
        "annotations": ("image_id", "category_id", shape, "area"),
        "categories": ("id",),
    }
    return read_truth(path, "COCO instances", keys)


def score_youtube_vis(request: Request) -> Scores:
    """The 12 numbers of YouTube-VIS."""
    truth = read_truth(request.truth, "YouTube-VIS instances", YOUTUBE_VIS_KEYS)
    results = _read(request, truth, ("video_id", "category_id", "score", "segmentations"))
    with _naming(request):
        entries = youtube_vis_entries(truth, results)
    scores = detection_scores(truth, entries, detection.YOUTUBE_VIS_AREAS)
    return replace(scores, notes=_without_result(scores, results, "video_id"))


def _without_result(
    scores: Scores, results: Sequence[Mapping[str, Any]], key: str
) -> tuple[str, ...]:
    """A note of how many images or videos nothing was found in, which is no fault by itself."""
    number = (scores.num_samples or 0) - len({entry[key] for entry in results})
    return (f"{counted(number, scores.sample)} without a result",) if number else ()


def read_youtube_vis(path: Path) -> Mapping[str, list[dict[str, Any]]]:
    """YouTube-VIS instances; without annotations, as in the public validation sets, none.

    Raises:
        InputError: the file is missing, or an entry lacks something.
    """
    annotated = dict(YOUTUBE_VIS_KEYS)
    keys = annotated.pop("annotations")
    truth = read_truth(path, "YouTube-VIS instances", annotated)
    annotations = truth.get("annotations") or []
    check_entries(f"{path}, annotations", annotations, keys)
    return {**truth, "annotations": annotations}


@contextmanager
def _naming(request: Request) -> Iterator[None]:
    """Says which files an error in a mask or an id is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{request.prediction} against {request.truth}: {error}") from error


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
    found = detection.average_precision(entries, areas)
    numbers = {key: 100 * v if v >= 0 else float("nan") for key, v in found.summary.items()}
    rows = [
        Row(
            str(category.get("name", category["id"])),
            "",
            {"AP": 100 * ap if ap >= 0 else float("nan")},
        )
        for category, ap in zip(truth["categories"], found.per_category, strict=True)
    ]
    kind = "video" if "videos" in truth else "image"
    return Scores(
        numbers,
        rows,
        Problems(allowed=False),
        kind,
        row="category",
        num_samples=len(truth[f"{kind}s"]),
    )


def score_referring_boxes(request: Request) -> Scores:
    """Box P@X: the best scored box of every expression, one annotation per image entry."""
    truth = read_truth(request.truth, "one box per expression, COCO style", EXPRESSION_KEYS)
    path = _results_file(request)
    results = read_results(path, ("image_id", "bbox", "score"))
    problems = Problems(request.allow_missing)
    _check_images(path, [r["image_id"] for r in results], [i["id"] for i in truth["images"]])
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
            problems.found(MISSING_RESULT, f"{path} has no box for image entry {image}: give one")
        samples.append(measure_boxes(str(image), annotation["bbox"], found["bbox"]))
    return images.referring_scores(samples, iou.UNIREF, problems)


def _check_images(path: Path, found: Iterable[Any], known: Sequence[Any]) -> None:
    """Raises an ``InputError`` if there are results of images that the ground truth lacks."""
    ids = set(known)
    if unknown := [image for image in found if image not in ids]:
        raise InputError(
            f"{path} has image {unknown[0]!r}, which the ground truth does not: were the results "
            "made for another split?"
        )


def measure_boxes(name: str, truth: Sequence[float], prediction: Sequence[float]) -> Overlap:
    """Areas of two boxes (x, y, width, height)."""
    inter, union = iou.box_overlap(*(iou.xywh_to_xyxy([box]) for box in (truth, prediction)))
    areas = (float(box[2]) * float(box[3]) for box in (truth, prediction))
    true, predicted = areas
    return Overlap(name, float(inter[0, 0]), float(union[0, 0]), true, predicted)


@dataclass(frozen=True)
class BoxSample:
    """One expression: true boxes (x, y, w, h), none if it names nothing, and scored boxes xyxy."""

    name: str
    truth: Sequence[Sequence[float]]
    corners: NDArray
    scores: NDArray


def score_generalized_boxes(request: Request) -> Scores:
    """GREC: Pr@(F1=1), T-acc, N-acc; results are image id -> scores and boxes_xyxy."""
    truth = read_truth(request.truth, "gRefCOCO boxes, COCO style", EXPRESSION_KEYS)
    path = _results_file(request)
    what = "object of image id -> scores, boxes_xyxy"
    found = read_json(path, f"an {what}")
    if not isinstance(found, dict):
        raise InputError(f"{path} is no {what}: was it written for another benchmark?")
    _check_images(path, found, [str(image["id"]) for image in truth["images"]])
    problems = Problems(request.allow_missing)
    boxes: dict[Any, list[Any]] = {image["id"]: [] for image in truth["images"]}
    for index, annotation in enumerate(truth["annotations"]):
        image = annotation["image_id"]
        if image not in boxes:
            raise InputError(
                f"{request.truth}, annotation {index} is of image {image}, which is not in its "
                "list of images: is the file complete?"
            )
        if annotation["category_id"] != NO_TARGET:
            boxes[image].append(annotation["bbox"])
    samples = []
    for name, true in boxes.items():
        entry: Any = found.get(str(name))
        lists = entry if isinstance(entry, dict) else {}
        if not all(isinstance(lists.get(key), list) for key in ("scores", "boxes_xyxy")):
            problems.found(
                MISSING_RESULT,
                f"{path} has no scores and boxes_xyxy for image {name}: give every image",
            )
            entry = {"scores": [], "boxes_xyxy": []}
        scored = zip_longest(entry["boxes_xyxy"], entry["scores"])
        pairs = [{"box_xyxy": box, "score": score} for box, score in scored]
        check_entries(f"{path}, image {name}", pairs, ("box_xyxy", "score"))
        corners = np.array([pair["box_xyxy"] for pair in pairs], float).reshape(-1, 4)
        samples.append(BoxSample(str(name), true, corners, np.array(entry["scores"], float)))
    return generalized_box_scores(samples, problems)


def generalized_box_scores(samples: Sequence[BoxSample], problems: Problems) -> Scores:
    """Pr@(F1=1), T-acc and N-acc of judged expressions."""
    f1 = [generalized.box_f1(iou.xywh_to_xyxy(s.truth), s.corners, s.scores) for s in samples]
    kept = [len(generalized.kept_boxes(s.corners, s.scores)) for s in samples]
    no_target = np.array([len(s.truth) == 0 for s in samples])
    rows = [
        Row(s.name, "", {"F1": 100 * value, "boxes": float(number)})
        for s, value, number in zip(samples, f1, kept, strict=True)
    ]
    summary = generalized.box_summary(np.array(f1), np.array(kept), no_target)
    return Scores(percent(summary), rows, problems, "expression")


def box_truth(boxes: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """The annotation file of expressions, name -> true boxes (x, y, w, h)."""
    entries = [(name, box) for name, mine in boxes.items() for box in mine]
    return {
        "images": [{"id": name} for name in boxes],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [
            {"id": number, "image_id": name, "category_id": 1, "bbox": list(box)}
            for number, (name, box) in enumerate(entries, start=1)
        ],
    }


def _results_file(request: Request) -> Path:
    """The JSON file itself, or ``results.json`` inside a folder.

    Raises:
        InputError: it is missing.
    """
    path = request.prediction
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path} is missing: expected results in JSON")
    return path
