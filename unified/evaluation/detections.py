"""COCO and YouTube-VIS style JSON results as the overlaps that average precision needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unified.data.formats.files import read_json
from unified.errors import InputError
from unified.metrics.detection import Scored

Tube = Sequence[Mapping[str, Any] | None]


def read_results(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of a results file, each checked to hold ``keys``.

    Raises:
        InputError: the file is missing, is no list, or is of another benchmark.
    """
    entries = read_json(path, f"a list of results with {', '.join(keys)}")
    if not isinstance(entries, list):
        raise InputError(
            f"{path} holds a {type(entries).__name__}, expected a list of results with "
            f"{', '.join(keys)}: was it written for another benchmark?"
        )
    for index, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise InputError(
                f"{path}, entry {index} has no {missing[0]!r}, expected {', '.join(keys)}: "
                "was it written for another benchmark?"
            )
    return entries


def coco_entries(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, boxes: bool = False
) -> list[list[Scored]]:
    """Per category, one ``Scored`` per image that has ground truth or a result.

    Args:
        truth: COCO instances.
        results: entries with image_id, category_id, score and segmentation (RLE) or bbox.
        boxes: compare boxes instead of masks.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}

    def shape(entry: Mapping[str, Any]) -> Any:
        return entry["bbox"] if boxes else _rle(entry["segmentation"], sizes[entry["image_id"]])

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
        return [f and _rle(f, (video["height"], video["width"])) for f in frames]

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
                f"a result has {key} {entry[key]}, which the ground truth does not: "
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


def _rle(segmentation: Any, size: tuple[int, int]) -> Any:
    if isinstance(segmentation, list):  # polygons
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *size)
    return segmentation


def _mean_area(areas: Sequence[float | None]) -> float:
    present = [float(area) for area in areas if area]
    return float(np.mean(present)) if present else 0.0
