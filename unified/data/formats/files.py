"""Reading JSON, masks and folders with errors that name the file and what was expected in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unified.errors import InputError
from unified.files import atomic_path, entries, foreign_content, read_text
from unified.inference.image_io import is_image


def require(path: Path, what: str) -> Path:
    """``path`` if it exists.

    Raises:
        InputError: it does not; the message says what it was expected to be.
    """
    if not path.exists():
        raise InputError(f"{path} is missing: expected {what}")
    return path


def read_json(path: Path, what: str, keys: Iterable[str] = ()) -> Any:
    """The content of a JSON file whose top level is an object with at least ``keys``.

    Raises:
        InputError: the file is missing, is not JSON, or lacks a key.
    """
    if require(path, what).is_dir():
        raise InputError(f"{path} is a folder, not a JSON file: expected {what}")
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        foreign = foreign_content(path, what)
        raise InputError(
            foreign or f"{path} is not valid JSON ({error}): expected {what}"
        ) from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} has no {missing[0]!r} at its top level: expected {what}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes JSON text, at once or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def read_lines(path: Path, what: str) -> list[str]:
    """The non-empty lines of a text file, stripped."""
    lines = read_text(require(path, what)).splitlines()
    return [line.strip() for line in lines if line.strip()]


def image_files(folder: Path, what: str) -> list[Path]:
    """The images directly inside ``folder``, in natural order (2 before 10).

    Raises:
        InputError: the folder is missing or holds no image.
    """
    found = list(filter(is_image, entries(require(folder, what))))
    if not found:
        raise InputError(f"{folder} holds no image: expected {what}")
    return found


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Name without suffix -> path.

    Raises:
        InputError: two files have the same.
    """
    result: dict[str, Path] = {}
    for path in paths:
        if path.stem in result:
            raise InputError(
                f"{result[path.stem]} and {path} have the same name but for the suffix: keep one"
            )
        result[path.stem] = path
    return result


def polygon_parts(
    segmentation: Any, height: int, width: int, owner: str = "the annotation"
) -> np.ndarray:
    """(H, W, P) uint8: every polygon, or the one run-length code, as a 0/1 map of its own.

    Args:
        owner: what to call the object in errors.

    Raises:
        InputError: it is neither, or a code is not of H * W pixels.
    """
    if not isinstance(segmentation, list):
        return np.asarray(coco_mask.decode([run_length_code(segmentation, height, width, owner)]))
    polygons = _polygons(segmentation, owner)
    if not polygons:
        return np.zeros((height, width, 0), dtype=np.uint8)
    return np.asarray(coco_mask.decode(coco_mask.frPyObjects(polygons, height, width)))


def segmentation_code(segmentation: Any, height: int, width: int, owner: str) -> Any:
    """One compressed run-length code of what ``polygon_parts`` reads."""
    if not isinstance(segmentation, list):
        return run_length_code(segmentation, height, width, owner)
    return coco_mask.merge(coco_mask.frPyObjects(_polygons(segmentation, owner), height, width))


def _polygons(segmentation: list[Any], owner: str) -> list[list[float]]:
    """Polygons as pycocotools takes them: it reads one of 2 points as a box, if it is the first.

    Raises:
        InputError: names the first that is no polygon.
    """
    result = []
    for number, polygon in enumerate(segmentation, start=1):
        name = f"polygon {number} of {owner}"
        if isinstance(polygon, dict):
            raise InputError(f"{name} is a run-length code: write it without a list around it")
        try:
            values = np.asarray(polygon, dtype=float)
        except (TypeError, ValueError):
            values = np.zeros(())
        if values.ndim != 1 or not np.isfinite(values).all():
            raise InputError(f"{name} is {polygon!r:.60}: expected a list of x, y, x, y, ...")
        if len(values) % 2:
            raise InputError(f"{name} has {len(values)} numbers: expected pairs x, y")
        if len(values) < 6:
            raise InputError(
                f"{name} has {len(values) // 2} points: expected 3 or more, or leave it out"
            )
        result.append(values.tolist())
    return result


def run_length_code(
    segmentation: Any, height: int, width: int, owner: str = "the annotation"
) -> Any:
    """A run-length code, compressed or a list of runs, as pycocotools takes it: compressed.

    Raises:
        InputError: it is none, or not of H * W pixels; pycocotools would read or write beyond the
            picture.
    """
    try:
        counts, size = segmentation["counts"], list(segmentation["size"])
        runs = np.array(counts) if isinstance(counts, list) else _runs(counts)
        fits = bool((runs >= 0).all() and (runs % 1 == 0).all() and runs.sum() == height * width)
        whole = [int(run) for run in runs] if fits and isinstance(counts, list) else None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        detail = f" ({error})" if isinstance(error, ValueError) else ""
        raise InputError(
            f"the segmentation of {owner} is no polygons and no run-length code{detail}: expected "
            "lists of x, y, x, y, ... or an object with size and counts"
        ) from error
    if not fits or size != [height, width]:
        raise InputError(
            f"the run-length code of {owner} is not of {height} x {width} pixels (h x w)"
        )
    if whole is None:
        return segmentation
    return coco_mask.frPyObjects({"size": size, "counts": whole}, height, width)


def _runs(counts: str | bytes) -> np.ndarray:
    """(R,) lengths of the runs of 0 and 1 in turn, of a compressed run-length code.

    Every character holds five bits, low ones first, and a flag that more follow; from the fourth
    run on, the difference to the last but one run is stored.

    Source: rleFrString of the COCO API.

    Raises:
        ValueError: a character is none of the code, a number has no end or more than 35 bits.
    """
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    symbols = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((symbols & 32) == 0)
    if not len(ends) or ends[-1] != len(symbols) - 1 or ((symbols < 0) | (symbols > 63)).any():
        raise ValueError("the text of a run-length code is cut off or damaged")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("the text of a run-length code holds a number of more than 35 bits")
    shifts = 5 * (np.arange(len(symbols)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((symbols & 31) << shifts, starts)
    runs -= np.where(symbols[ends] & 16, 1 << (5 * lengths), 0)  # sign
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def segmentation_mask(
    segmentation: Any, height: int, width: int, owner: str = "the annotation"
) -> np.ndarray:
    """(H, W) bool mask of COCO polygons, of an uncompressed or of a compressed run-length code."""
    return np.any(polygon_parts(segmentation, height, width, owner), axis=2)


def by_id(entries: Iterable[Mapping[str, Any]], kind: str, path: Path) -> dict[Any, Any]:
    """id -> entry of a list in an annotation file.

    Raises:
        InputError: two entries have the same id.
    """
    result: dict[Any, Any] = {}
    for entry in entries:
        if entry["id"] in result:
            raise InputError(
                f"{path} has two {kind} with the id {entry['id']}: give each an id of its own"
            )
        result[entry["id"]] = entry
    return result


def listed_file(folder: Path, name: str) -> Path:
    """The file that an annotation file names, with / or, as on Windows, with backslashes."""
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not path.exists() else path
