"""Is a dataset complete and as expected? The first wrong file is named, with what it should be."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from unified.data.catalog import (
    MALFORMED,
    annotation_files,
    data_root,
    describe_malformed,
    find_dataset,
    load_records,
)
from unified.data.formats.records import Record, frame_labels, frame_masks, object_masks
from unified.errors import InputError
from unified.inference.image_io import check_size, read_image
from unified.mask_files import VOID
from unified.tasks import TASKS, Task

SECONDS = 45.0  # after which no more files are opened; that all exist is checked in any case
NUM_OPENED = 40  # samples that are opened even then
BEYOND = 2  # pixels by which a rounded box may leave its image


@dataclass(frozen=True)
class Checked:
    """What a check found in order.

    Attributes:
        num_records: samples.
        num_files: different files that the samples need, all of which exist.
        num_opened: those of them whose pixels were looked at; all, unless time ran out.
        gaps: frames and label maps that nothing lists, but which their neighbours suggest.
        remarks: what is read otherwise than one might think.
    """

    num_records: int
    num_files: int
    num_opened: int
    gaps: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def is_installed(name: str) -> bool:
    """Whether an annotation file or folder of the dataset is below the root."""
    return any((data_root() / file).exists() for file in find_dataset(name).files)


def check_dataset(name: str, seconds: float = SECONDS) -> Checked:
    """Reads all annotations, looks for every file they list, and opens as many as time allows.

    Raises:
        InputError: names the first file that is missing or wrong and what was expected there.
    """
    deadline = time.monotonic() + seconds
    records = load_records(name)
    row = find_dataset(name)
    look = _Look(row.task, annotation_files(row))
    try:
        num_files = _check_existence(records)
        _open_files(look, records, deadline)
    except InputError as error:
        raise InputError(f"dataset {name}: {error}") from error
    clips = {r["clip_id"]: r for r in records if "file_names" in r}
    gaps = tuple(gap for record in clips.values() for gap in _gaps_of_clip(record))
    remarks = (*_crowds(row.task, records), *_boxes(records), *look.remarks())
    return Checked(len(records), num_files, len(look.opened), gaps, remarks)


def _crowds(task: Task, records: Sequence[Record]) -> Iterator[str]:
    """A remark on objects that a detector does not learn."""
    if TASKS[task].references or TASKS[task].is_clip:
        return
    objects = [entry for record in records for entry in record["annotations"]]
    crowds = sum(bool(entry.get("iscrowd")) for entry in objects)
    if crowds:
        yield (
            f"{crowds} of {len(objects)} objects are crowds (iscrowd 1), which are not learnt: "
            "CVAT writes single painted objects like this, set iscrowd to 0 for those"
        )


def _is_relative(segmentation: Any) -> bool:
    """Whether polygons have no coordinate above 1."""
    return isinstance(segmentation, list) and max(map(max, segmentation), default=2) <= 1


def _boxes(records: Sequence[Record]) -> Iterator[str]:
    """A remark on boxes, of objects without a mask, that do not end in their images."""
    num, outside = 0, 0
    for record in records:
        for entry in record.get("annotations", ()):
            if "bbox" not in entry or "segmentation" in entry or "mask_file" in entry:
                continue
            x, y, width, height = entry["bbox"]
            num += 1
            outside += (
                x + width > record["width"] + BEYOND or y + height > record["height"] + BEYOND
            )
    if outside:
        yield (
            f"{outside} of {num} boxes end outside of their images: expected x, y, width, height, "
            "as COCO has them, not x0, y0, x1, y1"
        )


def _open_files(look: _Look, records: Sequence[Record], deadline: float) -> None:
    """Opens the files of samples in random order, the few of every sample before the rest."""
    order = np.random.default_rng(0).permutation(len(records))
    for turn in (_Look.at_few_frames, _Look.at_all_frames):
        for number, index in enumerate(order):
            must = turn is _Look.at_few_frames and number < NUM_OPENED
            if not must and time.monotonic() > deadline:
                break
            try:
                turn(look, records[index])
            except InputError:
                raise
            except MALFORMED as error:
                where = records[index].get("file_name") or f"clip {records[index]['clip_id']}"
                raise InputError(
                    f"what {look.lists} says of {where} is not as expected: "
                    f"{describe_malformed(error)}"
                ) from error


def _check_existence(records: Sequence[Record]) -> int:
    """The number of different files that the records need, all of which exist."""
    listing = lru_cache(maxsize=4096)(_names)
    known: set[str] = set()
    for record in records:
        for path, what in _files(record):
            if path in known:
                continue
            folder, file_name = os.path.split(path)
            if file_name not in listing(folder):
                raise InputError(f"{path} is missing: expected {what}")
            known.add(path)
    return len(known)


def _gaps_of_clip(record: Record) -> Iterator[str]:
    yield from _gaps(record["file_names"])
    if "first_frames" not in record or "frame_ranges" in record:  # not only where objects start
        yield from _gaps([path for path in record.get("mask_files", ()) if path])


def _gaps(files: Sequence[str]) -> Iterator[str]:
    """Files that would make the numbers in the names of ``files`` evenly spaced."""
    stems = [Path(path).stem for path in files]
    if not all(stem.isdecimal() for stem in stems):
        return
    numbers = [int(stem) for stem in stems]
    steps = [after - before for before, after in pairwise(numbers)]
    usual = min(steps, default=0)
    if usual < 1 or steps.count(usual) < 0.9 * len(steps) - 1:
        return
    for number, step, stem, path in zip(numbers, steps, stems, files, strict=False):
        if step > usual and step % usual == 0:
            yield str(Path(path).with_stem(f"{number + usual:0{len(stem)}d}"))


def _names(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        return frozenset()


def _files(record: Record) -> Iterator[tuple[str, str]]:
    """Every path of a record and what it should be."""
    if "file_names" in record:
        name = record["clip_id"]
        yield from ((path, f"a frame of clip {name}") for path in record["file_names"])
        masks = record.get("mask_files", ())
        yield from ((path, f"a label map of clip {name}") for path in masks if path)
        if record.get("all_masked") and None in masks:
            folder = Path(next(filter(None, masks))).parent
            frame = record["frame_names"][masks.index(None)]
            yield str(folder / f"{frame}.png"), f"the label map of a frame of clip {name}"
        tracks = record.get("tracks", {}).values()
        yield from ((path, f"a track of clip {name}") for path in tracks if isinstance(path, str))
        return
    yield record["file_name"], f"image {record['image_id']} of the annotations"
    for annotation in record["annotations"]:
        if "mask_file" in annotation:
            yield annotation["mask_file"], f"the mask of {record['file_name']}"


class _Look:
    """Opens files, every file once, and says what is wrong with them.

    Args:
        task: of the samples.
        lists: the annotation files, for errors about what they hold.
    """

    def __init__(self, task: Task, lists: str) -> None:
        self.task = task
        self.lists = lists
        self.opened: dict[str, tuple[int, int]] = {}  # path -> (h, w)
        self.void: dict[str, None] = {}  # label maps with 255 beside object ids, in order

    def remarks(self) -> Iterator[str]:
        """A remark on pixels that count as nothing."""
        if self.void:
            first, number = next(iter(self.void)), len(self.void)
            yield f"255 beside object ids is void, not an object: {first} ({number} such files)"

    def at_few_frames(self, record: Record) -> None:
        """An image, or the first, middle and last frame of a clip and the objects that it needs."""
        if "file_names" not in record:
            self._check_image(record)
            return
        last = len(record["file_names"]) - 1
        for frame in sorted({0, last // 2, last}):
            self._check_frame(record, frame)
        if TASKS[self.task].is_clip and "text" in TASKS[self.task].references:
            _check_sentences([record["expression"]], f"clip {record['clip_id']}")
        self._check_objects(record)

    def at_all_frames(self, record: Record) -> None:
        """The other frames of a clip."""
        for frame in range(len(record.get("file_names", ()))):
            self._check_frame(record, frame)

    def _check_image(self, record: Record) -> None:
        path = record["file_name"]
        size = self._size(path, record)
        for crowds in (False, True):
            group = [a for a in record["annotations"] if bool(a.get("iscrowd")) == crowds]
            self._check_objects_of_image(group, path, size)
        if "text" in TASKS[self.task].references:
            _check_sentences(record["expressions"], path)

    def _check_objects_of_image(
        self, annotations: Sequence[Any], path: str, size: tuple[int, int]
    ) -> None:
        try:
            masks = object_masks(annotations, *size) or ()
        except InputError as error:
            if any("mask_file" in annotation for annotation in annotations):
                raise
            raise InputError(f"{self.lists}: {path}: {error}") from error
        for annotation, mask in zip(annotations, masks, strict=False):  # no masks of boxes alone
            where = annotation.get("mask_file", f"annotation {annotation.get('id')} of {path}")
            if "mask_file" in annotation:
                self.opened[where] = size
            if not mask.any():
                raise InputError(
                    f"{where} is empty: expected the pixels of an object"
                    + ", not shares of the image" * _is_relative(annotation.get("segmentation"))
                )

    def _check_frame(self, record: Record, frame: int) -> None:
        path = record["file_names"][frame]
        size = self._size(path, record)
        files = record.get("mask_files")
        if files is not None and files[frame] in self.opened:
            return
        for number, mask in self._masks(record, frame).items():
            if mask.shape != size:
                raise InputError(
                    f"{_mask_name(record, frame, number)} has size {mask.shape}: expected {size}, "
                    f"the size of {path}"
                )
        if files is not None and files[frame] is not None:
            self.opened[files[frame]] = size
            labels = frame_labels(record, frame)  # type: ignore[arg-type]
            assert labels is not None, "this frame has a file"
            if (labels == VOID).any():
                self.void[files[frame]] = None

    def _size(self, path: str, record: Record) -> tuple[int, int]:
        """(h, w) of an image that can be read and is as the annotations say."""
        if path not in self.opened:
            height, width = read_image(path).shape[:2]
            self.opened[path] = (height, width)
        height, width = self.opened[path]
        expected = record["height"], record["width"]
        check_size(path, (height, width), expected, _source_of_size(record))
        return height, width

    def _check_objects(self, record: Record) -> None:
        """The objects of the sentence, or those to start from, are visible in some frame."""
        missing = set(record.get("target_ids", ())) | set(record.get("first_frames", ()))
        for frame in range(len(record["file_names"])) if missing else ():
            missing -= set(self._masks(record, frame))
            if not missing:
                return
        if missing:
            files = record.get("mask_files")
            where = f"{Path(next(filter(None, files))).parent}" if files else "the mask codes"
            raise InputError(
                f"{where} has no pixel of object {min(missing)} in any frame of clip "
                f"{record['clip_id']}: the annotations refer to it"
            )

    def _masks(self, record: Record, frame: int) -> Mapping[int, Any]:
        if "mask_files" not in record and "tracks" not in record:
            return {}
        try:
            return frame_masks(record, frame)  # type: ignore[arg-type]
        except InputError as error:
            if "mask_files" in record:
                raise
            where = f"{self.lists}: frame {frame} of clip {record['clip_id']}"
            raise InputError(f"{where}: {error}") from error


def _source_of_size(record: Record) -> str:
    if "file_names" in record and "tracks" not in record:
        return "the size of the clip's first frame"
    return "as the annotations say"


def _mask_name(record: Record, frame: int, number: int) -> str:
    files = record.get("mask_files")
    return files[frame] if files else f"the mask of object {number} in frame {frame}"


def _check_sentences(sentences: list[str], where: str) -> None:
    if not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
        raise InputError(f"{where} has the sentences {sentences!r}: expected words in each")
