"""Image files, opened: what Pillow reads, up to a number of pixels, frame by frame and upright."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

from unified.errors import ConfigError, InputError, UnifiedError, first_line
from unified.files import foreign_content

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

MAX_PIXELS = 256_000_000  # a phone's 200 megapixels are read
LIMIT = "UNIFIED_MAX_PIXELS"  # environment variable, so that worker processes have it too
_PILLOW = Lock()
MOVING = frozenset({"GIF", "PNG", "TIFF", "WEBP", "AVIF"})  # formats of Pillow
# EXIF: the tag, its value for "as it is", and from which one on rows and columns change places.
ORIENTATION, UPRIGHT, FIRST_TURNED = 0x0112, 1, 5


@contextmanager
def open_image(path: str | os.PathLike[str], kind: str = "image") -> Iterator[Image.Image]:
    """An image file whose header was read; its pixels are read on first use.

    Args:
        kind: what to call it in errors.

    Raises:
        InputError: the file is missing, damaged, no image or has more than ``max_pixels`` pixels.
    """
    from PIL import UnidentifiedImageError

    try:
        with _without_limit(path) as image:
            check_pixels(path, image)
            yield image
    except UnifiedError:  # also what the caller says of the pixels
        raise
    except FileNotFoundError:
        raise InputError(f"{kind} {path} does not exist: check the path") from None
    except IsADirectoryError:
        raise InputError(f"{kind} {path} is a folder, expected a file") from None
    except UnidentifiedImageError as error:
        raise InputError(
            foreign_content(path, "an image")
            or f"{kind} {path} cannot be read as an image: it is damaged or of an unknown kind. "
            "Save it as JPEG or PNG"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{kind} {path} cannot be read: {first_line(error)}") from error


def _without_limit(path: str | os.PathLike[str]) -> Image.Image:
    """Opens a file without Pillow's own limit of pixels, which warns long before it refuses."""
    from PIL import Image

    with _PILLOW:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def max_pixels() -> int:
    """Images with more pixels are refused; the tools set it by ``--max-pixels``.

    Raises:
        ConfigError: the environment variable UNIFIED_MAX_PIXELS is no number.
    """
    written = os.environ.get(LIMIT, str(MAX_PIXELS))
    if not written.isdecimal():
        raise ConfigError(f"{LIMIT} is {written!r}: expected a number of pixels")
    return int(written)


def check_pixels(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Raises InputError if the frame that an image is at has more than ``max_pixels`` pixels."""
    width, height = image.size
    if width * height > max_pixels():
        raise InputError(
            f"image {path} is {width}x{height}, {width * height} pixels, and the limit is "
            f"{max_pixels()}: scale it down, or raise the limit with --max-pixels (or the "
            f"environment variable {LIMIT}) if memory allows"
        )


def first_frame(path: str | os.PathLike[str], image: Image.Image) -> Image.Image:
    """The first frame or page of an open image, upright by its EXIF tag; says so if it has more."""
    if (number := num_frames(image)) > 1:
        _say_first(os.fspath(path), number)
    return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """An open image as its EXIF tag wants it to be displayed; itself where that is as it is."""
    from PIL import ImageOps

    turned = image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT
    return ImageOps.exif_transpose(image) if turned else image


def num_frames(image: Image.Image) -> int:
    """Frames of an animation, pages of a TIFF; 1 for the views that phones put into one JPEG."""
    if image.format not in MOVING:
        return 1
    return int(getattr(image, "n_frames", 1)) - bool(image.info.get("default_image"))


@cache
def _say_first(path: str, number: int) -> None:
    logger.warning("%s has %d frames: the first is read (as the clip it has all)", path, number)


def is_turned(image: Image.Image) -> bool:
    """Whether rows and columns change places when an image is shown, by its EXIF tag."""
    return bool(image.getexif().get(ORIENTATION, UPRIGHT) >= FIRST_TURNED)
