"""Pictures with objects and sentences in one compact file, from sets of the catalog.

    python -m projects.sam.mobile.pictures --sets lite_ris lite_vos_real --output pictures.npz

Every picture is kept once, whatever number of sets and sentences speak of it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from unified.commands import run_command
from unified.data.catalog import load_records
from unified.data.formats.records import Record, annotation_mask, frame_masks
from unified.errors import InputError
from unified.files import atomic_path
from unified.inference.image_io import read_image
from unified.parity import read_arrays
from unified.tasks import Task

logger = logging.getLogger(__name__)

SIDE = 512  # of the square canvas of a picture
GRID = SIDE // 2  # of that of a mask
SAME = 0.85  # IoU above which two sets speak of one object
MIN_CELLS = 12  # smaller objects are left out


@dataclass
class Picture:
    """One picture.

    Attributes:
        jpeg: the encoded picture, its longest side at most ``SIDE``.
        size: (h, w) on the canvas, the longest side is ``SIDE``.
        masks: M x (GRID, GRID) bool.
        names: M class names, "" where there is none.
        sentences: text and indices of the objects it means, none if it is absent.
        clip: name of the clip and number of the frame; ("", 0) of a single picture.
    """

    jpeg: np.ndarray
    size: tuple[int, int]
    masks: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sentences: dict[str, tuple[int, ...]] = field(default_factory=dict)
    clip: tuple[str, int] = ("", 0)

    def add(self, mask: np.ndarray, name: str) -> int | None:
        """Index of the object with this mask, known or new; None if it is too small."""
        if mask.sum() < MIN_CELLS:
            return None
        for index, known in enumerate(self.masks):
            if (known & mask).sum() >= SAME * (known | mask).sum():
                self.names[index] = self.names[index] or name
                return index
        self.masks.append(mask)
        self.names.append(name)
        return len(self.masks) - 1


def collect(sets: Sequence[str], quality: int) -> list[Picture]:
    """The pictures of these sets.

    Raises:
        InputError: a set is not there or does not fit.
    """
    pictures: dict[str, Picture] = {}
    for name in sets:
        for record in load_records(name):
            if "frame_names" in record:
                _add_clip(pictures, record, quality)
            else:
                _add_image(pictures, record, quality)
        logger.info("%s: %d pictures by now", name, len(pictures))
    return list(pictures.values())


def _add_image(pictures: dict[str, Picture], record: Record, quality: int) -> None:
    picture = _picture(pictures, record["file_name"], quality)
    found = []
    for entry in record["annotations"]:
        mask = annotation_mask(entry, record["height"], record["width"])
        crowd = mask is None or bool(entry.get("iscrowd"))
        name = entry.get("category_name", "")
        found.append(None if crowd else picture.add(_on_grid(mask, picture.size), name))
    if None not in found:
        for text in record.get("expressions", ()):
            picture.sentences[text] = tuple(sorted({i for i in found if i is not None}))
    if record["task"] == Task.DETECTION:  # all objects are there: a name that stands once is enough
        names = [entry.get("category_name", "") for entry in record["annotations"]]
        for index, name in zip(found, names, strict=True):
            if index is not None and name and names.count(name) == 1:
                picture.sentences.setdefault(f"the {name}", (index,))


def _add_clip(pictures: dict[str, Picture], record: Record, quality: int) -> None:
    for number, file in enumerate(record["file_names"]):
        picture = _picture(pictures, file, quality)
        picture.clip = (record["clip_id"], number)
        masks = frame_masks(record, number)
        if not picture.masks:
            for object_id in sorted(masks):
                picture.masks.append(_on_grid(masks[object_id], picture.size))
                picture.names.append(f"#{object_id}")  # the same in all frames of the clip
        if "expression" in record:
            meant = [f"#{i}" for i in record["target_ids"]]
            indices = tuple(picture.names.index(i) for i in meant if i in picture.names)
            if len(indices) == len(meant):
                picture.sentences[record["expression"]] = indices


def _picture(pictures: dict[str, Picture], file: str, quality: int) -> Picture:
    if file not in pictures:
        image = read_image(Path(file))
        scale = SIDE / max(image.shape[:2])
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        if scale < 1:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        pictures[file] = Picture(jpeg=jpeg.reshape(-1), size=(height, width))
    return pictures[file]


def _on_grid(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool -> (GRID, GRID) bool, the picture at the upper left."""
    height, width = (-(-side // 2) for side in size)
    small = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    grid = np.zeros((GRID, GRID), bool)
    grid[:height, :width] = small >= 0.5
    return grid


def save(pictures: Sequence[Picture], path: Path) -> None:
    """Writes one .npz; masks in bits."""
    arrays: dict[str, Any] = {
        "jpegs": np.concatenate([picture.jpeg for picture in pictures]),
        "lengths": np.array([len(picture.jpeg) for picture in pictures]),
        "sizes": np.array([picture.size for picture in pictures]),
        "masks": np.packbits(np.stack([m for p in pictures for m in p.masks]), axis=-1),
        "names": np.array([name for p in pictures for name in p.names]),
        "counts": np.array([len(picture.names) for picture in pictures]),
        "clips": np.array([picture.clip[0] for picture in pictures]),
        "frames": np.array([picture.clip[1] for picture in pictures]),
        "texts": np.array([text for p in pictures for text in p.sentences]),
        "text_counts": np.array([len(picture.sentences) for picture in pictures]),
        "meant": np.concatenate([np.array(i, int) for p in pictures for i in p.sentences.values()]),
        "meant_counts": np.array([len(i) for p in pictures for i in p.sentences.values()]),
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> list[Picture]:
    """What ``save`` wrote.

    Raises:
        InputError: the file is missing, damaged or holds something else.
    """
    arrays = read_arrays(path)
    if not {"jpegs", "masks", "meant_counts"} <= set(arrays):
        raise InputError(f"{path} holds no pictures: make it with projects.sam.mobile.pictures")
    masks = np.unpackbits(arrays["masks"], axis=-1).astype(bool)
    jpegs = _parts(arrays["jpegs"], arrays["lengths"])
    objects = _parts(masks, arrays["counts"])
    names = _parts(arrays["names"], arrays["counts"])
    texts = _parts(arrays["texts"], arrays["text_counts"])
    meant = _parts(arrays["meant"], arrays["meant_counts"])
    return [
        Picture(
            jpeg=next(jpegs),
            size=(int(size[0]), int(size[1])),
            masks=list(next(objects)),
            names=[str(name) for name in next(names)],
            sentences={str(t): tuple(int(i) for i in next(meant)) for t in next(texts)},
            clip=(str(clip), int(frame)),
        )
        for size, clip, frame in zip(
            arrays["sizes"], arrays["clips"], arrays["frames"], strict=True
        )
    ]


def _parts(array: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    for count in counts:
        yield array[start : start + count]
        start += count


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", required=True, help="of the catalog or own data")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quality", type=int, default=70, help="of JPEG")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Collects and writes."""
    options = parse(arguments)
    save(collect(options.sets, options.quality), options.output)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(run_command(main))
