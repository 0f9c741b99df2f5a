"""Images in as users have them (any orientation, depth and colour mode), overlays out."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unified.errors import InputError
from unified.files import atomic_path, entries, is_litter, natural_key
from unified.image_files import (
    check_pixels,
    first_frame,
    is_turned,
    num_frames,
    open_image,
    upright,
)

if TYPE_CHECKING:
    from PIL import Image

    from unified.structures import Size


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
JPEG_QUALITY = 92
DARK = 1 << 12  # of 16 bits: pictures without a higher value are taken for such of fewer bits

logger = logging.getLogger(__name__)


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


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, upright by its EXIF tag.

    Grey images become three equal channels, 16-bit ones keep their upper 8 bits, transparent ones
    are laid on white. Of several frames or pages the first is read, and said so once.

    Raises:
        InputError: the file is missing, damaged or of a kind that has no 8-bit equivalent.
    """
    with open_image(path) as image:
        return _pixels(path, first_frame(path, image))


def read_frames(path: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    """Every frame of an animated or many-paged image, as ``read_image`` gives one.

    Raises:
        InputError: as ``read_image``, when the damaged frame is reached.
    """
    with open_image(path) as image:
        first = _first_frame(image)
        for index in range(first, first + num_frames(image)):
            image.seek(index)
            check_pixels(path, image)
            yield _pixels(path, upright(image))


def count_frames(path: str | os.PathLike[str]) -> tuple[int, float | None]:
    """How many frames ``read_frames`` gives, and how many of them a second, if the file says so."""
    with open_image(path) as image:
        number = num_frames(image)
        if number > 1:
            image.seek(_first_frame(image))
            image.load()  # some formats say the duration only then
        duration = image.info.get("duration")  # ms
    return number, 1000 / duration if duration else None


def _first_frame(image: Image.Image) -> int:
    """Of an animation; frame 0 may be one that is shown only where nothing moves."""
    return 1 if image.info.get("default_image") else 0


def _pixels(path: str | os.PathLike[str], image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an upright image."""
    from PIL import Image

    if image.mode == "F":
        raise InputError(f"image {path} holds floating-point pixels: save it with 8 bits")
    if image.mode.startswith("I"):
        grey = _upper_bits(path, np.asarray(image), wide=image.mode == "I")
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in image.mode or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _upper_bits(path: str | os.PathLike[str], values: np.ndarray, *, wide: bool) -> np.ndarray:
    """(H, W) of 16 bits as uint8; of 32 bits, ``wide``, if they hold 16, or 8 as they are."""
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= 1 << 16:
        raise InputError(
            f"image {path} holds values from {least} to {most}: save it with 8 or 16 bits"
        )
    if wide and most < 1 << 8:
        return values.astype(np.uint8)
    if 0 < most < DARK:
        _say_dark(Path(path).parent)
    return (values >> 8).astype(np.uint8)


@cache
def _say_dark(folder: Path) -> None:
    logger.warning(
        "%s has pictures of 16 bits that use the lower 12 or fewer, so they are read as almost "
        "black: scale their values up",
        folder,
    )


def image_size(path: str | os.PathLike[str]) -> Size:
    """(h, w) of what ``read_image`` gives, from the header of the file alone.

    Raises:
        InputError: the file is missing or no image.
    """
    with open_image(path) as image:
        width, height = image.size
        # Pillow gives the size of a TIFF as it is displayed, of other files as it is stored.
        turned = image.format != "TIFF" and is_turned(image)
    return (width, height) if turned else (height, width)


def check_size(path: str | os.PathLike[str], size: Size, expected: Size, source: str) -> None:
    """Raises InputError unless an image has the (h, w) that ``source`` tells."""
    if size == expected:
        return
    message = (
        f"{path} is {size[0]} x {size[1]} pixels (h x w): expected {expected[0]} x {expected[1]}, "
        f"{source}"
    )
    with open_image(path) as image:
        turned = is_turned(image)
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
