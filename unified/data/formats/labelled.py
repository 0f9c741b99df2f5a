"""Images with a label map each: the value of a pixel is the class of what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unified.data.formats.files import by_stem, image_files, require
from unified.data.formats.records import Annotation, ImageRecord
from unified.inference.image_io import image_size
from unified.mask_files import VOID, check_edges, read_ids


def read_labelled_images(images: Path, masks: Path) -> list[ImageRecord]:
    """A record per image of a folder, with an annotation per value above 0 of its label map.

    The image's id is the stem of its name, an annotation's is the value.

    Args:
        masks: has ``<stem>.png`` for every image; 0 is background, 255 void.

    Raises:
        InputError: a folder or label map is missing, damaged or has soft edges.
    """
    found = image_files(images, "images with label maps")
    return [_record(image, masks) for image in by_stem(found).values()]


def _record(image: Path, masks: Path) -> ImageRecord:
    mask = require(masks / f"{image.stem}.png", f"the label map of {image.name}")
    height, width = image_size(image)
    labels = read_ids(mask)
    check_edges(mask, labels)
    values = [int(value) for value in np.unique(labels)]
    annotations: list[Annotation] = [
        {"id": value, "mask_file": str(mask), "mask_value": value, "category_id": 0}
        for value in values
        if value not in (0, VOID)
    ]
    return {
        "file_name": str(image),
        "image_id": image.stem,
        "height": height,
        "width": width,
        "annotations": annotations,
    }
