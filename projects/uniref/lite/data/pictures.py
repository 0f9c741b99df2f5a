"""Labelled pictures from anywhere: COCO JSON, and folders of index masks.

Pictures are stored resized as they are read; what is kept in memory is their masks as run-length
codes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from projects.uniref.lite.data.vocabulary import RARE, UNREFERRED
from unified.data.formats.coco import category_names, read_instances
from unified.data.formats.files import image_files, read_json, require, segmentation_mask
from unified.data.formats.records import ImageRecord, annotation_mask
from unified.data.synthetic.writing import save_jpeg
from unified.errors import InputError
from unified.inference.image_io import read_image
from unified.label_maps import encode_mask
from unified.mask_files import read_ids

QUALITY = 90
MIN_CLASS_SHARE = 0.01  # of a picture, for a few-shot sample
MIN_SHARE = 0.003  # of the picture; what is smaller is not referred to
COCO, COMPOSITES, PASTED = "coco", "composites", "regions_pasted"  # folders of our own images
PET = "pet"  # the noun whose folder holds cats and dogs, named as in Oxford-IIIT Pet


@dataclass(frozen=True)
class Thing:
    """An object of a picture.

    Attributes:
        name: its class; "" for a region of no known class.
        mask: (H, W) bool, visible pixels.
        referable: sentences may refer to it; the others only keep sentences from being unique.
        crowd: several instances in one mask.
        breeds: narrower nouns that are true of it.
    """

    name: str
    mask: np.ndarray
    referable: bool = True
    crowd: bool = False
    breeds: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)  # compared by identity, so that what is measured can be kept
class Scene:
    """A picture with its things.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        complete: classes of which every instance is among the things.
    """

    image: np.ndarray
    things: tuple[Thing, ...]
    complete: frozenset[str]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class Picture:
    """A stored picture, whose scene is read when it is needed.

    Attributes:
        path: of the stored JPEG; ``file_name`` is that path below the folder of all images.
        origin: "coco", or the name of the folder of objects.
        names, codes, crowds: per thing its class, run-length mask, and whether it is several.
        breeds: narrower nouns that are true of every thing.
        complete: classes of which every instance is among the things.
    """

    path: Path
    file_name: str
    origin: str
    size: tuple[int, int]
    names: tuple[str, ...]
    codes: tuple[Mapping[str, Any], ...]
    crowds: tuple[bool, ...]
    breeds: tuple[str, ...]
    complete: frozenset[str]

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool of a thing."""
        return segmentation_mask(self.codes[index], *self.size)

    def class_mask(self, name: str) -> np.ndarray | None:
        """(H, W) bool: all instances of a class; None if they are small or a crowd is there."""
        indices = [index for index, found in enumerate(self.names) if found == name]
        if not indices or any(self.crowds[index] for index in indices):
            return None
        mask = np.any([self.mask(index) for index in indices], axis=0)
        return mask if mask.mean() >= MIN_CLASS_SHARE else None

    def scene(self) -> Scene:
        """The picture with all its things."""
        things = []
        for index, (name, crowd) in enumerate(zip(self.names, self.crowds, strict=True)):
            mask = self.mask(index)
            described = bool(name) and name not in UNREFERRED
            referable = described and not crowd and bool(mask.mean() >= MIN_SHARE)
            things.append(Thing(name, mask, referable, crowd, self.breeds))
        return Scene(read_image(self.path), tuple(things), self.complete)


@dataclass(frozen=True)
class ObjectFolder:
    """A folder with ``images`` and ``masks``: ``[noun=]path``.

    With ``labels.json`` a mask value is a class of that file. Without, a noun says that every mask
    is one object of that class, and no noun that every value is a region of no known class.
    """

    path: Path
    noun: str

    @classmethod
    def parse(cls, text: str) -> ObjectFolder:
        """From the command line."""
        noun, equals, path = text.rpartition("=")
        if equals and not noun:
            raise InputError(f"{text!r} has no noun before '=': expected NOUN=DIR or DIR")
        return cls(Path(path), noun)

    @property
    def origin(self) -> str:
        """Name of the folder, below which its pictures are stored and its classes are named."""
        return Path(os.path.abspath(self.path)).name  # "x/." and ".." have a name too

    def read(self, folder: Path, longest_side: int) -> Iterator[Picture]:
        """Stores every image below ``folder`` and yields it."""
        labels = self.path / "labels.json"
        names: dict[int, str] | None = None
        if labels.exists():
            names = {int(value): name for value, name in read_json(labels, "value: class").items()}
        for path in image_files(self.path / "images", "the pictures of a folder of objects"):
            mask = require(self.path / "masks" / f"{path.stem}.png", f"the mask of {path.name}")
            values = read_ids(mask)
            found = _named_masks(values, names, self._noun(path))
            breeds = _breeds(path) if self.noun == PET else ()
            complete = self._complete(names)
            yield _store(path, folder, self.origin, longest_side, found, breeds, complete)

    def _noun(self, path: Path) -> str:
        if self.noun == PET:
            return "cat" if path.stem[0].isupper() else "dog"
        return self.noun

    def _complete(self, names: Mapping[int, str] | None) -> frozenset[str]:
        if names is not None:
            return frozenset(names.values()) | RARE
        if self.noun == PET:
            return frozenset(("cat", "dog")) | RARE
        if self.noun in ("", "person"):  # anything may stand beside a person
            return frozenset(filter(None, (self.noun,)))
        return frozenset((self.noun,)) | RARE


