"""Images in as users have them (any orientation, depth and colour mode), overlays out."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unified.errors import InputError
from unified.files import atomic_path, entries, is_litter, natural_key

if TYPE_CHECKING:
    from unified.structures import Size

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
JPEG_QUALITY = 92
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


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, upright by its EXIF tag.

    Grey images become three equal channels, 16-bit ones keep their upper 8 bits, transparent ones
    are laid on white.

    Raises:
        InputError: the file is missing, damaged or of a kind that has no 8-bit equivalent.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
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
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"image {path} does not exist: check the path") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image {path} cannot be read: {error}") from error


def image_size(path: str | os.PathLike[str]) -> Size:
    """(h, w) of what ``read_image`` gives, from the header of the file alone.

    Raises:
        InputError: the file is missing or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) >= FIRST_TURNED
    except FileNotFoundError:
        raise InputError(f"image {path} does not exist: check the path") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image {path} cannot be read: {error}") from error
    return (width, height) if turned else (height, width)


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB in the format of the suffix, at once or not at all."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, quality=JPEG_QUALITY)
