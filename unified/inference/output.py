"""The folder that the inference tools fill; results.json in it is valid at any moment."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from unified.errors import InputError
from unified.files import atomic_path
from unified.inference.image_io import write_image
from unified.inference.video_io import Frame, VideoWriter
from unified.label_maps import (
    draw_overlay,
    encode_mask,
    mask_box,
    merge_by_score,
    write_label_map,
    write_mask,
)
from unified.structures import FrameResult, Instance, Size

RESULTS = "results.json"
DETECTIONS = "detections.json"
# What a run may leave besides results.json.
GENERATED = (
    "masks/*.png",
    "masks/*/*.png",
    "overlay/*.jpg",
    "overlay.mp4",
    "logits/*.npz",
    DETECTIONS,
)


def prepare_folder(folder: Path, inputs: Iterable[str] = ()) -> None:
    """Makes the folder ready for a new run; files of an earlier run in it are deleted.

    Args:
        folder: made if it does not exist.
        inputs: files, folders and patterns that the run reads; none may be among what is deleted.

    Raises:
        InputError: the folder holds masks or overlays without the results.json of a run, or an
            input lies among the files of the earlier run.
        OSError: it cannot be made or written.
    """
    old = [path for pattern in GENERATED for path in folder.glob(pattern)]
    if old and not (folder / RESULTS).exists():
        raise InputError(
            f"output folder {folder} holds {old[0].relative_to(folder)} but no {RESULTS} of a run "
            "that made it: give an empty or a new folder"
        )
    used = {Path(found).resolve() for name in inputs for found in glob.glob(name) or [name]}
    used.discard(folder.resolve())
    for path in old:
        if used & {path.resolve(), path.parent.resolve()}:
            raise InputError(
                f"{path} would be read and replaced by the same run: give another output folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*old, folder / RESULTS]:
        path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises OSError if ``folder`` cannot be made or written; leaves nothing behind."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with TemporaryFile(dir=existing):
        pass


class ResultsFile:
    """results.json: a header, one row per frame or image, and whether the run came to its end.

    The file is complete JSON after every row, whatever happens next: a row is written over the
    closing brackets together with new ones, in one call to the operating system.

    Args:
        path: replaced if it exists.
        header: what holds for the whole run.
        rows: the key of the list of rows, such as "frames".

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any], rows: str) -> None:
        opening = json.dumps({**header, rows: []}, indent=1, ensure_ascii=False)
        head = opening.removesuffix("]\n}").encode()
        with atomic_path(path) as temporary:
            temporary.write_bytes(head + _tail(complete=False))
        self._file = os.open(path, os.O_WRONLY)
        self._end = len(head)  # where the closing brackets begin
        self._num_rows = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends one row; on a full disk the file keeps the rows before it."""
        separator = "," if self._num_rows else ""
        line = f"{separator}\n  {json.dumps(row, ensure_ascii=False)}".encode()
        try:
            self._write(line + _tail(complete=False))
        except OSError:
            self._write(_tail(complete=False))
            raise
        self._end += len(line)
        self._num_rows += 1

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Closes the file; "complete" becomes true unless an error ended the run."""
        try:
            self._write(_tail(complete=kind is None))
        finally:
            os.close(self._file)

    def _write(self, data: bytes) -> None:
        written = os.pwrite(self._file, data, self._end)
        if written < len(data):
            # A second call says why there was no room, by raising.
            written += os.pwrite(self._file, data[written:], self._end + written)
        os.ftruncate(self._file, self._end + len(data))


def _tail(*, complete: bool) -> bytes:
    # "true" is the shorter one, so that closing never needs more room.
    return b'\n ],\n "complete": ' + (b"true" if complete else b"false") + b"\n}\n"


