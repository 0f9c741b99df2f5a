"""Masks and lists on disk, checked file by file; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unified.data.formats.files import read_json, read_lines
from unified.errors import InputError
from unified.evaluation.report import (
    EXTRA_SEQUENCE,
    MISSING_SEQUENCE,
    Problems,
    Split,
)
from unified.files import entries, subfolders
from unified.mask_files import read_ids
from unified.metrics.davis import present_ids

ANNOTATION_ROOTS = (
    "Annotations/480p",
    "Annotations_unsupervised/480p",
    "Annotations",
    "Annotations_6fps",
)


def read_binary(path: Path) -> NDArray[np.uint8]:
    """The (H, W) mask of 0 and 1 in a PNG whose pixels are 0 and one other value.

    Raises:
        InputError: also for more than two values, as a lossy or smoothed file has.
    """
    values = read_ids(path)
    present = [value for value in present_ids(values) if value]
    if len(present) > 1:
        raise InputError(
            f"{path} holds {len(present)} values besides 0 ({some_of(present)}), expected one: "
            "it was smoothed, saved as JPEG, or holds several objects"
        )
    return (values > 0).astype(np.uint8)


def check_size(path: Path, mask: NDArray, shape: tuple[int, ...]) -> None:
    """Raises an ``InputError`` if the mask has not the (H, W) of its ground truth."""
    if mask.shape != shape:
        raise InputError(
            f"{path} is {mask.shape[1]}x{mask.shape[0]} pixels, its ground truth is "
            f"{shape[1]}x{shape[0]}: resize with nearest neighbour"
        )


def annotation_root(folder: Path) -> Path:
    """The folder that holds one folder per sequence, inside a data set or submission."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected one folder per sequence in it")
    for inside in ANNOTATION_ROOTS:
        if (folder / inside).is_dir():
            return folder / inside
    return folder


def frame_names(folder: Path) -> list[str]:
    """Names without suffix of the PNG files inside, in natural order (2 before 10).

    Raises:
        InputError: there is none.
    """
    names = mask_names(folder)
    if not names:
        raise InputError(f"{folder} holds no PNG: expected the masks of a sequence")
    return names


def mask_names(folder: Path) -> list[str]:
    """As ``frame_names``; nothing for a folder without PNG, or none at all."""
    inside = entries(folder) if folder.is_dir() else []
    return [path.stem for path in inside if path.suffix == ".png"]


def check_sequences(
    prediction: Path, wanted: Sequence[str], known: Iterable[str], problems: Problems
) -> None:
    """Compares the folders inside ``prediction`` with those that are ``wanted``.

    Folders that the ground truth knows but the split leaves out are fine.

    Raises:
        InputError: nothing fits at all, or a folder is missing or extra and that is not allowed.
    """
    if not entries(prediction):
        raise InputError(f"{prediction} is empty: expected predictions in it")
    found = set(subfolders(prediction))
    if not found & set(wanted):
        raise InputError(
            f"{prediction} has none of the {len(wanted)} sequences of the ground truth, such as "
            f"{wanted[0]}: is it of another benchmark, or a folder too high or too low?"
        )
    for name in (name for name in wanted if name not in found):
        problems.found(
            MISSING_SEQUENCE,
            f"{prediction / name} is missing: predict every sequence, or give --split",
        )
    for name in sorted(found - set(wanted) - set(known)):
        problems.found(
            EXTRA_SEQUENCE,
            f"{prediction / name} is no sequence of the ground truth: remove the folder",
        )


def read_split(path: Path | None, exclude: Path | None) -> Split:
    """The names in a list, without those in another, and a note that says which lists were used.

    Args:
        path: text file with a name per line, or JSON with "videos"; None for everything.
        exclude: likewise; names that do not count. Ref-YouTube-VOS scores the videos of its valid
            expressions that are not in its test expressions.
    """
    if path is None and exclude is None:
        return Split()
    if path is None:
        raise InputError(f"{exclude} excludes from no list: give --split as well")
    names = read_names(path)
    note = path.name
    if exclude is not None:
        dropped = set(read_names(exclude))
        names = [name for name in names if name not in dropped]
        note = f"{path.parent.name}/{path.name} minus {exclude.parent.name}/{exclude.name}"
    if not names:
        raise InputError(f"{path} leaves no name to score: check the two lists")
    return Split(tuple(names), f"{note} ({len(names)})")


def read_names(path: Path) -> list[str]:
    """Names of a text file, one per line, or of the "videos" of a JSON file; each once."""
    if path.suffix != ".json":
        return list(dict.fromkeys(read_lines(path, "a list with one name per line")))
    names = list(read_json(path, "a JSON object with videos", keys=("videos",))["videos"])
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} has videos without names: expected an object, name -> video")
    return list(dict.fromkeys(names))


def some_of(values: Sequence[int]) -> str:
    """The first values as text for a message."""
    shown = ", ".join(str(value) for value in values[:6])
    return f"{shown}, ..." if len(values) > 6 else shown
