"""Images in as users have them (any orientation, depth and colour mode), overlays out."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from unified.errors import ConfigError, InputError, first_line
from unified.files import atomic_path, entries, foreign_content, is_litter, natural_key

if TYPE_CHECKING:
    from PIL import Image

    from unified.structures import Size

logger = logging.getLogger(__name__)

MAX_PIXELS = 256_000_000  # a phone's 200 megapixels are read, in about 2 GB of memory
LIMIT = "UNIFIED_MAX_PIXELS"  # environment variable, so that worker processes have it too
_PILLOW = Lock()

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
JPEG_QUALITY = 92
MOVING = frozenset({"GIF", "PNG", "TIFF", "WEBP", "AVIF"})  # formats of Pillow
ORIENTATION, FIRST_TURNED = 0x0112, 5  # EXIF: from this value on, rows and columns change places


def find_images(sources: Sequence[str]) -> list[Path]:
    """The images that files, folders and glob patterns name, in natural order (2 before 10).

    Raises:
        InputError: one does not exist, or a folder or pattern holds no image.
    """
    found = {path for source in sources for path in _images_of(source)}
    return sorted(found, key=natural_key)


def _images_of(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [entry for entry in entries(path) if is_image(entry)]
    elif glob.has_magic(source):
        found = [Path(name) for name in glob.glob(source) if is_image(Path(name))]
    else:
        raise InputError(f"input {source} does not exist: give an image, a folder or a pattern")
    if not found:
        if folders := sorted({str(image.parent) for image in path.glob("*/*") if is_image(image)}):
            raise InputError(
                f"input {source} holds no image itself, but its folders do: give one of them, such "
                f"as {folders[0]}"
            )
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"input {source} holds no image, expected files that end in {suffixes}")
    return found


def is_image(path: Path) -> bool:
    """Whether a path is a visible file with the suffix of an image."""
    named = not is_litter(path) and path.suffix.lower() in IMAGE_SUFFIXES
    return named and path.is_file()


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
            _check_pixels(path, image)
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{kind} {path} does not exist: check the path") from None
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


def _check_pixels(path: str | os.PathLike[str], image: Image.Image) -> None:
    width, height = image.size
    if width * height > max_pixels():
        raise InputError(
            f"image {path} is {width}x{height}, {width * height} pixels, and the limit is "
            f"{max_pixels()}: scale it down, or raise the limit with --max-pixels (or the "
            f"environment variable {LIMIT}) if memory allows"
        )


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, upright by its EXIF tag.

    Grey images become three equal channels, 16-bit ones keep their upper 8 bits, transparent ones
    are laid on white. Of several frames or pages the first is read, and said so once.

    Raises:
        InputError: the file is missing, damaged or of a kind that has no 8-bit equivalent.
    """
    with open_image(path) as image:
        return _pixels(path, first_frame(path, image))


def first_frame(path: str | os.PathLike[str], image: Image.Image) -> Image.Image:
    """The first frame or page of an open image, upright by its EXIF tag; says so if it has more."""
    from PIL import ImageOps

    if (number := num_frames(image)) > 1:
        _say_first(os.fspath(path), number)
    return ImageOps.exif_transpose(image)


def read_frames(path: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    """Every frame of an animated or many-paged image, as ``read_image`` gives one.

    Raises:
        InputError: as ``read_image``, when the damaged frame is reached.
    """
    from PIL import ImageOps

    with open_image(path) as image:
        first = 1 if image.info.get("default_image") else 0  # shown where nothing moves
        for index in range(first, first + num_frames(image)):
            image.seek(index)
            _check_pixels(path, image)
            yield _pixels(path, ImageOps.exif_transpose(image))


def num_frames(image: Image.Image) -> int:
    """Frames of an animation, pages of a TIFF; 1 for the views that phones put into one JPEG."""
    if image.format not in MOVING:
        return 1
    return int(getattr(image, "n_frames", 1)) - bool(image.info.get("default_image"))


@cache
def _say_first(path: str, number: int) -> None:
    logger.warning("%s has %d frames: the first is read (as the clip it has all)", path, number)


def _pixels(path: str | os.PathLike[str], upright: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image."""
    from PIL import Image

    if upright.mode == "F":
        raise InputError(f"image {path} holds floating-point pixels: save it with 8 bits")
    if upright.mode.startswith("I"):
        # 16-bit grey, which Pillow hands out as int32 or uint16.
        grey = (np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in upright.mode or "transparency" in upright.info:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return np.array(upright.convert("RGB"))


def image_size(path: str | os.PathLike[str]) -> Size:
    """(h, w) of what ``read_image`` gives, from the header of the file alone.

    Raises:
        InputError: the file is missing or no image.
    """
    with open_image(path) as image:
        width, height = image.size
        # Pillow gives the size of a TIFF as it is displayed, of other files as it is stored.
        turned = image.format != "TIFF" and _is_turned(image)
    return (width, height) if turned else (height, width)


def _is_turned(image: Image.Image) -> bool:
    return bool(image.getexif().get(ORIENTATION, 1) >= FIRST_TURNED)


def check_size(path: str | os.PathLike[str], size: Size, expected: Size, source: str) -> None:
    """Raises InputError unless an image has the (h, w) that ``source`` tells."""
    if size == expected:
        return
    message = (
        f"{path} is {size[0]} x {size[1]} pixels (h x w): expected {expected[0]} x {expected[1]}, "
        f"{source}"
    )
    with open_image(path) as image:
        turned = _is_turned(image)
    if size == expected[::-1] and turned:
        message += (
            ". The file is displayed turned, by its EXIF orientation: annotate it as it is "
            "displayed, or save it turned and without that tag"
        )
    raise InputError(message)


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB in the format of the suffix, at once or not at all."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, quality=JPEG_QUALITY)
