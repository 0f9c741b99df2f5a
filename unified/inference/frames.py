"""Frames, masks, example images and sentences as what a ``Segmenter`` reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

from unified.errors import ConfigError, InputError
from unified.label_maps import check_margin, object_window
from unified.segmenter import Segmenter
from unified.structures import (
    FeaturePyramid,
    ImageBatch,
    Prompt,
    Reference,
    References,
    Size,
    Support,
    join_levels,
    resized_size,
)

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class EncodedFrame:
    """One frame (B = 1) after the costly step."""

    images: ImageBatch
    features: FeaturePyramid


class FrameEncoder:
    """Resizes, normalises and encodes frames, masks and sentences for a model.

    Args:
        model: in eval mode.
        short_side: the shorter image side is resized to this many pixels.
        max_size: the longer side is never larger than this.
        precision: "float32", or "bfloat16"/"float16" autocast.
        support_margin: example images are cropped around their object, see ``object_window``.

    Raises:
        ConfigError: the precision is none of these, or the margin is negative or no number.
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        short_side: int,
        max_size: int,
        precision: str = "float32",
        support_margin: float = math.inf,
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(f"precision {precision!r} is unknown: choose one of {PRECISIONS}")
        check_margin(support_margin)
        self.model = model
        self.short_side, self.max_size = short_side, max_size
        self.precision, self.support_margin = precision, support_margin
        # The same prompts on the next image or after a reset cost nothing.
        self.text = lru_cache(maxsize=64)(self._text)
        self.support = lru_cache(maxsize=16)(self._support)

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which the model runs."""
        if self.precision == "float32":
            return nullcontext()
        device = next(iter(self.model.parameters())).device
        return torch.autocast(device.type, dtype=getattr(torch, self.precision))

    def image(self, image: np.ndarray) -> EncodedFrame:
        """(H, W, 3) uint8 RGB -> features at the model's input size.

        Raises:
            InputError: another shape or dtype.
        """
        check_image(image)
        resized = resize_image(image, resized_size(image.shape[:2], self.short_side, self.max_size))
        pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        with torch.inference_mode(), self.autocast():
            images = self.model.preprocess([pixels])
            return EncodedFrame(images, self.model.encode_image(images))

    def _text(self, text: str) -> References:
        """References of one sentence.

        Raises:
            InputError: the model does not understand text, or nothing is left of the sentence.
        """
        self._require("text")
        with torch.inference_mode(), self.autocast():
            return self.model.encode_text([text])

    def masks(self, frame: EncodedFrame, masks: Sequence[np.ndarray]) -> list[References]:
        """References of O masks (H, W) bool on one frame, at any resolution, each of batch 1."""
        self._require("mask")
        size, (height, width) = frame.images.image_sizes[0], frame.images.padded_size
        resized = torch.zeros(len(masks), height, width, dtype=torch.bool)
        for index, mask in enumerate(masks):
            source = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
            resized[index, : size[0], : size[1]] = F.interpolate(source, size=size)[0, 0] > 0.5
        num = len(masks)
        images = ImageBatch(
            tensor=frame.images.tensor.expand(num, -1, -1, -1),
            image_sizes=frame.images.image_sizes * num,
            padding_mask=frame.images.padding_mask.expand(num, -1, -1),
        )
        with torch.inference_mode(), self.autocast():
            levels = self.model.encode_mask(
                images, frame.features.expand(num), resized.to(images.tensor.device)
            )
        return [tuple(_row(level, index) for level in levels) for index in range(num)]

    def _support(self, support: Support) -> References:
        """References of one example image with its mask."""
        check_image(support.image)
        check_mask(support.mask, support.image.shape[:2])
        window = object_window(support.mask, self.support_margin)
        return self.masks(self.image(support.image[window]), [support.mask[window]])[0]

    def visual(self, frame: EncodedFrame, prompt: Prompt) -> References | None:
        """Supports and the mask of a prompt on this frame as one reference, or None."""
        references = [self.support(support) for support in prompt.supports]
        if prompt.mask is not None:
            references.extend(self.masks(frame, [np.asarray(prompt.mask, bool)]))
        return join_levels(references) if references else None

    def _require(self, kind: str) -> None:
        if kind not in self.model.reference_kinds:
            known = " and ".join(sorted(self.model.reference_kinds)) or "no"
            raise InputError(f"this model follows {known} references, not {kind}: load another")


def _row(reference: Reference, index: int) -> Reference:
    """One object of a batch, without keeping the values of the others in memory."""
    row = reference[index : index + 1]
    return replace(row, values=row.values.clone()) if len(reference.keys) > 1 else row


def check_image(image: np.ndarray) -> None:
    """Raises InputError unless the image is RGB (H, W, 3) uint8 with a pixel in it."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(
            f"expected an RGB image (H, W, 3) of uint8, got {image.shape} of {image.dtype}: "
            "convert grey or RGBA images first"
        )


def check_prompt(prompt: Prompt, size: Size | None = None) -> None:
    """Raises InputError unless the prompt says something and its mask fits a frame of ``size``."""
    if prompt.text is None and prompt.mask is None and not prompt.supports:
        raise InputError("the prompt is empty: give a text, a mask or example images with masks")
    if prompt.mask is not None and size is not None:
        check_mask(prompt.mask, size)


def check_mask(mask: np.ndarray, size: Sequence[int]) -> None:
    """Raises InputError unless the mask is a non-empty (H, W) map of the given size."""
    if mask.shape != tuple(size):
        raise InputError(
            f"expected a mask of the image's size {tuple(size)}, got {mask.shape}: resize it with "
            "nearest-neighbour interpolation"
        )
    if not mask.any():
        raise InputError("the mask is empty: mark at least one pixel of the object")


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) uint8 to ``size`` with the antialiased bilinear filter of the training data."""
    if image.shape[:2] == size:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