class ClipWriter:
    """Writes masks, the overlay and results.json of a clip, frame by frame.

    Args:
        folder: as ``prepare_folder`` left it.
        header: what results.json says about the whole run.
        fps: of the overlay.
        size: (H, W) of the frames.
        captions: object id -> what the overlay calls it.
        separate: one binary mask per object, ``masks/<k>/<frame>.png``, k = 0, 1, ... by id, in
            place of one label map, ``masks/<frame>.png``.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        header: Mapping[str, Any],
        fps: float,
        size: Size,
        captions: Mapping[int, str],
        separate: bool = False,
    ) -> None:
        self._folder, self._captions, self._separate = folder, captions, separate
        self._places = {object_id: place for place, object_id in enumerate(sorted(captions))}
        self._results = ResultsFile(folder / RESULTS, header, "frames")
        self._overlay = VideoWriter(folder / "overlay.mp4", fps=fps, size=size)

    def write(self, frame: Frame, result: FrameResult) -> None:
        """Adds one frame; what ``result`` keeps of probabilities goes to ``logits/<frame>.npz``."""
        name = frame.name
        if self._separate:
            for object_id, mask in result.masks.items():
                write_mask(self._folder / f"masks/{self._places[object_id]}/{name}.png", mask)
        else:
            write_label_map(self._folder / f"masks/{name}.png", result.label_map)
        if result.probabilities:
            arrays: dict[str, Any] = {
                str(i): p.astype(np.float16) for i, p in result.probabilities.items()
            }
            with atomic_path(self._folder / f"logits/{name}.npz") as temporary:
                np.savez_compressed(temporary, **arrays)
        lines = captions_with_scores(self._captions, result.scores)
        self._overlay.write(draw_overlay(frame.image, result.label_map, lines))
        objects = [
            describe_object(i, score, result.boxes[i], result.areas[i])
            for i, score in sorted(result.scores.items())
        ]
        # Last, so that a frame in results.json has its files.
        self._results.add({"frame": frame.number, "name": name, "objects": objects})

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        try:
            self._overlay.__exit__(kind, *rest)
        finally:
            self._results.__exit__(kind)


def write_image_result(
    folder: Path,
    stem: str,
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    scores: Sequence[float],
    captions: Mapping[int, str],
    separate: bool = False,
) -> list[dict[str, Any]]:
    """Writes masks and overlay of one image; returns its objects for results.json.

    Args:
        folder: as ``prepare_folder`` left it.
        stem: name of the files.
        image: (H, W, 3) uint8 RGB.
        masks: of the objects 1, 2, ..., each (H, W) bool.
        scores: one per mask.
        captions: object id -> what the overlay calls it.
        separate: one binary mask per object, ``masks/<stem>/<k>.png``, k = 0, 1, ..., in place of
            one label map, ``masks/<stem>.png``, where the highest score wins.
    """
    size = image.shape[0], image.shape[1]
    label_map = merge_by_score(masks, scores) if masks else np.zeros(size, np.uint8)
    if separate:
        for place, mask in enumerate(masks):
            write_mask(folder / f"masks/{stem}/{place}.png", mask)
    else:
        write_label_map(folder / f"masks/{stem}.png", label_map)
        masks = [label_map == object_id for object_id in range(1, len(masks) + 1)]
    lines = captions_with_scores(captions, dict(enumerate(scores, start=1)))
    write_image(folder / f"overlay/{stem}.jpg", draw_overlay(image, label_map, lines))
    return [
        describe_object(object_id, score, mask_box(mask), int(mask.sum()))
        for object_id, (mask, score) in enumerate(zip(masks, scores, strict=True), start=1)
    ]


def uncovered(found: Sequence[Instance]) -> list[Instance]:
    """Those of which at least half of the mask lies outside the masks of the better ones kept.

    Source: Panoptic Segmentation (arXiv:1801.00868), how overlaps of instances are resolved.

    Args:
        found: of one image, the highest score first.
    """
    kept: list[Instance] = []
    covered = np.zeros(found[0].mask.shape if found else (0, 0), bool)
    for instance in found:
        area = int(instance.mask.sum())
        if area and 2 * int((instance.mask & ~covered).sum()) >= area:
            kept.append(instance)
            covered |= instance.mask
    return kept


def coco_results(stem: str, found: Sequence[Instance]) -> list[dict[str, Any]]:
    """Objects of one image in the format of COCO's results, categories counted from 1.

    The image_id is the name of the image, as a number if it is one.
    """
    entries = []
    for instance in found:
        assert instance.box is not None, "detection leaves out what has no extent"
        left, top, right, bottom = instance.box
        entries.append(
            {
                "image_id": int(stem) if stem.isdecimal() else stem,
                "category_id": instance.category + 1,
                "bbox": [left, top, right - left, bottom - top],
                "score": instance.score,
                "segmentation": encode_mask(instance.mask),
            }
        )
    return entries


def write_detections(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Writes COCO results, at once or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(list(entries)), encoding="utf-8")


def captions_with_scores(
    captions: Mapping[int, str], scores: Mapping[int, float]
) -> dict[int, str]:
    """The legend of an overlay: id, score and name, on one line, of every object with a caption."""
    return {
        object_id: f"{object_id}  {score:.2f}  {' '.join(captions[object_id].split())}".rstrip()
        for object_id, score in sorted(scores.items())
        if object_id in captions
    }


def describe_object(
    object_id: int,
    score: float,
    box: Sequence[float] | None,
    area: int,
) -> dict[str, Any]:
    """One object of one frame or image: box is x0, y0, x1, y1 in pixels, area counts pixels."""
    return {
        "id": object_id,
        "present": area > 0,
        "score": round(score, 6),
        "box": None if box is None else [round(value, 2) for value in box],
        "area": area,
    }
