"""Objects drawn over a picture: translucent, outlined, numbered, with a legend beside the picture.

Pillow is imported where it is used.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from unified.label_maps import MAX_OBJECT_ID
from unified.structures import Size

if TYPE_CHECKING:
    from PIL import ImageFont

OPACITY = 0.45
# The hues of the first DAVIS colours, as bright as the others: red to cyan.
FIRST = ((230, 0, 0), (0, 200, 0), (235, 220, 0), (70, 100, 255), (230, 0, 230), (0, 210, 220))
DARKEST, BRIGHTEST = 40.0, 88.0  # CIE lightness of colours that are seen on a picture
PAPER, INK, FAINT = (24, 24, 24), (255, 255, 255), (150, 150, 150)


def draw_overlay(image: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """The image with translucent objects and thin contours, (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8 RGB, left as it is.
        label_map: (H, W) uint8.
    """
    canvas, colours = image.copy(), overlay_colours()
    inside = label_map > 0
    fill = canvas[inside] * (1 - OPACITY) + colours[label_map[inside]] * OPACITY
    canvas[inside] = fill.astype(np.uint8)
    edge = contour(label_map, width=max(1, round(min(label_map.shape) / 320)))
    canvas[edge] = colours[label_map[edge]]
    return canvas


def draw_ids(canvas: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) with the id of every object on it, in the colour of the object."""
    from PIL import Image, ImageDraw

    ids = [int(object_id) for object_id in np.unique(label_map) if object_id]
    picture = Image.fromarray(canvas)
    draw, height = ImageDraw.Draw(picture), _text_height(label_map.shape)
    font, colours = _font(round(1.3 * height)), overlay_colours()
    bold = max(1, height // 10)
    for object_id in ids:
        row, column = inner_pixel(label_map == object_id)
        rim = "black" if _lightness(colours[object_id]) > 50 else "white"
        # A rim, and on it the digits made bold by a stroke of their own.
        for colour, width in ((rim, 2 * bold + 1), (_rgb(object_id), bold)):
            draw.text(
                (column, row),
                str(object_id),
                fill=colour,
                font=font,
                anchor="mm",
                stroke_width=width,
                stroke_fill=colour,
            )
    return np.asarray(picture)


def legend_width(lines: Iterable[str], size: Size) -> int:
    """Pixels that ``add_legend`` needs beside a picture (H, W) for these lines, 0 for none.

    Lines that are much wider than the picture are going to be shortened.
    """
    height = _text_height(size)
    widest = max((_font(height).getlength(line) for line in lines), default=None)
    if widest is None:
        return 0
    limit = max(0.6 * size[1], 16 * height)
    return 2 * ((round(min(widest, limit)) + _margin(height) + height // 2 + 1) // 2)


def add_legend(
    canvas: np.ndarray, lines: Mapping[int, str], visible: Iterable[int], width: int
) -> np.ndarray:
    """The picture (H, W, 3) with one line per object at its right: (H, W + width, 3).

    Args:
        lines: object id -> text, in their order.
        visible: ids with a pixel; the others are listed with an empty swatch.
        width: of the legend.
    """
    from PIL import Image, ImageDraw

    shown, height = set(visible), _text_height(canvas.shape)
    step, font = round(1.5 * height), _font(height)
    panel = Image.new("RGB", (width, canvas.shape[0]), PAPER)
    draw, rows, room = ImageDraw.Draw(panel), list(lines.items()), max(1, len(canvas) // step)
    if len(rows) > room:
        rows = [*rows[: room - 1], (0, f"and {len(rows) - room + 1} more")]
    for place, (object_id, text) in enumerate(rows):
        top = place * step + (step - height) // 2
        left = height // 2
        colour = _rgb(object_id)
        if object_id:
            box = (left, top, left + height - 1, top + height - 1)
            fill = colour if object_id in shown else None
            draw.rectangle(box, fill=fill, outline=colour, width=max(1, height // 10))
        text = _shorten(text, font, width - _margin(height))
        ink = INK if object_id in shown else FAINT
        draw.text((_margin(height), top + height / 2), text, fill=ink, font=font, anchor="lm")
    return np.concatenate([canvas, np.asarray(panel)], axis=1)


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


def _rgb(object_id: int) -> tuple[int, int, int]:
    red, green, blue = overlay_colours()[object_id].tolist()
    return red, green, blue


def _lightness(colour: np.ndarray) -> float:
    return float(_lab(colour[None])[0, 0])


def _text_height(size: tuple[int, ...]) -> int:
    return max(11, round(min(size[:2]) / 28))


def _margin(text_height: int) -> int:
    """Of the text in the legend: the swatch and the room around it."""
    return 2 * text_height + text_height // 4


def _shorten(text: str, font: ImageFont.FreeTypeFont, limit: int) -> str:
    if font.getlength(text) <= limit:
        return text
    fitting = bisect_right(
        range(len(text)), limit, key=lambda length: round(font.getlength(text[:length] + "…"))
    )
    return text[: max(0, fitting - 1)] + "…"


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
