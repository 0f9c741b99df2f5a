"""Label maps: made of masks, to and from PNG files, drawn over a picture.

A label map is (H, W) uint8: pixel = object id, 0 = background. Nothing here needs torch, and Pillow
is imported where it is used, so that models can be run without it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from unified.errors import ConfigError
from unified.files import atomic_path

if TYPE_CHECKING:
    from PIL import Image, ImageFont

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


def draw_overlay(
    image: np.ndarray,
    label_map: np.ndarray,
    captions: Mapping[int, str] | None = None,
    *,
    opacity: float = 0.45,
) -> np.ndarray:
    """The image with translucent objects, thin contours and a legend, (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8 RGB, left as it is.
        label_map: (H, W) uint8.
        captions: object id -> line of text, in the order of the legend. Ids without a pixel are
            listed with an empty swatch.
        opacity: of the fill, in [0, 1].
    """
    canvas = image.copy()
    colours = _overlay_colours()
    inside = label_map > 0
    fill = canvas[inside] * (1 - opacity) + colours[label_map[inside]] * opacity
    canvas[inside] = fill.astype(np.uint8)
    edge = contour(label_map, width=max(1, round(min(label_map.shape) / 320)))
    canvas[edge] = colours[label_map[edge]]
    if captions:
        visible = set(np.unique(label_map).tolist())
        canvas = _draw_legend(canvas, captions, visible)
    return canvas


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


@lru_cache(maxsize=1)
def _overlay_colours() -> np.ndarray:
    """The DAVIS colours at full brightness: their hues stay, dark ids become visible."""
    colours = davis_palette().astype(np.float32)
    peak = colours.max(axis=1, keepdims=True).clip(min=1)
    return colours * np.where(peak < 255, 230 / peak, 1.0)


def _draw_legend(canvas: np.ndarray, captions: Mapping[int, str], visible: set[int]) -> np.ndarray:
    """A dark translucent panel at the top left: one line with a colour swatch per object."""
    from PIL import Image, ImageDraw

    height, width = canvas.shape[:2]
    text_height = max(11, round(min(height, width) / 28))
    font = _font(text_height)
    line, pad, rim = round(text_height * 1.45), round(text_height * 0.5), max(1, text_height // 12)
    rows = list(captions.items())
    room = round(height * 0.6) // line
    if room < 1:
        return canvas
    if len(rows) > room:
        rows = [*rows[: room - 1], (0, f"and {len(rows) - room + 1} more")]
    limit = round(width * 0.7) - text_height - 3 * pad
    texts = [_shorten(text, font, limit) for _, text in rows]
    panel = (
        min(width, round(max(font.getlength(text) for text in texts)) + text_height + 3 * pad),
        min(height, len(rows) * line + pad),
    )
    canvas[: panel[1], : panel[0]] = canvas[: panel[1], : panel[0]] * 0.35
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for row, ((object_id, _), text) in enumerate(zip(rows, texts, strict=True)):
        top = pad // 2 + row * line + (line - text_height) // 2
        swatch = (pad, top, pad + text_height - 1, top + text_height - 1)
        colour = tuple(int(value) for value in _overlay_colours()[object_id])
        if object_id:
            draw.rectangle(
                swatch, fill=colour if object_id in visible else None, outline=colour, width=rim
            )
        ink = (255, 255, 255) if object_id in visible else (170, 170, 170)
        middle = (2 * pad + text_height, top + text_height / 2)
        draw.text(middle, text, fill=ink, font=font, anchor="lm")
    return np.asarray(picture)


def _shorten(text: str, font: ImageFont.FreeTypeFont, limit: int) -> str:
    if font.getlength(text) <= limit:
        return text
    fitting = bisect_right(
        range(len(text)), limit, key=lambda length: round(font.getlength(text[:length] + "…"))
    )
    return text[: max(0, fitting - 1)] + "…"


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
