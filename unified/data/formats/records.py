"""What every reader returns: one dictionary per image, or per clip, and access to its masks.

Records are plain dictionaries so that Detectron2's catalog, loaders and drawing functions take
them as they are. Paths are strings; boxes are (x, y, w, h) in pixels of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from unified.data.formats.files import read_json, segmentation_mask
from unified.errors import InputError
from unified.mask_files import (
    VOID,
    check_edges,
    is_black_and_white,
    read_ids,
    read_object_mask,
)

XYWH_ABS = 1  # the value of detectron2.structures.BoxMode.XYWH_ABS


class Annotation(TypedDict, total=False):
    """One object of an image: COCO style, or a mask file.

    Keys:
        bbox, bbox_mode, segmentation, category_id, iscrowd, id: as in Detectron2; without
            ``segmentation`` only the box is known.
        mask_file: an image of the size of the picture.
        mask_value: the object is where the mask has this value, 255 is void; if absent, the object
            is where the mask is 128 or more.
        category_name: of ``category_id``, where it is known.
    """

    bbox: list[float]
    bbox_mode: int
    segmentation: Any
    category_id: int
    category_name: str
    iscrowd: int
    id: int
    mask_file: str
    mask_value: int


class ImageRecord(TypedDict, total=False):
    """One image.

    Keys:
        dataset, task: added by the catalog; the name there and a value of ``Task``.
        annotations: all objects (detection), the referred ones (RIS; several or none are possible)
            or the one of the class (FSS).
        expressions: sentences for the annotations; a test record has exactly one.
        expression_id: of the only sentence.
        class_id, class_name: FSS; ids from 0.
        supports: FSS; other images of the class with one annotation each.
    """

    dataset: str
    task: str
    file_name: str
    image_id: int | str
    height: int
    width: int
    annotations: list[Annotation]
    expressions: list[str]
    expression_id: int
    class_id: int
    class_name: str
    supports: list[ImageRecord]


class ClipRecord(TypedDict, total=False):
    """One clip, or one clip with one sentence.

    Keys:
        dataset, task: added by the catalog.
        clip_id: name of the clip; ``frame_names`` and ``file_names``: T names and paths.
        mask_files: T label maps, None where a frame has none.
        all_masked: True where the release has a label map for every frame.
        binary_masks: label maps hold one object, id 1, wherever they are not 0.
        tracks: object id -> T run-length codes, None where it is not visible, or the path of a
            JSON file with that list; used instead of ``mask_files``.
        first_frames: object id -> index of the frame whose mask starts it at test time.
        unseen_ids: objects that count as unseen in a benchmark that tells them apart.
        frame_ranges: LVOS; object id -> start, end and frame_nums of the frames that are scored.
        expression, expression_id: the sentence and its key in the released file.
        target_ids: the objects that the sentence refers to.
    """

    dataset: str
    task: str
    clip_id: str
    file_names: list[str]
    frame_names: list[str]
    height: int
    width: int
    mask_files: list[str | None]
    all_masked: bool
    binary_masks: bool
    tracks: dict[int, list[Any] | str]
    first_frames: dict[int, int]
    unseen_ids: list[int]
    frame_ranges: dict[int, dict[str, str]]
    expression: str
    expression_id: str
    target_ids: list[int]


Record = dict[str, Any]  # an ImageRecord or a ClipRecord, as the catalog hands them out


def annotation_mask(annotation: Annotation, height: int, width: int) -> np.ndarray | None:
    """(H, W) bool mask of an object; None when only its box is known.

    Raises:
        InputError: the mask file has another size than the image.
    """
    if "mask_file" in annotation:
        return _mask_file(annotation, height, width) == 1
    if "segmentation" not in annotation:
        return None
    owner = f"annotation {annotation['id']}" if "id" in annotation else "an annotation"
    return segmentation_mask(annotation["segmentation"], height, width, owner)


def object_masks(
    annotations: Sequence[Annotation], height: int, width: int
) -> list[np.ndarray] | None:
    """(H, W) bool per object of an image; None when only their boxes are known.

    Raises:
        InputError: one cannot be read, or only some have a mask.
    """
    masks = [annotation_mask(entry, height, width) for entry in annotations]
    known = [mask for mask in masks if mask is not None]
    if annotations and not known:
        return None
    for entry, mask in zip(annotations, masks, strict=True):
        if mask is None:
            raise InputError(
                f"annotation {entry.get('id')} has only a box, but others of its image have a "
                "segmentation: give it to all or to none"
            )
    return known


def annotation_void(annotation: Annotation, height: int, width: int) -> np.ndarray:
    """(H, W) bool: pixels that belong to no class and are not scored."""
    if "mask_value" not in annotation:
        return np.zeros((height, width), dtype=bool)
    return _mask_file(annotation, height, width) == VOID


def _mask_file(annotation: Annotation, height: int, width: int) -> np.ndarray:
    """(H, W) uint8: 1 on the object, 255 on void, 0 elsewhere."""
    path, value = annotation["mask_file"], annotation.get("mask_value")
    if value is None:
        result = read_object_mask(path).astype(np.uint8)
    else:
        labels = read_ids(path)
        result = np.where(labels == VOID, VOID, labels == value).astype(np.uint8)
    if result.shape != (height, width):
        raise InputError(
            f"{path} has size {result.shape}: expected {(height, width)}, the size of its image"
        )
    return result


def frame_masks(record: ClipRecord, frame: int) -> dict[int, np.ndarray]:
    """object id -> (H, W) bool mask, of the annotated objects visible in a frame of a clip."""
    if "tracks" in record:
        codes = {number: _track(codes)[frame] for number, codes in record["tracks"].items()}
        size = record["height"], record["width"]
        visible = [item for item in codes.items() if item[1] is not None and item[1] != []]
        return {number: segmentation_mask(code, *size) for number, code in visible}
    labels = frame_labels(record, frame)
    if labels is None:
        return {}
    present = np.unique(labels).tolist()
    return {number: labels == number for number in present if number not in (0, VOID)}


def frame_labels(record: ClipRecord, frame: int) -> np.ndarray | None:
    """(H, W) uint8 label map of a frame; None where the release has no mask for it.

    Raises:
        InputError: it cannot be read, or holds soft edges instead of ids.
    """
    path = record["mask_files"][frame]
    if path is None:
        return None
    labels = read_ids(path)
    one_object = record.get("binary_masks", False)
    if not one_object and labels.max() == VOID:
        one_object = is_black_and_white(tuple(file for file in record["mask_files"] if file))
    if one_object:
        return (labels > 0).astype(np.uint8)
    check_edges(path, labels)
    return labels


def target_mask(record: ClipRecord, frame: int) -> np.ndarray:
    """(H, W) bool: the objects that the sentence of a record refers to, together."""
    return np.asarray(target_masks(record, frame).any(axis=0))


def target_masks(record: ClipRecord, frame: int) -> np.ndarray:
    """(K, H, W) bool: those objects of the sentence of a record that a frame shows, one by one."""
    masks = frame_masks(record, frame)
    shown = [masks[number] for number in dict.fromkeys(record["target_ids"]) if number in masks]
    shown = [mask for mask in shown if mask.any()]
    return np.stack(shown) if shown else np.zeros((0, record["height"], record["width"]), bool)


def _track(codes: list[Any] | str) -> list[Any]:
    return _read_track(codes) if isinstance(codes, str) else codes


@lru_cache(maxsize=64)
def _read_track(path: str) -> list[Any]:
    track: list[Any] = read_json(Path(path), "the run-length codes of an object")
    return track
