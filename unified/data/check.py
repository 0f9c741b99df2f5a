"""Is a dataset complete and as expected? The first wrong file is named, with what it should be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from unified.data.catalog import data_root, find_dataset, load_records
from unified.data.formats.files import read_image
from unified.data.formats.records import Record, annotation_mask, frame_masks
from unified.errors import InputError
from unified.tasks import Task

NUM_OPENED = 40  # records whose pixels are looked at; the existence of files is checked for all


@dataclass(frozen=True)
class Checked:
    """What a check found in order: samples, files that exist, and samples that were opened."""

    num_records: int
    num_files: int
    num_opened: int


def is_installed(name: str) -> bool:
    """Whether an annotation file or folder of the dataset is below the root."""
    return any((data_root() / file).exists() for file in find_dataset(name).files)


def check_dataset(name: str) -> Checked:
    """Reads all annotations, looks for every file they list, and opens a sample of them.

    Raises:
        InputError: names the first file that is missing or wrong and what was expected there.
    """
    records = load_records(name)
    task = find_dataset(name).task
    num_files = 0
    listing = lru_cache(maxsize=4096)(_names)
    for record in records:
        for path, what in _files(record):
            num_files += 1
            folder, file_name = os.path.split(path)
            if file_name not in listing(folder):
                raise InputError(f"{path} is missing: expected {what}")
    step = max(1, len(records) // NUM_OPENED)
    opened = records[::step][:NUM_OPENED]
    for record in opened:
        if "file_names" in record:
            _check_clip(record, task)
        else:
            _check_image(record, task)
    return Checked(len(records), num_files, len(opened))


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
        tracks = record.get("tracks", {}).values()
        yield from ((path, f"a track of clip {name}") for path in tracks if isinstance(path, str))
        return
    yield record["file_name"], f"image {record['image_id']} of the annotations"
    for annotation in record["annotations"]:
        if "mask_file" in annotation:
            yield annotation["mask_file"], f"the mask of {record['file_name']}"


def _check_image(record: Record, task: Task) -> None:
    path = record["file_name"]
    size = _check_size(path, record)
    for annotation in record["annotations"]:
        mask = annotation_mask(annotation, *size)
        if mask is not None and not mask.any():
            where = annotation.get("mask_file", f"annotation {annotation.get('id')} of {path}")
            raise InputError(f"{where} is empty: expected the pixels of an object")
    if task in (Task.RIS, Task.RVOS):
        _check_sentences(record["expressions"], path)


def _check_clip(record: Record, task: Task) -> None:
    """Looks at the first, middle and last frame, and for the object of the sentence anywhere."""
    last = len(record["file_names"]) - 1
    for frame in sorted({0, last // 2, last}):
        path = record["file_names"][frame]
        size = _check_size(path, record)
        for number, mask in _masks(record, frame).items():
            if mask.shape != size:
                raise InputError(
                    f"{_mask_name(record, frame, number)} has size {mask.shape}: expected {size}, "
                    f"the size of {path}"
                )
    if task is Task.RVOS:
        _check_sentences([record["expression"]], f"clip {record['clip_id']}")
    missing = set(record.get("target_ids", ())) | set(record.get("first_frames", ()))
    for frame in range(last + 1) if missing else ():
        missing -= set(_masks(record, frame))
        if not missing:
            break
    if missing:
        files = record.get("mask_files")
        where = f"{Path(next(filter(None, files))).parent}" if files else "the mask codes"
        raise InputError(
            f"{where} has no pixel of object {min(missing)} in any frame of clip "
            f"{record['clip_id']}: the annotations refer to it"
        )


def _masks(record: Record, frame: int) -> Mapping[int, Any]:
    if "mask_files" not in record and "tracks" not in record:
        return {}
    return frame_masks(record, frame)  # type: ignore[arg-type]


def _mask_name(record: Record, frame: int, number: int) -> str:
    files = record.get("mask_files")
    return files[frame] if files else f"the mask of object {number} in frame {frame}"


def _check_size(path: str, record: Record) -> tuple[int, int]:
    height, width = read_image(path).shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise InputError(
            f"{path} is {height} x {width} pixels (h x w): expected {record['height']} x "
            f"{record['width']}, as the annotations say"
        )
    return height, width


def _check_sentences(sentences: list[str], where: str) -> None:
    if not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
        raise InputError(f"{where} has the sentences {sentences!r}: expected words in each")
