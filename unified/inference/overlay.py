"""Objects drawn over a picture: translucent, outlined, numbered.

Pillow is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unified.label_maps import MAX_OBJECT_ID

if TYPE_CHECKING:
    from PIL import ImageFont

OPACITY = 0.45
# The hues of the first DAVIS colours, as bright as the others: red to cyan.
FIRST = ((230, 0, 0), (0, 200, 0), (235, 220, 0), (70, 100, 255), (230, 0, 230), (0, 210, 220))
DARKEST, BRIGHTEST = 40.0, 88.0  # CIE lightness of colours that are seen on a picture
DASH = 6  # contour widths for which one of several objects has a contour that they share
STRIP = 256  # rows
FONT = "mpl-data/fonts/ttf/DejaVuSans.ttf"  # in matplotlib: Pillow's own has no letter beyond ASCII


def draw_overlay(image: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """The image with translucent objects and thin contours, (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8 RGB, left as it is.
        label_map: (H, W) uint8.
    """
    canvas, colours = np.array(image, order="C"), overlay_colours()
    for top in range(0, len(canvas), STRIP):  # of a large picture there is no room for all at once
        rows, labels = (
            canvas[top : top + STRIP].reshape(-1, 3),
            label_map[top : top + STRIP].ravel(),
        )
        inside = np.flatnonzero(labels)  # numpy takes places several times faster than a mask
        fill = rows.take(inside, axis=0) * (1 - OPACITY)
        fill += (colours * OPACITY).take(labels.take(inside), axis=0)
        rows[inside] = fill.astype(np.uint8)
    edge = np.flatnonzero(contour(label_map, width=_contour_width(label_map.shape)))
    canvas.reshape(-1, 3)[edge] = colours.take(label_map.ravel().take(edge), axis=0)
    return canvas


def draw_overlapping(image: np.ndarray, masks: Mapping[int, np.ndarray]) -> np.ndarray:
    """As ``draw_overlay``, of objects that may share pixels, so that each of them is seen.

    Shared pixels have the mean of the colours, and shared contours are dashed in all of them.

    Args:
        masks: object id -> (H, W) bool.
    """
    canvas, width = image.copy(), _contour_width(image.shape[:2])
    edges = {i: contour(mask.view(np.uint8), width=width) for i, mask in masks.items()}
    for top in range(0, len(canvas), STRIP):
        rows = slice(top, top + STRIP)
        _mix(canvas[rows], {i: mask[rows] for i, mask in masks.items()})
        _dash(canvas[rows], {i: edge[rows] for i, edge in edges.items()}, top, DASH * width)
    return canvas


def _mix(canvas: np.ndarray, masks: Mapping[int, np.ndarray]) -> None:
    """Fills masks (H, W) on a canvas (H, W, 3), shared pixels with the mean of the colours."""
    colours, num = np.zeros(canvas.shape, np.uint16), np.zeros(canvas.shape[:2], np.uint8)
    for object_id, mask in masks.items():
        colours[mask] += overlay_colours()[object_id]
        num += mask
    inside = num > 0
    mean = colours[inside] / num[inside, None]
    canvas[inside] = (canvas[inside] * (1 - OPACITY) + mean * OPACITY).astype(np.uint8)


def _dash(canvas: np.ndarray, edges: Mapping[int, np.ndarray], top: int, length: int) -> None:
    """Draws contours (H, W) on a canvas whose first row is row ``top``; shared ones take turns."""
    height, width = canvas.shape[:2]
    sharing, passed = (np.zeros((height, width), np.uint8) for _ in range(2))
    for edge in edges.values():
        sharing += edge
    place = np.add.outer(np.arange(top, top + height), np.arange(width)) // length
    turn = place % sharing.clip(min=1)
    for object_id, edge in edges.items():
        canvas[edge & (turn == passed)] = overlay_colours()[object_id]
        passed += edge  # those that share a pixel and were drawn before


def draw_ids(canvas: np.ndarray, places: Mapping[int, tuple[int, int]]) -> np.ndarray:
    """The picture (H, W, 3) with the id of every object on it, in the colour of the object.

    Args:
        places: object id -> row and column of the middle of its digits.
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(canvas)
    draw, height = ImageDraw.Draw(picture), text_height(canvas.shape)
    large, colours = font(round(1.3 * height)), overlay_colours()
    bold = max(1, height // 10)
    for object_id, (row, column) in places.items():
        rim = "black" if _lightness(colours[object_id]) > 50 else "white"
        # A rim, and on it the digits made bold by a stroke of their own.
        for colour, width in ((rim, 2 * bold + 1), (rgb(object_id), bold)):
            draw.text(
                (column, row),
                str(object_id),
                fill=colour,
                font=large,
                anchor="mm",
                stroke_width=width,
                stroke_fill=colour,
            )
    return np.asarray(picture)


def id_places(label_map: np.ndarray) -> dict[int, tuple[int, int]]:
    """Row and column for the id of every object of a label map (H, W)."""
    return {int(i): inner_pixel(label_map == i) for i in np.unique(label_map) if i}


def id_places_apart(masks: Mapping[int, np.ndarray]) -> dict[int, tuple[int, int]]:
    """Those of masks (H, W) bool that may overlap: where an object is alone, if it is anywhere.

    Ids that would lie on each other are put side by side.
    """
    masks = {object_id: mask for object_id, mask in masks.items() if mask.any()}
    num = sum((mask.view(np.uint8) for mask in masks.values()), np.uint8(0))
    places: dict[int, tuple[int, int]] = {}
    for object_id, mask in masks.items():
        alone = mask & (num == 1)
        row, column = inner_pixel(alone if alone.sum() * 10 > mask.sum() else mask)
        places[object_id] = _beside(row, column, tuple(places.values()), mask.shape)
    return places


def _beside(
    row: int, column: int, taken: Sequence[tuple[int, int]], size: tuple[int, ...]
) -> tuple[int, int]:
    """The place itself or one near it, within a picture (H, W), that no id lies on."""
    step = 2 * text_height(size)
    for far in range(0, (len(taken) + 1) * step, step):
        for y, x in (
            (row, column + far),
            (row, column - far),
            (row + far, column),
            (row - far, column),
        ):
            free = all(max(abs(y - v), abs(x - u)) >= step for v, u in taken)
            if free and 0 <= y < size[0] and 0 <= x < size[1]:
                return y, x
    return row, column


def contour(label_map: np.ndarray, *, width: int) -> np.ndarray:
    """(H, W) bool: object pixels at most ``width`` pixels away from another label."""
    edge = np.zeros(label_map.shape, bool)
    for shift in range(1, width + 1):
        vertical = label_map[shift:] != label_map[:-shift]
        horizontal = label_map[:, shift:] != label_map[:, :-shift]
        edge[shift:] |= vertical
        edge[:-shift] |= vertical
        edge[:, shift:] |= horizontal
        edge[:, :-shift] |= horizontal
    return edge & (label_map > 0)


def inner_pixel(mask: np.ndarray) -> tuple[int, int]:
    """Row and column of a pixel well inside a mask (H, W) that is not empty.

    The middle of the longest run of pixels in the middle one of its rows.
    """
    rows = mask.any(axis=1).nonzero()[0]
    row = int(np.repeat(rows, mask[rows].sum(axis=1))[mask.sum() // 2])
    steps = np.diff(np.concatenate(([0], mask[row].astype(np.int8), [0])))
    starts, ends = (steps == 1).nonzero()[0], (steps == -1).nonzero()[0]
    longest = int((ends - starts).argmax())
    return row, int(starts[longest] + ends[longest] - 1) // 2


@lru_cache(maxsize=1)
def overlay_colours() -> np.ndarray:
    """(256, 3) uint8 RGB: black, six clear hues, then always what differs most from all before.

    Distances are those of CIE L*a*b*, among colours that are neither dark nor white.
    """
    chosen = [np.array(colour, np.uint8) for colour in ((0, 0, 0), *FIRST)]
    steps = np.linspace(0, 255, 10).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(grid)
    seen = (lab[:, 0] >= DARKEST) & (lab[:, 0] <= BRIGHTEST)
    grid, lab = grid[seen], lab[seen]
    known = _lab(np.array(chosen[1:]))
    nearest = np.linalg.norm(lab[:, None] - known, axis=-1).min(axis=1)
    while len(chosen) <= MAX_OBJECT_ID:
        best = int(nearest.argmax())
        chosen.append(grid[best])
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[best], axis=-1))
    colours = np.array(chosen)
    colours.setflags(write=False)
    return colours


def _lab(colours: np.ndarray) -> np.ndarray:
    """sRGB (N, 3) uint8 as CIE L*a*b* (N, 3), D65."""
    rgb = colours / 255.0
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)


def rgb(object_id: int) -> tuple[int, int, int]:
    """The colour of an object."""
    red, green, blue = overlay_colours()[object_id].tolist()
    return red, green, blue


def _lightness(colour: np.ndarray) -> float:
    return float(_lab(colour[None])[0, 0])


def _contour_width(size: Sequence[int]) -> int:
    return max(1, round(min(size) / 320))


def text_height(size: tuple[int, ...]) -> int:
    """Pixels of what is written about a picture (H, W, ...)."""
    return max(11, round(min(size[:2]) / 28))


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of all that is written; ``size`` in pixels."""
    from PIL import ImageFont

    found = find_spec("matplotlib")
    folders = [] if found is None else found.submodule_search_locations or []
    for file in (Path(folder) / FONT for folder in folders):
        if file.is_file():
            return ImageFont.truetype(file, size)
    found_font = ImageFont.load_default(size)
    assert isinstance(found_font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return found_font
