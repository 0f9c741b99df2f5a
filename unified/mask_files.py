"""Masks from files: pixel values as object ids, refused where they cannot be ids.

Labelling tools and image programs write masks in every mode. Values that are ids are read, and so
are grey and transparent pictures that hold nothing else; soft edges, colours and palettes whose
background is not 0 are errors that say what to do.
"""

from __future__ import annotations

import logging
import os
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from unified.errors import InputError
from unified.image_files import first_frame, open_image
from unified.label_maps import MAX_OBJECT_ID

if TYPE_CHECKING:
    from PIL import Image

    from unified.structures import Size

logger = logging.getLogger(__name__)

VOID = 255  # beside other ids: pixels that belong to no object
BLACK = 16  # the brightest channel of what still counts as black
BRIGHT = 128  # from here on a pixel of a picture of a mask is the object
# What tells a soft edge: an id whose pixels have few of their own around them, touch other ids, lie
# between a lower and a higher one, and fill little of their box; and how many of the ids are such.
INNER, TOUCHING, BETWEEN, FILLED, SOFT, THIN, MANY = 0.25, 0.5, 0.4, 0.5, 0.45, 0.7, 8


def read_label_map(path: str | os.PathLike[str], *, size: Size | None = None) -> np.ndarray:
    """The label map (H, W) uint8 of a file whose pixels are object ids.

    A grey file, also one with colour channels or 16 bits, that holds nothing but black and white
    is the mask of one object, id 1. 255 beside other ids of an indexed file is void: no object,
    and a line in the log says so.

    Args:
        path: an indexed, grey or 1-bit image in a lossless format.
        size: (H, W) that the mask must have, when known.

    Raises:
        InputError: the file is missing, unreadable, coloured, lossy, soft, empty, of another size,
            has its background elsewhere than at 0, or holds ids above 255.
    """
    with open_image(path, "mask") as opened:
        if opened.format in ("JPEG", "MPO"):
            raise InputError(f"mask {path} is a JPEG, which blurs object ids: save it as PNG")
        image = first_frame(path, opened)
        values, grey = _values(path, image)
        _check_background(path, image)
    if size is not None and values.shape != size:
        raise InputError(
            f"mask {path} is {values.shape[1]}x{values.shape[0]} pixels, its image is "
            f"{size[1]}x{size[0]}: give a mask of the image's own size"
        )
    ids = _object_ids(path, values, grey=grey)
    check_edges(path, ids)
    if not grey and VOID in ids and (others := (ids > 0) & (ids < VOID)).any():
        _say_void(os.fspath(path))
        ids = np.where(others, ids, 0).astype(np.uint8)
    return ids


def _values(path: str | os.PathLike[str], image: Image.Image) -> tuple[np.ndarray, bool]:
    """(H, W) values of any integer type or bool, and whether they are shades of grey, not ids."""
    mode = image.mode
    if mode == "P":
        values = np.asarray(image)
        used = np.unique(values)
        return values, bool((_palette(image)[used, :3] == used[:, None]).all())
    if mode == "1" or mode.startswith("I"):
        return np.asarray(image), False
    if mode not in ("L", "LA", "PA", "RGB", "RGBA"):
        raise InputError(f"mask {path} has mode {mode}: save it as an indexed or grey PNG")
    colours = np.asarray(image.convert("RGBA"))
    values, alpha = colours[..., 0], colours[..., 3]
    if (colours[..., :3] != values[..., None]).any():
        raise InputError(
            f"mask {path} has colours (mode {mode}), expected one object id per pixel: save it as "
            "an indexed or grey PNG with 0 for background and 1, 2, ... for the objects"
        )
    if (values[alpha < 255] > 0).any():
        raise InputError(
            f"mask {path} has transparent pixels that are not black (mode {mode}), so it does not "
            "say which are the object: save it without transparency, black but for the object"
        )
    if not values.any() and alpha.min() < alpha.max():
        raise InputError(
            f"mask {path} is black all over, only its transparency tells an object: save it "
            "without transparency, white where the object is"
        )
    return values, True


def _palette(image: Image.Image) -> np.ndarray:
    """(256, 4) uint8 RGBA of an indexed image."""
    colours = np.zeros((256, 4), np.uint8)
    colours[:, 3] = 255
    listed = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    colours[: len(listed), :3] = listed
    transparent: Any = image.info.get("transparency")
    if isinstance(transparent, int):
        colours[transparent, 3] = 0
    elif isinstance(transparent, bytes):
        colours[: len(transparent), 3] = np.frombuffer(transparent, np.uint8)
    return colours