def check_origins(folders: Iterable[ObjectFolder]) -> None:
    """Raises InputError where pictures of two folders would be stored in one."""
    taken: dict[str, str] = dict.fromkeys((COCO, COMPOSITES, PASTED), "the sets' own images")
    for folder in folders:
        if folder.origin in taken:
            raise InputError(
                f"--objects {folder.path}: the name {folder.origin!r} is taken by "
                f"{taken[folder.origin]}: rename the folder"
            )
        taken[folder.origin] = str(folder.path)


def _named_masks(
    values: np.ndarray, names: Mapping[int, str] | None, noun: str
) -> list[tuple[str, np.ndarray]]:
    if names is None and noun:
        return [(noun, values > 0)]
    present = [value for value in np.unique(values).tolist() if value]
    return [((names or {}).get(value, ""), values == value) for value in present]


def _breeds(path: Path) -> tuple[str, ...]:
    """Narrower nouns from a file name like american_bulldog_12.jpg; cats begin with a capital."""
    match = re.fullmatch(r"(.+)_\d+", path.stem)
    if match is None:
        return ()
    words = match[1].replace("_", " ").lower()
    return (f"{words} cat",) if path.stem[0].isupper() else (words,)


def read_coco(
    images: Path, annotations: Path, folder: Path, longest_side: int
) -> Iterator[Picture]:
    """Stores every picture of a COCO-style file below ``folder`` and yields it.

    Raises:
        InputError: the file or an image is missing or damaged, or only boxes are known.
    """
    content = read_json(annotations, "COCO instances", ("images", "annotations", "categories"))
    names = list(category_names(content, annotations).values())
    for record in read_instances(annotations, [images]):
        found = [
            (names[entry["category_id"]], _instance_mask(annotations, record, index))
            for index, entry in enumerate(record["annotations"])
        ]
        crowds = tuple(bool(entry["iscrowd"]) for entry in record["annotations"])
        path = Path(record["file_name"])
        complete = frozenset(names)
        yield _store(path, folder, COCO, longest_side, found, (), complete, crowds)


def _instance_mask(path: Path, record: ImageRecord, index: int) -> np.ndarray:
    entry = record["annotations"][index]
    mask = annotation_mask(entry, record["height"], record["width"])
    if mask is None:
        raise InputError(f"{path}: annotation {entry['id']} has no segmentation: masks are needed")
    return mask


def _store(
    path: Path,
    folder: Path,
    origin: str,
    longest_side: int,
    found: Iterable[tuple[str, np.ndarray]],
    breeds: tuple[str, ...],
    complete: frozenset[str],
    crowds: tuple[bool, ...] | None = None,
) -> Picture:
    file_name = f"{origin}/{path.stem}.jpg"
    if (folder / file_name).exists():
        raise InputError(f"{path}: a second picture would be {file_name}: give it another name")
    image = read_image(path)
    entries = []
    for index, (name, mask) in enumerate(found):
        if mask.shape != image.shape[:2]:
            raise InputError(f"{path} is {image.shape[:2]} (h, w), its masks are {mask.shape}")
        small = resize_mask(mask, longest_side)
        if small.any():
            entries.append((name, encode_mask(small), bool(crowds and crowds[index])))
    stored = resize_image(image, longest_side)
    save_jpeg(folder / file_name, stored, quality=QUALITY)
    return Picture(
        path=folder / file_name,
        file_name=file_name,
        origin=origin,
        size=(stored.shape[0], stored.shape[1]),
        names=tuple(entry[0] for entry in entries),
        codes=tuple(entry[1] for entry in entries),
        crowds=tuple(entry[2] for entry in entries),
        breeds=breeds,
        complete=complete,
    )


def _target_size(shape: tuple[int, ...], longest_side: int) -> tuple[int, int]:
    """(w, h), never larger than the picture is."""
    scale = min(1.0, longest_side / max(shape[:2]))
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def resize_image(image: np.ndarray, longest_side: int) -> np.ndarray:
    """The picture (H, W, 3) with at most so many pixels on its longest side."""
    size = _target_size(image.shape, longest_side)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def resize_mask(mask: np.ndarray, longest_side: int) -> np.ndarray:
    """As ``resize_image`` for a bool mask (H, W): pixels that are covered by half or more."""
    size = _target_size(mask.shape, longest_side)
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
