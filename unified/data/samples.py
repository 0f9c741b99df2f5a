"""Samples: what a model trains on, or is asked at test time, and the records they come from.

Sample dictionary: ``image`` (3, h, w) uint8 RGB; ``instances`` with ``gt_boxes`` (xyxy pixels),
``gt_classes`` and ``gt_masks`` (M, h, w), which are filled boxes where only boxes are known;
``class_names`` of the instances in detection, where they are known;
``height`` and ``width`` of the file; ``task``; ``dataset``; ``name`` for messages; and one key per
reference that is present: ``expression``, or ``reference_images`` K x (3, h', w') uint8 with
``reference_masks`` K x (h', w') bool. Supports of few-shot samples and the first frame of clips are
the same two keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from unified.data.augmentation import View, crop
from unified.data.formats.records import Record, object_masks
from unified.errors import InputError
from unified.inference.image_io import check_size, read_image
from unified.label_maps import object_window

Sample = dict[str, Any]


def sample_name(record: Record) -> str:
    """What a record is called in messages: dataset, and file or clip with its sentence number."""
    where = record["file_name"] if "file_name" in record else f"clip {record['clip_id']}"
    number = record.get("expression_id")
    return f"{record['dataset']}: {where}" + ("" if number is None else f", sentence {number}")


def read_view(record: Record) -> tuple[View, np.ndarray]:
    """The picture of an image record with its objects, crowds left out, and their classes (M,).

    Raises:
        InputError: the file is missing, damaged, or of another size than the annotations say.
    """
    return view_of(record, read_image(record["file_name"]))


def view_of(record: Record, image: np.ndarray) -> tuple[View, np.ndarray]:
    """As ``read_view``, with the picture (H, W, 3) uint8 given."""
    path, size = record["file_name"], (image.shape[0], image.shape[1])
    check_size(path, size, (record["height"], record["width"]), "as the annotations say")
    entries = [entry for entry in record["annotations"] if not entry.get("iscrowd")]
    try:
        masks = object_masks(entries, *size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    classes = [entry["category_id"] for entry in entries]
    boxes = None
    if masks is None:
        corners = [_xyxy(entry["bbox"]) for entry in entries]
        boxes = np.array(corners, dtype=np.float32)
        masks = [_filled(box, size) for box in boxes]
    stacked = np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)
    return View(image, stacked, boxes), np.array(classes, dtype=np.int64)


def _xyxy(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, w, h = box
    return x, y, x + w, y + h


def _filled(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the pixels from the truncated corners of a box, the last ones included."""
    left, top, right, bottom = (int(value) for value in box)
    mask = np.zeros(size, dtype=bool)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


def around_object(view: View, margin: float) -> View:
    """The window of ``object_window`` around the objects of a view."""
    rows, columns = object_window(np.asarray(view.masks.any(axis=0)), margin)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return crop(view, rows.start, columns.start, height, width)


def merged_view(view: View) -> View:
    """All objects of a view as one, or none."""
    if len(view.masks) < 2:
        return View(view.image, view.masks)
    return View(view.image, np.any(view.masks, axis=0, keepdims=True))


def make_sample(view: View, classes: np.ndarray) -> Sample:
    """``image`` and ``instances`` of a view; objects that a crop removed are dropped."""
    visible = view.masks.any(axis=(1, 2))
    boxes = view.boxes
    if boxes is not None:
        visible &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        pixels = [_filled(box, view.size) for box in boxes[visible]]
        kept = np.stack(pixels) if pixels else np.zeros((0, *view.size), dtype=bool)
    else:
        kept = np.ascontiguousarray(view.masks[visible])
    masks = BitMasks(torch.from_numpy(kept))
    instances = Instances(view.size)
    if boxes is None:
        instances.gt_boxes = masks.get_bounding_boxes()
    else:
        instances.gt_boxes = Boxes(torch.from_numpy(boxes[visible]))
    instances.gt_classes = torch.from_numpy(classes[visible])
    instances.gt_masks = masks
    return {"image": to_tensor(view.image), "instances": instances}


def add_class_names(sample: Sample, record: Record) -> Sample:
    """The sample with ``class_names`` of its instances, if all classes of the record have one."""
    names = {entry["category_id"]: entry.get("category_name") for entry in record["annotations"]}
    if all(names.values()):
        sample["class_names"] = tuple(names[c] for c in sample["instances"].gt_classes.tolist())
    return sample


def add_references(sample: Sample, views: Sequence[View]) -> Sample:
    """The sample with pictures and their first object as mask references."""
    sample["reference_images"] = [to_tensor(view.image) for view in views]
    sample["reference_masks"] = [torch.from_numpy(view.masks[0].copy()) for view in views]
    return sample


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) -> (3, H, W), same values and type."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
