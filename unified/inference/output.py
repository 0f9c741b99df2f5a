"""What the inference tools write: masks, overlays and results.json of clips and of images."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified.files import atomic_path
from unified.inference.detections import coco_results, write_detections
from unified.inference.image_io import write_image
from unified.inference.inputs import Picture
from unified.inference.legend import add_legend, enlarged, enlargement, legend_width
from unified.inference.lines import (
    MOST_OBJECTS,
    about_object,
    about_track,
    in_one_line,
    legend,
    longest_lines,
)
from unified.inference.overlay import (
    draw_ids,
    draw_overlapping,
    draw_overlay,
    id_places,
    id_places_apart,
)
from unified.inference.presence import presence
from unified.inference.results import DETECTIONS, RESULTS, ResultsFile, prepare_folder
from unified.inference.video_io import Frame, VideoWriter
from unified.label_maps import mask_box, merge_by_score, write_label_map, write_mask
from unified.structures import FrameResult, Instance, Presence, Size


class ClipWriter:
    """Writes masks, the overlay and results.json of a clip, frame by frame.

    Args:
        folder: as ``prepare_folder`` left it.
        header: what results.json says about the whole run; its ``objects`` have the sentences.
        fps: of the overlay.
        size: (H, W) of the frames.
        captions: object id -> what the overlay calls it.
        separate: one binary mask per object, ``masks/<id>/<frame>.png``, in place of one label
            map, ``masks/<frame>.png``.

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
        self._texts = {entry["id"]: entry["text"] for entry in header.get("objects", ())}
        self._results = ResultsFile(folder / RESULTS, header, "frames")
        # All frames of a clip have one size.
        self._legend = legend_width(longest_lines(captions), size)
        self._num_frames, self._found = 0, dict.fromkeys(captions, (0, 0.0))
        self._outcompeted: dict[int, Counter[int]] = defaultdict(Counter)
        factor = enlargement(size) if self._legend else 1
        wide = (size[0] * factor, size[1] * factor + self._legend)
        self._overlay = VideoWriter(folder / "overlay.mp4", fps=fps, size=wide)

    def write(self, frame: Frame, result: FrameResult) -> None:
        """Adds one frame; what ``result`` keeps of probabilities goes to ``logits/<frame>.npz``."""
        name = frame.name
        if self._separate:
            for object_id, mask in result.masks.items():
                write_mask(self._folder / f"masks/{object_id}/{name}.png", mask)
        else:
            write_label_map(self._folder / f"masks/{name}.png", result.label_map)
        if result.probabilities:
            arrays: dict[str, Any] = {
                str(i): p.astype(np.float16) for i, p in result.probabilities.items()
            }
            with atomic_path(self._folder / f"logits/{name}.npz") as temporary:
                np.savez_compressed(temporary, **arrays)
        lines = legend(self._captions, result.scores, result.presence)
        shown = result.masks if self._separate else result.label_map
        self._overlay.write(_draw(frame.image, shown, lines, self._legend))
        objects = [
            describe_object(
                i, score, result.boxes[i], result.areas[i], result.presence[i], self._texts.get(i)
            )
            for i, score in sorted(result.scores.items())
        ]
        self._num_frames += 1
        for row in objects:
            number, best = self._found[row["id"]]
            self._found[row["id"]] = number + row["present"], max(best, row["score"])
            if row["state"] == "outcompeted":
                self._outcompeted[row["id"]][row["by"]] += 1
        # Last, so that a frame in results.json has its files.
        self._results.add({"frame": frame.number, "name": name, "objects": objects})

    def summary(self) -> str:
        """One line for the terminal about the objects of all frames: every sentence is answered."""
        named = sum(text is not None for text in self._texts.values())
        found = sorted(self._found.items(), key=lambda item: (not self._texts.get(item[0]), item))
        return in_one_line(
            [
                about_track(
                    i, self._captions[i], number, self._num_frames, best, self._outcompeted[i]
                )
                for i, (number, best) in found
            ],
            most=max(named, MOST_OBJECTS),
        )

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        try:
            self._overlay.__exit__(kind, *rest)
        finally:
            self._results.__exit__(kind)


