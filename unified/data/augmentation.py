"""Random resizing, cropping, flipping and colour of a picture with its objects.

Every choice comes from the random generator passed in, so that a sample depends on its seed alone
and not on which worker makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from unified.structures import resized_size

CROP_ATTEMPTS = 10
KEPT_SHARE = 0.5  # of the pixels of the object that a crop must not lose


@dataclass(frozen=True)
class View:
    """A picture and its M objects, all in the same pixel grid.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: (M, H, W) bool; the filled boxes where only boxes are known.
        boxes: (M, 4) float32 xyxy in pixels, or None to take them from the masks.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class Draw:
    """The choices that all frames of a clip share.

    Attributes:
        short_side: pixels.
        flip: mirror left and right.
        gains: factors of brightness, contrast and saturation.
    """

    short_side: int
    flip: bool
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training picture.

    Attributes:
        short_sides: pixels of the shorter side, one is drawn.
        per_batch: one for all samples of a batch. Pictures are padded to the largest of a batch,
            so with sides of their own most of them are mostly padding.
        max_size: upper bound of the longer side.
        flip: probability of mirroring.
        crop: probability of a random crop before the resize.
        crop_range: smallest and largest side of the crop, in pixels.
        pre_crop_sides: shorter sides of which one is drawn and applied before the crop; may be
            empty.
        colour: largest relative change of brightness, contrast and saturation.

    Source: UniRef's image and video stages, whose sides and probabilities are in the configs.
    Difference: there a crop may lose the object, and colour is left alone.
    """

    short_sides: tuple[int, ...]
    max_size: int
    flip: float = 0.5
    crop: float = 0.5
    crop_range: tuple[int, int] = (384, 600)
    pre_crop_sides: tuple[int, ...] = ()
    colour: float = 0.0
    per_batch: bool = False

    def for_batch(self, batch_rng: np.random.Generator) -> Augmentation:
        """What the samples of one batch get; ``batch_rng`` is in the same state for all of them."""
        if not self.per_batch:
            return self
        return replace(self, short_sides=(int(batch_rng.choice(self.short_sides)),))

    def draw(self, rng: np.random.Generator) -> Draw:
        """What a picture, or all frames of a clip, get in common."""
        gains = 1 + rng.uniform(-self.colour, self.colour, size=3)
        return Draw(
            short_side=int(rng.choice(self.short_sides)),
            flip=bool(rng.random() < self.flip),
            gains=(float(gains[0]), float(gains[1]), float(gains[2])),
        )

    def apply(
        self,
        view: View,
        draw: Draw,
        rng: np.random.Generator,
        *,
        keep: np.ndarray | None = None,
        may_crop: bool = True,
    ) -> View:
        """The augmented view; the crop is drawn per call, everything else is in ``draw``.

        Args:
            keep: (K, H, W) bool objects of each of which a crop keeps at least half of the pixels;
                None or K = 0 for none.
            may_crop: False where a crop would make a sentence false.
        """
        if rng.random() < self.crop and may_crop:
            if self.pre_crop_sides:
                side = int(rng.choice(self.pre_crop_sides))
                size = resized_size(view.size, side, max_size=None)
                view = resize(view, size)
                keep = None if keep is None else _resize_masks(keep, size)
            view = random_crop(view, self.crop_range, keep, rng)
        view = resize(view, resized_size(view.size, draw.short_side, self.max_size))
        if draw.flip:
            view = mirror(view)
        return replace(view, image=_recolour(view.image, draw.gains))


def resize(view: View, size: tuple[int, int]) -> View:
    """The view at (h, w): bilinear image, nearest masks; no mask becomes empty."""
    if size == view.size:
        return view
    height, width = size
    image = Image.fromarray(view.image).resize((width, height), Image.Resampling.BILINEAR)
    boxes = view.boxes
    if boxes is not None:
        factors = np.array([width / view.size[1], height / view.size[0]], dtype=np.float32)
        boxes = boxes * np.tile(factors, 2)
    return View(np.array(image), _resize_masks(view.masks, size), boxes)


def _resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = np.zeros((len(masks), *size), dtype=bool)
    for index, mask in enumerate(masks):
        resized[index] = _resize_mask(mask, size)
    return resized


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool by nearest neighbour; of an object too small for the grid one pixel remains."""
    shrunk = Image.fromarray(mask.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
    result = np.array(shrunk, dtype=bool)
    if not result.any() and mask.any():
        rows, columns = np.nonzero(mask)
        middle = len(rows) // 2
        row = rows[middle] * size[0] // mask.shape[0]
        result[row, columns[middle] * size[1] // mask.shape[1]] = True
    return result


def random_crop(
    view: View,
    crop_range: Sequence[int],
    keep: np.ndarray | None,
    rng: np.random.Generator,
) -> View:
    """A window of the view, or the view itself when no window tried keeps half of each object.

    Args:
        keep: (K, H, W) bool objects.
    """
    height, width = view.size
    objects = () if keep is None else keep
    for _ in range(CROP_ATTEMPTS):
        h, w = (_crop_side(side, crop_range, rng) for side in (height, width))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        window = (slice(top, top + h), slice(left, left + w))
        if all(mask[window].sum() >= max(KEPT_SHARE * mask.sum(), 1) for mask in objects):
            return crop(view, top, left, h, w)
    return view


def _crop_side(side: int, crop_range: Sequence[int], rng: np.random.Generator) -> int:
    low, high = (min(value, side) for value in crop_range)
    return int(rng.integers(low, high + 1))


def crop(view: View, top: int, left: int, height: int, width: int) -> View:
    """The window; masks of objects outside become empty, their boxes get no area."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    boxes = view.boxes
    if boxes is not None:
        shifted = boxes - np.array([left, top, left, top], dtype=np.float32)
        boxes = shifted.clip(0, np.array([width, height, width, height], dtype=np.float32))
    return View(view.image[rows, columns], view.masks[:, rows, columns], boxes)


def mirror(view: View) -> View:
    """Left and right swapped."""
    boxes = view.boxes
    if boxes is not None:
        width = view.size[1]
        boxes = np.stack(
            [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1
        )
    image, masks = view.image[:, ::-1], view.masks[:, :, ::-1]
    return View(np.ascontiguousarray(image), np.ascontiguousarray(masks), boxes)


def _recolour(image: np.ndarray, gains: tuple[float, float, float]) -> np.ndarray:
    """(H, W, 3) uint8 with brightness, contrast and saturation times their gains; hues stay."""
    if gains == (1.0, 1.0, 1.0):
        return image
    brightness, contrast, saturation = gains
    pixels = image.astype(np.float32) * brightness
    mean = pixels.mean()
    pixels = mean + (pixels - mean) * contrast
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    pixels = grey[..., None] + (pixels - grey[..., None]) * saturation
    return pixels.clip(0, 255).astype(np.uint8)
