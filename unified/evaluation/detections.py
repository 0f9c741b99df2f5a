"""COCO and YouTube-VIS style JSON results as the overlaps that average precision needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unified.data.formats.files import by_id, read_json, segmentation_code
from unified.errors import InputError
from unified.metrics.detection import Scored

Tube = Sequence[Mapping[str, Any] | None]


def _is_number(value: Any) -> bool:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value > 0 and value == int(value)


def _is_numbers(value: Any, length: int | None = None) -> bool:
    is_list = isinstance(value, list) and all(map(_is_number, value))
    return is_list and length in (None, len(value))


def is_mask(value: Any) -> bool:
    """Whether a value is a run-length code, or polygons, which pycocotools takes from 2 corners."""
    if isinstance(value, list):
        return bool(value) and all(_is_numbers(p) and len(p) >= 4 for p in value)
    if not isinstance(value, dict) or not _is_numbers(value.get("size"), 2):
        return False
    return isinstance(value.get("counts"), str) or _is_numbers(value.get("counts"))


# key of an entry -> whether a value will do, and what to call one that does
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "score": (_is_number, "a number"),
    "area": (_is_number, "a number"),
    "bbox": (
        lambda value: _is_numbers(value, 4) and min(value[2:]) >= 0,
        "4 numbers: x, y, width, height",
    ),
    "box_xyxy": (lambda value: _is_numbers(value, 4), "4 numbers: x and y of two corners"),
    "segmentation": (is_mask, "a run-length code or polygons"),
    "segmentations": (
        lambda value: isinstance(value, list) and all(v is None or is_mask(v) for v in value),
        "a list with a run-length code or null per frame",
    ),
    "areas": (lambda value: isinstance(value, list), "a list with a number or null per frame"),
    "length": (_is_count, "a number of frames"),
    "height": (_is_count, "a number of pixels"),
    "width": (_is_count, "a number of pixels"),
}
_ID = (lambda value: isinstance(value, (int, str)), "a number or text")


def read_results(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of a results file, each checked to hold ``keys``.

    Raises:
        InputError: the file is missing, is no list, or is of another benchmark.
    """
    entries = read_json(path, f"a list of results with {', '.join(keys)}")
    check_entries(f"{path}", entries, keys)
    return list(entries)


def read_truth(
    path: Path, what: str, keys: Mapping[str, Sequence[str]]
) -> Mapping[str, list[dict[str, Any]]]:
    """An annotation file; ``keys`` are those of the entries of each of its lists.

    Raises:
        InputError: the file is missing, or is of another benchmark.
    """
    truth: Mapping[str, Any] = read_json(path, what, keys)
    for name, wanted in keys.items():
        check_entries(f"{path}, {name}", truth[name], wanted)
        by_id((entry for entry in truth[name] if "id" in entry), name, path)
    return truth


def check_entries(where: str, entries: Any, keys: Sequence[str]) -> None:
    """Raises InputError unless ``entries`` is a list of objects with fitting values of ``keys``."""
    wanted = ", ".join(keys)
    if not isinstance(entries, list):
        raise InputError(
            f"{where} holds a {type(entries).__name__}, expected a list of entries with {wanted}: "
            "was it written for another benchmark?"
        )
    for index, entry in enumerate(entries):
        for key in keys:
            if not isinstance(entry, dict) or key not in entry:
                raise InputError(
                    f"{where}, entry {index} has no {key!r}, expected {wanted}: "
                    "was it written for another benchmark?"
                )
            fits, what = _FIELDS.get(key, _ID)
            if not fits(entry[key]):
                shown = repr(entry[key])[:60]
                raise InputError(f"{where}, entry {index}: {key} is {shown}, expected {what}")