class ImageWriter:
    """Writes masks, overlays and results.json of images, one after the other.

    Nothing is made or deleted before the first image.

    Args:
        folder: for the results; files of an earlier run in it are replaced, unless it is resumed.
        header: what results.json says about the whole run.
        inputs: what the run reads.
        earlier: results.json of the run that is resumed.
        separate: as for ``write_image_result``.
        detections: also write detections.json, the instances as COCO results.
    """

    def __init__(
        self,
        folder: Path,
        *,
        header: Mapping[str, Any],
        inputs: Sequence[str],
        earlier: Mapping[str, Any] | None = None,
        separate: bool = False,
        detections: bool = False,
    ) -> None:
        self._folder, self._header, self._inputs = folder, header, inputs
        self._separate, self._resumed = separate, earlier is not None
        rows = [] if earlier is None else earlier["images"]
        self._earlier = {row["image"]: row for row in rows if "error" not in row}
        self._detections: list[dict[str, Any]] | None = [] if detections else None
        if detections and self._earlier:
            self._keep_detections()
        self._results: ResultsFile | None = None

    def _keep_detections(self) -> None:
        """Those of an earlier run; without its file its images have to be asked again."""
        path = self._folder / DETECTIONS
        if path.is_file():
            self._detections = json.loads(path.read_text(encoding="utf-8"))
        else:
            self._earlier.clear()

    def has(self, picture: Picture) -> bool:
        """Whether the resumed run had finished this image."""
        return str(picture.path) in self._earlier

    def write(
        self,
        picture: Picture,
        image: np.ndarray,
        found: Sequence[Instance],
        captions: Mapping[int, str],
        texts: Mapping[int, str | None],
        detected: Sequence[Instance] = (),
    ) -> str:
        """Adds an image (H, W, 3) with its objects 1, 2, ...; see ``write_image_result``.

        Args:
            detected: what goes into detections.json.

        Returns:
            One line for the terminal.
        """
        results = self._open()
        masks, scores = [x.mask for x in found], [x.score for x in found]
        rows = write_image_result(
            self._folder,
            picture.name,
            image,
            masks,
            scores,
            captions,
            texts=texts,
            threshold=self._header["thresholds"]["score"],
            separate=self._separate,
        )
        if self._detections is not None:
            self._detections += coco_results(picture.name, detected)
        results.add({"image": str(picture.path), "size": image.shape[:2], "objects": rows})
        named = [row for row in rows if row["id"] in captions]
        return in_one_line([about_object(row, captions[row["id"]]) for row in named])

    def fail(self, picture: Picture, reason: str) -> None:
        """Adds an image that could not be done."""
        self._open().add({"image": str(picture.path), "error": reason})

    def _open(self) -> ResultsFile:
        if self._results is None:
            if not self._resumed:
                prepare_folder(self._folder, self._inputs)
            earlier = list(self._earlier.values())
            self._results = ResultsFile(self._folder / RESULTS, self._header, "images", earlier)
        return self._results

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None and self._resumed:
            self._open()  # a run that was stopped after its last image is complete now
        if self._results is None:
            return
        if self._detections is not None:
            write_detections(self._folder / DETECTIONS, self._detections)
        self._results.__exit__(kind)


def write_image_result(
    folder: Path,
    name: str,
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    scores: Sequence[float],
    captions: Mapping[int, str],
    *,
    texts: Mapping[int, str | None],
    threshold: float,
    separate: bool = False,
) -> list[dict[str, Any]]:
    """Writes masks and overlay of one image; returns its objects for results.json.

    Args:
        folder: as ``prepare_folder`` left it.
        name: of the files.
        image: (H, W, 3) uint8 RGB.
        masks: of the objects 1, 2, ..., each (H, W) bool.
        scores: one per mask.
        captions: object id -> what the overlay calls it; it lists these.
        texts: object id -> its sentence, for results.json.
        threshold: an object with a lower score is not there.
        separate: one binary mask per object, ``masks/<name>/<id>.png``, in place of one label map,
            ``masks/<name>.png``, where the highest score wins.
    """
    size = image.shape[0], image.shape[1]
    label_map = merge_by_score(masks, scores) if masks else np.zeros(size, np.uint8)
    claims = dict(enumerate(zip(masks, scores, strict=True), start=1))
    found = {
        i: presence(
            score, threshold, mask, mask * np.uint8(i) if separate else label_map, object_id=i
        )
        for i, (mask, score) in claims.items()
    }
    if separate:
        for object_id, mask in enumerate(masks, start=1):
            write_mask(folder / f"masks/{name}/{object_id}.png", mask)
    else:
        write_label_map(folder / f"masks/{name}.png", label_map)
        masks = [label_map == object_id for object_id in claims]
    lines = legend(captions, {i: score for i, (_, score) in claims.items()}, found)
    shown = dict(enumerate(masks, start=1)) if separate else label_map
    picture = _draw(image, shown, lines, legend_width(lines.values(), size))
    write_image(folder / f"overlay/{name}.jpg", picture)
    return [
        describe_object(i, score, mask_box(mask), int(mask.sum()), found[i], texts.get(i))
        for i, (mask, score) in enumerate(zip(masks, scores, strict=True), start=1)
    ]


def _draw(
    image: np.ndarray,
    shown: np.ndarray | Mapping[int, np.ndarray],
    lines: Mapping[int, str],
    width: int,
) -> np.ndarray:
    """The overlay: objects with their ids on the picture, the legend beside it.

    Args:
        shown: a label map, or masks that may overlap.
        width: of the legend; 0 for none.
    """
    factor = enlargement((image.shape[0], image.shape[1])) if width else 1
    image = enlarged(image, factor)
    if isinstance(shown, np.ndarray):
        shown = enlarged(shown, factor)
        picture, places = draw_overlay(image, shown), id_places(shown)
    else:
        shown = {object_id: enlarged(mask, factor) for object_id, mask in shown.items()}
        picture, places = draw_overlapping(image, shown), id_places_apart(shown)
    picture = draw_ids(picture, places)
    return add_legend(picture, lines, places, width) if width else picture


def describe_object(
    object_id: int,
    score: float,
    box: Sequence[float] | None,
    area: int,
    found: Presence,
    text: str | None,
) -> dict[str, Any]:
    """One object of one frame or image: box is x0, y0, x1, y1 in pixels, area counts pixels.

    Args:
        found: whether it is there, and why not.
        text: its sentence.
    """
    by = {} if found.by is None else {"by": found.by}
    return {
        "id": object_id,
        "text": text or None,
        "present": found.kind == "present",
        "state": found.kind,
        **by,
        "score": round(score, 6),
        "box": None if box is None else [round(value, 2) for value in box],
        "area": area,
    }
