"""From a record to a sample: what a model trains on, or is asked at test time.

Sample dictionary: ``image`` (3, h, w) uint8 RGB; ``instances`` with ``gt_boxes`` (xyxy pixels),
``gt_classes`` and ``gt_masks`` (M, h, w), which are filled boxes where only boxes are known;
``class_names`` of the instances in detection, where they are known;
``height`` and ``width`` of the file; ``task``; ``dataset``; ``name`` for messages; and one key per
reference that is present: ``expression``, or ``reference_images`` K x (3, h', w') uint8 with
``reference_masks`` K x (h', w') bool. Supports of few-shot samples and the first frame of clips are
the same two keys.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from unified.data.augmentation import Augmentation, Draw, View, resize
from unified.data.formats.files import read_image
from unified.data.formats.records import (
    Record,
    annotation_mask,
    annotation_void,
    frame_masks,
    target_masks,
)
from unified.errors import InputError
from unified.expressions import has_ordinal, swap_left_right
from unified.label_maps import check_margin, object_window
from unified.structures import resized_size
from unified.tasks import TASKS, Task

Sample = dict[str, Any]
FRAME_ATTEMPTS = 10


def sample_name(record: Record) -> str:
    """What a record is called in messages: dataset, and file or clip with its sentence number."""
    where = record["file_name"] if "file_name" in record else f"clip {record['clip_id']}"
    number = record.get("expression_id")
    return f"{record['dataset']}: {where}" + ("" if number is None else f", sentence {number}")


class TrainMapper:
    """Record and random generator -> training sample of the record's task."""

    def __init__(
        self,
        *,
        augmentation: Augmentation,
        num_supports: Sequence[int] = (1,),
        frame_range: int = 10,
    ) -> None:
        """
        Args:
            num_supports: of a few-shot sample; one is drawn for every batch.
            frame_range: largest distance between the two frames of a clip, counted in frames that
                have masks.
        """
        self.augmentation = augmentation
        self.num_supports = num_supports
        self.frame_range = frame_range

    def __call__(
        self, record: Record, rng: np.random.Generator, batch_rng: np.random.Generator
    ) -> Sample:
        """The sample.

        Args:
            rng: for everything that differs between samples.
            batch_rng: in the same state for all samples of a batch, on all ranks: they agree on
                which references are present, and a batch can be encoded as one.

        Raises:
            InputError: a file of the record is missing or damaged, or it shows no object.
        """
        task = Task(record["task"])
        drop_mask = batch_rng.random() < TASKS[task].mask_dropout
        mapper = copy.copy(self)
        mapper.augmentation = self.augmentation.for_batch(batch_rng)
        sample = mapper._sample(record, task, rng, batch_rng, drop_mask=drop_mask)
        sample["height"], sample["width"] = record["height"], record["width"]
        sample.update(task=task.value, dataset=record["dataset"], name=sample_name(record))
        return sample

    def _sample(
        self,
        record: Record,
        task: Task,
        rng: np.random.Generator,
        batch_rng: np.random.Generator,
        *,
        drop_mask: bool,
    ) -> Sample:
        if task is Task.FSS:
            return self._few_shot(record, rng, batch_rng)
        if "file_names" in record:
            return self._clip(record, task, rng, drop_mask=drop_mask)
        if task is Task.VOS:
            return self._still_clip(record, rng)
        return self._image(record, task, rng)

    def _image(self, record: Record, task: Task, rng: np.random.Generator) -> Sample:
        """Detection: all objects. A sentence: the objects it refers to as one, or none."""
        view, classes = read_view(record)
        if task is Task.DETECTION:
            pick = int(rng.integers(len(view.masks))) if len(view.masks) else None
            keep = None if pick is None else view.masks[pick][None]
            view = self.augmentation.apply(view, self.augmentation.draw(rng), rng, keep=keep)
            return add_class_names(make_sample(view, classes), record)
        expression = str(rng.choice(record["expressions"]))
        draw = self.augmentation.draw(rng)
        sample = self._target(view, draw, rng, may_crop=not has_ordinal(expression))
        sample["expression"] = swap_left_right(expression) if draw.flip else expression
        return sample

    def _few_shot(
        self, record: Record, rng: np.random.Generator, batch_rng: np.random.Generator
    ) -> Sample:
        sample = self._target(read_view(record)[0], self.augmentation.draw(rng), rng)
        pool, num = record["supports"], int(batch_rng.choice(self.num_supports))
        chosen = rng.choice(len(pool), size=num, replace=len(pool) < num)
        supports = [
            self._reference(read_view(pool[index])[0], self.augmentation.draw(rng), rng)
            for index in chosen
        ]
        return add_references(sample, supports)

    def _clip(
        self, record: Record, task: Task, rng: np.random.Generator, *, drop_mask: bool
    ) -> Sample:
        """Two frames; the earlier one with its mask, or the sentence, or both as references."""
        frames, masks = self._two_frames(record, task, rng)
        views = [
            View(read_image(record["file_names"][frame]), objects)
            for frame, objects in zip(frames, masks, strict=True)
        ]
        draw = self.augmentation.draw(rng)
        sample = self._target(views[1], draw, rng)
        if task is Task.RVOS:
            text = record["expression"]
            sample["expression"] = swap_left_right(text) if draw.flip else text
        if drop_mask:
            return sample
        return add_references(sample, [self._reference(views[0], draw, rng)])

    def _two_frames(
        self, record: Record, task: Task, rng: np.random.Generator
    ) -> tuple[tuple[int, int], list[np.ndarray]]:
        """Two frames in order of time in which the same object is visible, and its masks.

        If ten draws find no such pair, one frame is used twice.
        """
        usable = frames_with_masks(record)
        for attempt in range(FRAME_ATTEMPTS + len(usable)):
            position = int(rng.integers(len(usable)))
            low, high = position - self.frame_range, position + self.frame_range
            others = [p for p in range(max(low, 0), min(high + 1, len(usable))) if p != position]
            other = int(rng.choice(others)) if others else position
            if attempt >= FRAME_ATTEMPTS:
                position = other = attempt - FRAME_ATTEMPTS
            pair = (usable[min(position, other)], usable[max(position, other)])
            masks = self._shared_object(record, task, pair, rng)
            if masks is not None:
                return pair, masks
        raise InputError(f"{sample_name(record)} shows no object in any frame")

    def _shared_object(
        self, record: Record, task: Task, frames: tuple[int, int], rng: np.random.Generator
    ) -> list[np.ndarray] | None:
        """The masks (K, H, W) in each frame of what is visible in both; None if nothing is.

        K is 1, or for a sentence the number of its objects that the frame shows.
        """
        if task is Task.RVOS:
            shown = [target_masks(record, frame) for frame in frames]  # type: ignore[arg-type]
            return shown if all(len(masks) for masks in shown) else None
        first, second = (frame_masks(record, frame) for frame in frames)  # type: ignore[arg-type]
        shared = sorted(set(first) & set(second))
        if not shared:
            return None
        number = shared[int(rng.integers(len(shared)))]
        return [first[number][None], second[number][None]]

    def _still_clip(self, record: Record, rng: np.random.Generator) -> Sample:
        """One object of an image, cropped twice, as two frames of a clip."""
        view, _ = read_view(record)
        if not len(view.masks):
            raise InputError(f"{sample_name(record)} shows no object")
        pick = int(rng.integers(len(view.masks)))
        view = View(view.image, view.masks[pick][None])
        draw = self.augmentation.draw(rng)
        sample = self._target(view, draw, rng)
        return add_references(sample, [self._reference(view, draw, rng)])

    def _target(
        self, view: View, draw: Draw, rng: np.random.Generator, *, may_crop: bool = True
    ) -> Sample:
        """A sample with the objects of ``view`` as one or none; no crop removes any of them."""
        keep, view = view.masks, merged_view(view)
        view = self.augmentation.apply(view, draw, rng, keep=keep, may_crop=may_crop)
        return make_sample(view, np.zeros(len(view.masks), dtype=np.int64))

    def _reference(self, view: View, draw: Draw, rng: np.random.Generator) -> View:
        return self.augmentation.apply(merged_view(view), draw, rng, keep=view.masks)