def _check_background(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Raises InputError if index 0 of a palette is a colour, and another that is used is none."""
    if image.mode != "P":
        return
    colours = _palette(image)
    empty = (colours[:, :3].max(axis=1) <= BLACK) | (colours[:, 3] == 0)
    others = [index for index in np.unique(np.asarray(image)).tolist() if empty[index]]
    if others and not empty[0]:
        raise InputError(
            f"mask {path} has its background at {others[0]}: that index of its palette is black or "
            f"transparent, and 0 is the colour {tuple(colours[0, :3].tolist())}. Save it with 0 "
            "for background and 1, 2, ... for the objects"
        )


def _object_ids(path: str | os.PathLike[str], values: np.ndarray, *, grey: bool) -> np.ndarray:
    """Checks pixel values (H, W) of any integer type or bool; returns them as ids, uint8."""
    ids = np.unique(values)
    if ids.tolist() in ([0, 65535], [65535]):  # black and white of 16 bits
        return (values > 0).astype(np.uint8)
    if ids[0] < 0 or ids[-1] > MAX_OBJECT_ID:
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise InputError(f"mask {path} holds the object id {wrong}: ids go from 1 to 255")
    if ids[-1] == 0:
        raise InputError(f"mask {path} is empty: mark the object with a pixel value above 0")
    if grey and ids[-1] == MAX_OBJECT_ID:
        if len(ids) > 1 and ids[-2] > 0:
            raise InputError(
                f"mask {path} mixes 255 (white) with other grey values such as {ids[-2]}: use only "
                "0 and 255 for one object, or an indexed PNG with one id per object"
            )
        return (values == MAX_OBJECT_ID).astype(np.uint8)
    return values.astype(np.uint8)


@cache
def _say_void(path: str) -> None:
    logger.warning("mask %s: 255 beside other ids is void, not an object", path)


def check_edges(path: str | os.PathLike[str], ids: np.ndarray) -> None:
    """Raises InputError if ids (H, W) uint8 are the shades of a soft edge or of JPEG's noise."""
    soft = _soft_ids(ids)
    if soft:
        shown = ", ".join(map(str, soft[:4])) + ", ..." * (len(soft) > 4)
        raise InputError(
            f"mask {path} has soft edges: the ids {shown} are only in thin rings around others. "
            "Save it without antialiasing, resize it by nearest neighbour and not by JPEG"
        )


def _soft_ids(ids: np.ndarray) -> list[int]:
    """The ids of soft edges, if there are too many for a label map whose edges are hard."""
    area = np.bincount(ids.ravel(), minlength=256)
    num_ids = np.count_nonzero(area[1:])
    if num_ids < 2:
        return []
    padded, (height, width) = np.pad(ids, 1, mode="edge"), ids.shape
    near = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    rim = ids != near[1]
    for place in (3, 5, 7):
        rim |= ids != near[place]
    thin = _share(ids, rim & (ids > 0), area) > 1 - INNER
    if np.count_nonzero(thin) < SOFT * num_ids:  # most label maps, in a third of the time
        return []
    others = np.logical_or.reduce([(each != ids) & (each > 0) for each in near])
    thin &= _share(ids, others, area) > TOUCHING
    thin_ids = [i for i in np.flatnonzero(thin).tolist() if _filled(ids == i) < FILLED]
    between = (np.minimum.reduce(near) < ids) & (ids < np.maximum.reduce(near))
    rings = _share(ids, between, area)[thin_ids] >= BETWEEN
    is_soft = rings.sum() >= SOFT * num_ids and (rings.sum() > 1 or num_ids == 2)
    is_noise = len(thin_ids) >= max(MANY, THIN * num_ids)
    return thin_ids if is_soft or is_noise else []


def _share(ids: np.ndarray, where: np.ndarray, area: np.ndarray) -> np.ndarray:
    """(256,) share of the pixels of each id that lie where."""
    return np.bincount(ids[where], minlength=256) / area.clip(1)


def _filled(mask: np.ndarray) -> float:
    """Share of the box around a mask that it fills."""
    rows, columns = np.nonzero(mask)
    return len(rows) / float((np.ptp(rows) + 1) * (np.ptp(columns) + 1))


def read_ids(path: str | os.PathLike[str], *, classes: bool = False) -> np.ndarray:
    """The (H, W) uint8 pixel values of a PNG with one 8-bit channel, void (255) among them.

    Args:
        classes: 0 is a class as any other.

    Raises:
        InputError: the file is missing, damaged, lossy or coloured, or 0 is not its background.
    """
    with open_image(path, "mask") as image:
        if image.format != "PNG":
            raise InputError(f"{path} is a {image.format} file: save masks as PNG, lossless")
        if image.mode not in ("1", "P", "L"):
            raise InputError(
                f"{path} has mode {image.mode}, expected one 8-bit channel of object ids: save it "
                "as an indexed PNG, not in colours"
            )
        image = first_frame(path, image)
        if not classes:
            _check_background(path, image)
        return np.array(image, dtype=np.uint8)


@lru_cache(maxsize=64)
def is_black_and_white(paths: tuple[str, ...]) -> bool:
    """Whether 255 is the only object of a clip's masks, as in DAVIS 2016 and much own data.

    Beside other ids, in any frame, it is void. The first mask that has one decides.
    """
    white = False
    for path in paths:
        found = set(np.unique(read_ids(path)).tolist())
        if found - {0, VOID}:
            return False
        white |= VOID in found
    return white


def read_object_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W) bool: the object of a picture of a mask, white or in a colour of a palette.

    In a grey or coloured picture it is where that is 128 or brighter, also with soft edges; in an
    indexed one where the value is neither 0 nor 255 beside others.

    Raises:
        InputError: the file is missing or damaged, or too dark to hold an object.
    """
    with open_image(path, "mask") as opened:
        image = first_frame(path, opened)
        if image.mode == "P":
            values, grey = _values(path, image)
            if not grey:
                _check_background(path, image)
                objects = (values > 0) & (values < VOID)
                return objects if objects.any() else values == VOID
        pixels = np.array(image.convert("LA"))
    bright, alpha = pixels[..., 0], pixels[..., 1]
    if (bright[alpha < 255] > 0).any():
        raise InputError(f"mask {path} has transparent pixels that are not black: save it without")
    if 0 < bright.max() < BRIGHT:
        raise InputError(
            f"mask {path} is dark: its brightest pixel is {bright.max()}, and an object is "
            f"{BRIGHT} or brighter in a grey mask. Save it with 0 and 255"
        )
    return np.asarray(bright >= BRIGHT)
