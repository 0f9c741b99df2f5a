"""Whether images, masks and prompts can be asked about, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unified.errors import InputError
from unified.label_maps import MAX_OBJECT_ID
from unified.structures import Point, Prompt, Size


def check_image(image: np.ndarray) -> None:
    """Raises InputError unless the image is RGB (H, W, 3) uint8 with a pixel in it."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(
            f"expected an RGB image (H, W, 3) of uint8, got {image.shape} of {image.dtype}: "
            "convert grey or RGBA images first"
        )


def check_prompt(prompt: Prompt, size: Size | None = None) -> None:
    """Raises InputError unless the prompt says something and its mask fits a frame of ``size``."""
    if not isinstance(prompt, Prompt):
        raise InputError(f'expected a Prompt, got {prompt!r}: write Prompt(text="the cat")')
    if not all(isinstance(point, Point) for point in prompt.points):
        raise InputError(f"expected points of unified.structures.Point, got {prompt.points!r}")
    shown = prompt.points_at or prompt.mask is not None or prompt.supports
    if prompt.text is None and not shown:
        raise InputError(
            "the prompt is empty: give a text, a mask, points, a box or example images with masks, "
            "or call detect for all objects of an image"
        )
    if prompt.mask is not None and size is not None:
        check_mask(prompt.mask, size)
    if prompt.points and not any(point.inside for point in prompt.points):
        others = prompt.text or prompt.mask is not None or prompt.supports or prompt.box
        if not others:
            raise InputError("all points are beside the object: give at least one that is on it")
    if size is not None:
        _check_places(prompt, size)


def _check_places(prompt: Prompt, size: Size) -> None:
    """Raises InputError unless points and box lie on a frame of ``size``."""
    height, width = size
    for point in prompt.points:
        if not (0 <= point.x < width and 0 <= point.y < height):
            raise InputError(
                f"the point {point.x:g},{point.y:g} is outside the image of {width} x {height} "
                f"pixels: x goes from 0 to {width - 1}, y from 0 to {height - 1}"
            )
    if prompt.box is None:
        return
    x0, y0, x1, y1 = prompt.box
    written = ",".join(f"{side:g}" for side in prompt.box)
    if not (x0 < x1 and y0 < y1):
        raise InputError(
            f"the box {written} has no area: give x0,y0,x1,y1 with x0 below x1 and y0 below y1"
        )
    if not (0 <= x0 and 0 <= y0 and x1 <= width and y1 <= height):
        raise InputError(
            f"the box {written} does not lie within the image of {width} x {height} pixels"
        )


def check_mask(mask: np.ndarray, size: Sequence[int]) -> None:
    """Raises InputError unless the mask is a non-empty (H, W) map of the given size."""
    if mask.shape != tuple(size):
        raise InputError(
            f"expected a mask of the image's size {tuple(size)}, got {mask.shape}: resize it with "
            "nearest-neighbour interpolation"
        )
    if not mask.any():
        raise InputError("the mask is empty: mark at least one pixel of the object")


def check_object(object_id: int, prompt: Prompt) -> None:
    """Raises InputError if an id or a prompt cannot be used."""
    if not 1 <= object_id <= MAX_OBJECT_ID:
        raise InputError(f"object ids go from 1 to {MAX_OBJECT_ID}, got {object_id}")
    check_prompt(prompt)


def check_frames(prompts: Mapping[int, Mapping[int, Prompt]], num_frames: int) -> None:
    """Raises InputError if a prompt is for a frame that a clip of ``num_frames`` does not have."""
    missing = sorted(index for index in prompts if index not in range(num_frames))
    if missing:
        raise InputError(
            f"prompts are for the frames {', '.join(map(str, missing))}, but the clip has "
            f"{num_frames} frames, counted from 0: give prompts for frames that come"
        )