def coco_entries(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, boxes: bool = False
) -> list[list[Scored]]:
    """Per category, one ``Scored`` per image that has ground truth or a result.

    Args:
        truth: COCO instances.
        results: entries with image_id, category_id, score and segmentation (RLE) or bbox.
        boxes: compare boxes instead of masks.
    """
    sizes = {image["id"]: _size(image) for image in truth["images"]}

    def shape(entry: Mapping[str, Any]) -> Any:
        return (
            entry["bbox"]
            if boxes
            else _rle(entry["segmentation"], sizes[entry["image_id"]], _owner(entry, "image_id"))
        )

    def score(truths: Sequence[Any], detections: Sequence[Any]) -> Scored:
        crowd = np.array([t.get("iscrowd", 0) for t in truths], dtype=bool)
        shapes = [shape(d) for d in detections], [shape(t) for t in truths]
        overlaps = np.zeros((len(detections), len(truths)))
        if overlaps.size:
            overlaps = coco_mask.iou(*shapes, crowd.astype(np.uint8).tolist())
        areas = [float(s[2] * s[3] if boxes else coco_mask.area(s)) for s in shapes[0]]
        return Scored(
            overlaps,
            np.array([d["score"] for d in detections]),
            np.array(areas),
            np.array([t["area"] for t in truths]),
            crowd,
        )

    return _grouped(truth, results, "image_id", sizes, score)


def youtube_vis_entries(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> list[list[Scored]]:
    """Per category, one ``Scored`` per video; masks of all frames make one tube."""
    videos = {video["id"]: video for video in truth["videos"]}

    def tube(entry: Mapping[str, Any]) -> list[Any]:
        video = videos[entry["video_id"]]
        frames = entry["segmentations"]
        if len(frames) != video["length"]:
            raise InputError(
                f"a result of video {video['id']} has {len(frames)} masks, the video has "
                f"{video['length']} frames: give one mask or null per frame"
            )
        return [f and _rle(f, _size(video), _owner(entry, "video_id")) for f in frames]

    def score(truths: Sequence[Any], detections: Sequence[Any]) -> Scored:
        tubes = [tube(t) for t in truths]
        found = [tube(d) for d in detections]
        overlaps = [[tube_overlap(d, t) for t in tubes] for d in found]
        return Scored(
            np.array(overlaps).reshape(len(found), len(tubes)),
            np.array([d["score"] for d in detections]),
            np.array([_mean_area([f and coco_mask.area(f) for f in d]) for d in found]),
            np.array([_mean_area(t["areas"]) for t in truths]),
            np.array([t.get("iscrowd", 0) for t in truths], dtype=bool),
        )

    return _grouped(truth, results, "video_id", videos, score)


def tube_overlap(first: Tube, second: Tube) -> float:
    """IoU of two mask tubes: areas are summed over frames before dividing."""
    intersection = union = 0.0
    for a, b in zip(first, second, strict=True):
        present = [mask for mask in (a, b) if mask]
        if present:
            union += float(coco_mask.area(coco_mask.merge(present)))
        if len(present) == 2:
            intersection += float(coco_mask.area(coco_mask.merge(present, intersect=True)))
    return intersection / union if union else 0.0


def _grouped(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    key: str,
    known: Mapping[int, Any],
    score: Any,
) -> list[list[Scored]]:
    categories = [category["id"] for category in truth["categories"]]
    for entry in results:
        if entry[key] not in known:
            raise InputError(
                f"a result has {key} {entry[key]!r}, which the ground truth does not: "
                "were the results made for another split?"
            )
    pairs: dict[tuple[int, int], tuple[list[Any], list[Any]]] = {}
    for side, entries in enumerate((truth["annotations"], results)):
        for entry in entries:
            at = (entry["category_id"], entry[key])
            pairs.setdefault(at, ([], []))[side].append(entry)
    return [
        [score(*pairs[category, i]) for i in known if (category, i) in pairs]
        for category in categories
    ]


def _owner(entry: Mapping[str, Any], key: str) -> str:
    """What an annotation or a result, which has no id, is called in errors."""
    number = entry.get("id")
    return f"annotation {number}" if number is not None else f"a result of {key} {entry[key]}"


def _size(entry: Mapping[str, Any]) -> tuple[int, int]:
    return int(entry["height"]), int(entry["width"])


def _rle(segmentation: Any, size: tuple[int, int], owner: str) -> Any:
    if isinstance(segmentation, list):  # polygons
        return segmentation_code(segmentation, *size, owner)
    if tuple(segmentation["size"]) != size:
        have, want = (f"{width}x{height}" for height, width in (segmentation["size"], size))
        raise InputError(f"a mask is {have} pixels, its image is {want}")
    return segmentation_code(segmentation, *size, owner)


def _mean_area(areas: Sequence[float | None]) -> float:
    present = [float(area) for area in areas if area]
    return float(np.mean(present)) if present else 0.0
