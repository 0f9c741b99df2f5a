"""Given clips: a DAVIS-style folder, whole or thinned out and resized."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2

from projects.uniref.lite.data.pictures import QUALITY, resize_image
from unified.data.formats.clips import read_clip_folders
from unified.data.formats.files import require
from unified.data.formats.records import ClipRecord, frame_labels
from unified.data.synthetic.writing import save_jpeg
from unified.errors import InputError
from unified.inference.image_io import read_image
from unified.label_maps import write_label_map


def read_davis_tree(root: Path) -> list[ClipRecord]:
    """All clips of a folder with ``JPEGImages[/480p]`` and ``Annotations[/480p]``."""
    masks = require(root / "Annotations", "a DAVIS-style folder with JPEGImages and Annotations")
    images = require(root / "JPEGImages", "the frames of a DAVIS-style folder")
    if (masks / "480p").exists():
        images, masks = images / "480p", masks / "480p"
    return read_clip_folders(images, masks)


def copy_clip(record: ClipRecord, folder: Path, stride: int, longest_side: int | None) -> None:
    """Every so many frames of a clip, resized if a side is given, with indexed masks.

    Raises:
        InputError: there is a clip of that name already, or a frame cannot be read.
    """
    name = record["clip_id"]
    if (folder / "frames" / name).exists():
        raise InputError(f"a second clip would be named {name!r}: give it another name")
    for frame in range(0, len(record["file_names"]), stride):
        source, stem = record["file_names"][frame], record["frame_names"][frame]
        target = folder / f"frames/{name}/{stem}.jpg"
        image = read_image(source)
        if longest_side is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        else:
            image = resize_image(image, longest_side)
            save_jpeg(target, image, quality=QUALITY)
        labels = frame_labels(record, frame)
        if labels is not None:
            size = image.shape[1], image.shape[0]
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
            write_label_map(folder / f"masks/{name}/{stem}.png", labels)
