"""A legend beside a picture, which names every object. Pillow is imported where it is used."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from unified.inference.overlay import font, rgb, text_height
from unified.structures import Size

if TYPE_CHECKING:
    from PIL import ImageFont

PAPER, INK, FAINT = (24, 24, 24), (255, 255, 255), (150, 150, 150)
WIDEST, NARROWEST = (0.25, 0.35, 0.5), 8  # shares of the picture's width, or text heights if more
READABLE = 352  # width of a picture of which a quarter is enough for the smallest text
HIGHEST = 1080  # that a picture is enlarged to
NOT_DRAWN = "(name in results.json)"


def enlargement(size: Size) -> int:
    """The factor by which a picture (H, W) is shown larger, so that its legend can be read."""
    return max(1, min(-(-READABLE // size[1]), HIGHEST // size[0]))


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    """(H, W, ...) with every pixel ``factor`` times as high and wide."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else picture


def legend_width(lines: Iterable[str], size: Size) -> int:
    """Pixels that ``add_legend`` needs beside a picture (H, W), enlarged, for these lines.

    0 for none. A quarter of the picture's, or what can be read if more; up to half of it where all
    lines, broken between words, fit that and not a quarter.
    """
    factor = enlargement(size)
    size = (size[0] * factor, size[1] * factor)
    height, lines = text_height(size), list(lines)
    letters, room = font(height), size[0] // _step(height)
    if not lines:
        return 0
    widest = max(letters.getlength(line) for line in lines)
    limits = [max(share * size[1], NARROWEST * height) - _margin(height) for share in WIDEST]
    limit = next((limit for limit in limits if _fit(lines, letters, limit, room)), limits[0])
    return 2 * ((round(min(widest, limit)) + _margin(height) + height // 2 + 1) // 2)


def add_legend(
    canvas: np.ndarray, lines: Mapping[int, str], visible: Iterable[int], width: int
) -> np.ndarray:
    """The picture (H, W, 3) with every object named at its right: (H, W + width, 3).

    Args:
        lines: object id -> text, in their order.
        visible: ids with a pixel; the others are listed with an empty swatch.
        width: of the legend.
    """
    from PIL import Image, ImageDraw

    shown, height = set(visible), text_height(canvas.shape)
    step, letters = _step(height), font(height)
    panel = Image.new("RGB", (width, canvas.shape[0]), PAPER)
    draw = ImageDraw.Draw(panel)
    rows = _rows(lines, letters, width - _margin(height), max(1, len(canvas) // step))
    previous = None
    for place, (object_id, text) in enumerate(rows):
        top = place * step + (step - height) // 2
        left = height // 2
        if object_id and object_id != previous:
            box = (left, top, left + height - 1, top + height - 1)
            colour = rgb(object_id)
            fill = colour if object_id in shown else None
            draw.rectangle(box, fill=fill, outline=colour, width=max(1, height // 10))
        ink = INK if object_id in shown else FAINT
        draw.text((_margin(height), top + height / 2), text, fill=ink, font=letters, anchor="lm")
        previous = object_id
    return np.concatenate([canvas, np.asarray(panel)], axis=1)


def drawable(text: str) -> bool:
    """Whether the font of the legend has all characters: it has no Chinese or Japanese ones."""
    return all(character.isspace() or _has_glyph(character) for character in text)


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    missing, found = (bytes(font(20).getmask(each)) for each in ("\ufffe", character))
    return found != missing


def _rows(
    lines: Mapping[int, str], letters: ImageFont.FreeTypeFont, limit: int, room: int
) -> list[tuple[int, str]]:
    """Object ids and texts that fit ``limit`` pixels, in at most ``room`` rows; 0 names no object.

    Long lines are broken while there is room for it.
    """
    for most in range(max(1, room - len(lines) + 1), 0, -1):  # every line has a row at least
        rows = [
            (i, _shorten(row, letters, limit))
            for i, text in lines.items()
            for row in _broken(text, letters, limit, most)
        ]
        if len(rows) <= room:
            return rows
    more = f"and {len(rows) - room + 1} more"
    return [*rows[: room - 1], (0, _shorten(more, letters, limit))]


def _fit(lines: Iterable[str], letters: ImageFont.FreeTypeFont, limit: float, room: int) -> bool:
    """Whether the lines need at most ``room`` rows of at most ``limit`` pixels, none shortened."""
    rows = [row for line in lines for row in _broken(line, letters, round(limit), room)]
    return len(rows) <= room and all(letters.getlength(row) <= limit for row in rows)


def _broken(text: str, letters: ImageFont.FreeTypeFont, limit: int, most: int) -> list[str]:
    """At most ``most`` rows, broken between words; of ``limit`` pixels where that is possible."""
    rows = [""]
    for word in text.split(" "):
        longer = f"{rows[-1]} {word}" if rows[-1] else word
        if not rows[-1] or len(rows) == most or letters.getlength(longer) <= limit:
            rows[-1] = longer
        else:
            rows.append(word)
    return rows


def _step(height: int) -> int:
    """From one row of text of that height to the next."""
    return round(1.5 * height)


def _margin(height: int) -> int:
    """Of text of that height in the legend: the swatch and the room around it."""
    return 2 * height + height // 4


def _shorten(text: str, letters: ImageFont.FreeTypeFont, limit: int) -> str:
    if letters.getlength(text) <= limit:
        return text
    fitting = bisect_right(
        range(len(text)), limit, key=lambda length: round(letters.getlength(text[:length] + "…"))
    )
    return text[: max(0, fitting - 1)] + "…"
