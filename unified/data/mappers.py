"""From a record to a sample, with random choices in training and without any at test time."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np

from unified.data.augmentation import Augmentation, Draw, View
from unified.data.formats.records import Record, annotation_void, frame_masks, target_masks
from unified.data.samples import (
    Sample,
    add_class_names,
    add_references,
    around_object,
    make_sample,
    merged_view,
    read_view,
    sample_name,
    view_of,
)
from unified.errors import InputError
from unified.expressions import has_ordinal, swap_left_right
from unified.inference.image_io import read_image
from unified.structures import Support
from unified.tasks import TASKS, Task

FRAME_ATTEMPTS = 10


class TrainMapper:
    """Record and random generator -> training sample of the record's task."""

    def __init__(
        self,
        *,
        augmentation: Augmentation,
        num_supports: Sequence[int] = (1,),
        support_margins: Sequence[float] = (math.inf,),
        frame_range: int = 10,
    ) -> None:
        """
        Args:
            num_supports: of a few-shot sample; one is drawn for every batch.
            support_margins: supports are cropped around their object, see ``object_window``; one is
                drawn for every support.
            frame_range: largest distance between the two frames of a clip, counted in frames that
                have masks.
        """
        self.augmentation = augmentation
        self.num_supports, self.support_margins = num_supports, support_margins
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
        sample.update(task=task, dataset=record["dataset"], name=sample_name(record))
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
        spec = TASKS[task]
        if spec.references == ("mask",) and not spec.is_clip:
            return self._few_shot(record, rng, batch_rng)
        if "file_names" in record:
            return self._clip(record, task, rng, drop_mask=drop_mask)
        if spec.is_clip and "text" not in spec.references:
            return self._still_clip(record, rng)
        return self._image(record, task, rng)

    def _image(self, record: Record, task: Task, rng: np.random.Generator) -> Sample:
        """Detection: all objects. A sentence: the objects it refers to as one, or none."""
        view, classes = read_view(record)
        if not TASKS[task].references:
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
        supports = []
        for index in chosen:
            view = around_object(read_view(pool[index])[0], float(rng.choice(self.support_margins)))
            supports.append(self._reference(view, self.augmentation.draw(rng), rng))
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
        if "text" in TASKS[task].references:
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
        if "text" in TASKS[task].references:
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
    """Records of one image -> what is needed to predict and to judge, without a random choice.

    A sample has the ``image`` (H, W, 3) uint8 RGB of the file, ``target`` (H, W) bool but in
    detection, ``expression`` and ``expression_id``, or ``supports`` (``Support``), ``class_id`` and
    ``void`` (H, W) bool.
    """

    __test__ = False  # not a test class of pytest

    def __init__(self, *, num_supports: int = 1) -> None:
        self.num_supports = num_supports

    def __call__(self, records: Sequence[Record]) -> list[Sample]:
        """One sample per record; the image is read once.

        Raises:
            InputError: a file is missing or damaged, or a record has too few supports.
        """
        image = read_image(records[0]["file_name"])
        return [self._sample(record, image) for record in records]

    def _sample(self, record: Record, image: np.ndarray) -> Sample:
        task = Task(record["task"])
        view, _ = view_of(record, image)
        sample: Sample = {"image": image, "name": sample_name(record)}
        for key in ("height", "width", "task", "dataset", "file_name", "image_id"):
            sample[key] = record[key]
        if not TASKS[task].references:
            return sample
        sample["target"] = view.masks.any(axis=0)
        if "text" in TASKS[task].references:
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
        sample["supports"] = tuple(_support(support) for support in supports)
        return sample


def _support(record: Record) -> Support:
    view, _ = read_view(record)
    return Support(view.image, np.asarray(view.masks.any(axis=0)))


def frames_with_masks(record: Record) -> list[int]:
    """Indices of the frames of a clip that can be trained on."""
    if "tracks" in record:
        return list(range(len(record["file_names"])))
    return [frame for frame, path in enumerate(record["mask_files"]) if path is not None]
