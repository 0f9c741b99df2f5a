"""Label maps: made of masks, to and from PNG files.

A label map is (H, W) uint8: pixel = object id, 0 = background. Nothing here needs torch, and Pillow
is imported where it is used, so that models can be run without it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from unified.errors import ConfigError
from unified.files import atomic_path

if TYPE_CHECKING:
    from PIL import Image

MAX_OBJECT_ID = 255


def merge_by_score(masks: Sequence[np.ndarray], scores: Sequence[float]) -> np.ndarray:
    """The label map of masks (H, W) bool of one image: the highest score wins a shared pixel.

    Masks get the ids 1, 2, ... in the order given; of equal scores the earlier mask wins.
    """
    label_map = np.zeros(masks[0].shape, np.uint8)
    for index in sorted(range(len(masks)), key=lambda index: (scores[index], -index)):
        label_map[masks[index]] = index + 1
    return label_map


def split_label_map(label_map: np.ndarray) -> dict[int, np.ndarray]:
    """Object id -> (H, W) bool, for every id that has a pixel, ascending."""
    return {int(value): label_map == value for value in np.unique(label_map) if value}


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) around the pixels of a mask (H, W), x1 and y1 exclusive; None if empty."""
    columns, rows = mask.any(axis=0).nonzero()[0], mask.any(axis=1).nonzero()[0]
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def object_window(mask: np.ndarray, margin: float) -> tuple[slice, slice]:
    """Rows and columns of the box around a mask (H, W), widened within the picture.

    That of an empty mask is the whole picture.

    Args:
        margin: added on every side, as a share of the box's longer one, so that the window of a
            thin object is not thin; infinite is the whole picture.
    """
    height, width = mask.shape
    x0, y0, x1, y1 = mask_box(mask) or (0, 0, width, height)
    more = margin * max(y1 - y0, x1 - x0)
    rows, columns = (
        slice(round(max(low - more, 0)), round(min(high + more, size)))
        for low, high, size in ((y0, y1, height), (x0, x1, width))
    )
    return rows, columns


def check_margin(margin: float) -> None:
    """Raises ConfigError unless the margin of ``object_window`` is 0 or more."""
    if not margin >= 0:  # no number is refused too
        raise ConfigError(
            f"the margin of supports is {margin}: expected 0 or more, infinite for whole pictures"
        )


@lru_cache(maxsize=1)
def davis_palette() -> np.ndarray:
    """(256, 3) uint8 RGB colours of the DAVIS and PASCAL VOC label maps.

    The bits of an id go in turn to red, green and blue, the highest colour bit first.
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    palette.setflags(write=False)
    return palette


def write_label_map(path: str | os.PathLike[str], label_map: np.ndarray) -> None:
    """Writes (H, W) uint8 as an indexed PNG in the DAVIS colours, at once or not at all."""
    from PIL import Image

    image = Image.fromarray(label_map)
    image.putpalette(davis_palette().tobytes())
    _write_png(path, image)


def write_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Writes (H, W) bool as a grey PNG of 0 and 255, at once or not at all."""
    from PIL import Image

    _write_png(path, Image.fromarray(mask.astype(np.uint8) * 255))


def _write_png(path: str | os.PathLike[str], image: Image.Image) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A bool mask (H, W) as a compressed run-length code whose counts are text, as in JSON."""
    from pycocotools import mask as coco_mask

    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}