class TestMapper:
    """Record -> what is needed to predict and to judge, without any random choice.

    Images: a sample whose ``image`` is resized, with ``target`` (H, W) bool and, for few-shot
    classes, ``void`` (H, W) bool at the size of the file. Clips: the record itself, so that frames
    are read one by one as the prediction advances.
    """

    __test__ = False  # not a test class of pytest

    def __init__(
        self,
        *,
        short_side: int,
        max_size: int,
        num_supports: int = 1,
        support_margin: float = math.inf,
    ) -> None:
        """
        Args:
            support_margin: supports are cropped around their object, see ``object_window``.

        Raises:
            ConfigError: the margin is negative or no number.
        """
        check_margin(support_margin)
        self.short_side = short_side
        self.max_size = max_size
        self.num_supports = num_supports
        self.support_margin = support_margin

    def __call__(self, record: Record) -> Sample:
        """The sample, or the record of a clip.

        Raises:
            InputError: a file is missing or damaged.
        """
        if "file_names" in record:
            return dict(record)
        task = Task(record["task"])
        view, classes = read_view(record)
        sample = make_sample(self._resized(view), classes)
        for key in ("height", "width", "task", "dataset", "file_name", "image_id"):
            sample[key] = record[key]
        sample["name"] = sample_name(record)
        if task is Task.DETECTION:
            return sample
        sample["target"] = view.masks.any(axis=0)
        if task is Task.RIS:
            sample["expression"] = record["expressions"][0]
            sample["expression_id"] = record["expression_id"]
            return sample
        sample["class_id"] = record["class_id"]
        sample["void"] = annotation_void(record["annotations"][0], *view.size)
        supports = record["supports"][: self.num_supports]
        if len(supports) < self.num_supports:
            raise InputError(
                f"{sample_name(record)} has {len(supports)} supports: {self.num_supports} expected"
            )
        return add_references(sample, [self._support(support) for support in supports])

    def _support(self, record: Record) -> View:
        view, _ = read_view(record)
        rows, columns = object_window(view.masks[0], self.support_margin)
        return self._resized(View(view.image[rows, columns], view.masks[:, rows, columns]))

    def _resized(self, view: View) -> View:
        return resize(view, resized_size(view.size, self.short_side, self.max_size))


def read_view(record: Record) -> tuple[View, np.ndarray]:
    """The picture of an image record with its objects, crowds left out, and their classes (M,).

    Raises:
        InputError: the file is missing, damaged, or of another size than the annotations say.
    """
    image = read_image(record["file_name"])
    size = image.shape[0], image.shape[1]
    if size != (record["height"], record["width"]):
        raise InputError(
            f"{record['file_name']} is {size} (h, w): expected "
            f"{(record['height'], record['width'])}, as the annotations say"
        )
    entries = [entry for entry in record["annotations"] if not entry.get("iscrowd")]
    masks = [annotation_mask(entry, *size) for entry in entries]
    classes = [entry["category_id"] for entry in entries]
    boxes = None
    if entries and all(mask is None for mask in masks):
        corners = [_xyxy(entry["bbox"]) for entry in entries]
        boxes = np.array(corners, dtype=np.float32)
        masks = [_filled(box, size) for box in boxes]
    stacked = np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)  # type: ignore[arg-type]
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


def merged_view(view: View) -> View:
    """All objects of a view as one, or none."""
    if len(view.masks) < 2:
        return View(view.image, view.masks)
    return View(view.image, np.any(view.masks, axis=0, keepdims=True))


def frames_with_masks(record: Record) -> list[int]:
    """Indices of the frames of a clip that can be trained on."""
    if "tracks" in record:
        return list(range(len(record["file_names"])))
    return [frame for frame, path in enumerate(record["mask_files"]) if path is not None]


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
