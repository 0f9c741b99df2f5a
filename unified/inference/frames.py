"""Frames, masks, example images and sentences as what a ``Segmenter`` reads."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any, cast

import numpy as np
import torch

from unified.errors import InputError
from unified.inference.checks import check_image, check_mask
from unified.inference.prepared import Preparation, is_compiled
from unified.inference.room import check_room
from unified.inference.settings import ModelInput
from unified.label_maps import mask_box, object_window
from unified.segmenter import PointSegmenter, Segmenter, encode_masks, encode_supports
from unified.structures import (
    Box,
    FeaturePyramid,
    ImageBatch,
    Prompt,
    Reference,
    References,
    Size,
    Support,
    fitted_size,
    join_levels,
    resized_size,
)

logger = logging.getLogger(__name__)

FEW_PIXELS = 16  # of an object at the size the model sees; fewer say little about it
MANY_TOKENS = 5000  # of the finest level: from here on threads that share an operation hardly wait


@dataclass(frozen=True)
class EncodedFrame:
    """One frame (B = 1) after the costly step; ``image`` is what it was, (H, W, 3) uint8 RGB.

    Attributes:
        asked: keys of questions that were asked about it before its turn -> the question, which
            the key needs alive, and its answers.
    """

    images: ImageBatch
    features: FeaturePyramid
    image: np.ndarray
    asked: Mapping[Hashable, tuple[object, Future[Any]]] = field(default_factory=dict)

    @property
    def size(self) -> Size:
        """(H, W) of the image."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class FrameAhead:
    """A frame (H, W, 3) that is worked at before its turn.

    Attributes:
        encoded: None where it has to be checked first.
        state: of who encodes it.
        asked: as for ``EncodedFrame``.
    """

    image: np.ndarray
    encoded: Future[EncodedFrame | None]
    state: object
    asked: Mapping[Hashable, tuple[object, Future[Any]]]


class FrameEncoder:
    """Resizes, normalises and encodes frames, masks and sentences for a model.

    Args:
        model: in eval mode; it may be moved or get other weights between images.
        settings: its input.

    Raises:
        InputError: the model cannot be asked so.
    """

    def __init__(self, model: Segmenter, settings: ModelInput) -> None:
        if hasattr(model, "check_settings"):  # of an exported model
            model.check_settings(settings)
        warn_of_half_precision(settings.precision)
        self._preparation = Preparation(model, settings.precision, compile=settings.compile)
        self.model: Segmenter = self._preparation.ready
        self.settings = settings
        self.fits: Size | None = None  # frames of this size and kind need no check
        self.state = object()  # another one whenever the weights changed
        self._told_of_scaling = False
        self._num_tokens = 0  # of the finest level of the frame before
        # The same prompts on the next image or after a reset cost nothing.
        self.text = lru_cache(maxsize=64)(self._text)
        self.supports = lru_cache(maxsize=16)(self._supports)

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which the model runs."""
        return autocast(next(iter(self.model.parameters())).device, self.settings.precision)

    @property
    def shares_threads(self) -> bool:
        """Whether calls had better share out the threads of torch than each operation.

        That is so on a processor, unless operations are large: threads then share each of them
        well, and objects that are asked about together have some of them in common.
        """
        if is_compiled(self.model) or hasattr(self.model, "exported"):
            return False  # made for a number of threads, or run by others
        on_processor = next(iter(self.model.parameters())).device.type == "cpu"
        return on_processor and self._num_tokens < MANY_TOKENS

    def image(self, image: np.ndarray | FrameAhead) -> EncodedFrame:
        """(H, W, 3) uint8 RGB -> features at the model's input size.

        Raises:
            InputError: another shape or dtype, or too large for the memory that is free.
        """
        pixels = image.image if isinstance(image, FrameAhead) else image
        check_image(pixels)
        if pixels.shape[:2] != self.fits:
            check_room(pixels.shape[:2])
            self.fits = pixels.shape[:2]
        if self._preparation.follow():
            self.model = self._preparation.ready
            self.text.cache_clear()
            self.supports.cache_clear()
            self.state = object()
        encoded = None
        if isinstance(image, FrameAhead) and image.state is self.state:
            encoded = None if image.encoded.cancelled() else image.encoded.result()
        asked = image.asked if isinstance(image, FrameAhead) and encoded is not None else {}
        encoded = replace(encoded or self._encode(pixels), asked=asked)
        self._num_tokens = encoded.features.levels[0][0, 0].numel()
        return encoded

    def ahead(self, image: np.ndarray) -> EncodedFrame | None:
        """What ``image`` gives later; None if something has to be checked before that."""
        if self.fits is None or image.shape != (*self.fits, 3) or image.dtype != np.uint8:
            return None
        return self._encode(image)

    def _encode(self, image: np.ndarray) -> EncodedFrame:
        self._warn_if_scaled(image)
        pixels = self._pixels(image)
        with torch.inference_mode(), self.autocast():
            batch = self.model.preprocess([pixels])
            return EncodedFrame(batch, self.model.encode_image(batch), image)

    def _pixels(self, image: np.ndarray) -> torch.Tensor:
        """(H, W, 3) -> (3, h, w) at the model's input size."""
        return _tensor(resize_image(image, self._input_size(image)).transpose(2, 0, 1))

    def _input_size(self, image: np.ndarray) -> Size:
        """What the model sees of an image or mask (H, W, ...)."""
        size = self._wanted_size(image)
        limit: Size | None = getattr(self.model, "input_size", None)  # of an exported model
        if limit is None or (size[0] <= limit[0] and size[1] <= limit[1]):
            return size
        return fitted_size(size, limit)

    def _wanted_size(self, image: np.ndarray) -> Size:
        """What the model itself would see."""
        return resized_size(image.shape[:2], self.settings.short_side, self.settings.max_size)

    def _warn_if_scaled(self, image: np.ndarray) -> None:
        """Says once that an exported model sees less of an image than the model itself."""
        size, fitted = self._wanted_size(image), self._input_size(image)
        if size == fitted or self._told_of_scaling:
            return
        self._told_of_scaling = True
        logger.warning(
            "pictures that the model itself sees at %d x %d are scaled to %d x %d, which fits this "
            "export, and masks differ: exported with --size %dx%d they are the same, and %dx%d "
            "holds them upright, too",
            *(*size, *fitted, *size, max(size), max(size)),
        )

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
        num = len(masks)
        images = ImageBatch(
            tensor=frame.images.tensor.expand(num, -1, -1, -1),
            image_sizes=frame.images.image_sizes * num,
            padding_mask=frame.images.padding_mask.expand(num, -1, -1),
        )
        with torch.inference_mode(), self.autocast():
            return _rows(
                encode_masks(
                    self.model, images, frame.features.expand(num), [_tensor(m) for m in masks]
                )
            )

    def _supports(self, supports: tuple[Support, ...]) -> list[References]:
        """References of the example images of one object, each of batch 1."""
        self._require("mask")
        images, masks = [], []
        for support in supports:
            check_image(support.image)
            check_mask(support.mask, support.image.shape[:2])
            window = object_window(support.mask, self.settings.support_margin)
            images.append(self._pixels(support.image[window]))
            masks.append(_tensor(support.mask[window]))
            self._warn_if_few(support.mask[window], "an example image")
        with torch.inference_mode(), self.autocast():
            return _rows(encode_supports(self.model, images, masks))

    def visual(self, frame: EncodedFrame, prompt: Prompt) -> References | None:
        """Supports and the mask of a prompt on this frame as one reference, or None.

        A model that follows masks but no boxes takes a box as the mask of its rectangle.
        """
        references = [*self.supports(prompt.supports)] if prompt.supports else []
        mask = prompt.mask
        boxes_as_masks = self.model.reference_kinds & {"box", "mask"} == {"mask"}
        if mask is None and prompt.box is not None and boxes_as_masks:
            mask = _rectangle(prompt.box, frame.size)
        if mask is not None:
            mask = np.asarray(mask, bool)
            self._warn_if_few(mask, "the frame")
            references.extend(self.masks(frame, [mask]))
        return join_levels(references) if references else None

    def shown(self, frame: EncodedFrame, prompt: Prompt) -> References | None:
        """The points and the box of a prompt on this frame, or None.

        Raises:
            InputError: the model does not follow points, or neither boxes nor masks.
        """
        if prompt.points:
            self._require("point")
        elif prompt.box is None or self.model.reference_kinds & {"box", "mask"} == {"mask"}:
            return None
        else:
            self._require("box")
        device = frame.images.tensor.device
        (height, width), (h, w) = frame.size, frame.images.image_sizes[0]
        scale = torch.tensor([w / width, h / height], device=device)
        points = labels = boxes = None
        if prompt.points:
            places = [(point.x, point.y) for point in prompt.points]
            points = torch.tensor([places], device=device) * scale  # (1, P, 2)
            labels = torch.tensor([[int(point.inside) for point in prompt.points]], device=device)
        if prompt.box is not None:
            boxes = torch.tensor([prompt.box], device=device) * scale.repeat(2)  # (1, 4)
        model = cast(PointSegmenter, self.model)
        with torch.inference_mode(), self.autocast():
            return model.encode_points(points, labels, boxes)

    def _warn_if_few(self, mask: np.ndarray, where: str) -> None:
        """Logs a warning if the model sees little of an object, with a size that shows more."""
        size = self._input_size(mask)
        share = size[0] * size[1] / mask.size
        area, width = mask.sum() * share, _mean_width(mask) * math.sqrt(share)
        if area < FEW_PIXELS or width < 1:
            scale = max(math.sqrt(FEW_PIXELS / area), 1 / width)
            short, long = (math.ceil(side * scale) for side in (min(size), max(size)))
            logger.warning(
                "the mask of an object on %s covers %.1f pixels, %.1f wide, of the %d x %d that the"
                " model sees, so little may be followed: short_side %d and max_size %d show it on"
                " %d, %.1f wide (of the tools: --opts INFERENCE.VIDEO_SHORT_SIDE %d"
                " INFERENCE.IMAGE_SHORT_SIDE %d INFERENCE.MAX_SIZE %d)",
                *(where, area, width, *size, short, max(long, self.settings.max_size)),
                *(round(area * scale**2), width * scale, short, short),
                max(long, self.settings.max_size),
            )

    def _require(self, kind: str) -> None:
        if kind not in self.model.reference_kinds:
            known = " and ".join(sorted(self.model.reference_kinds)) or "no"
            raise InputError(f"this model follows {known} references, not {kind}: load another")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context in which a model on ``device`` runs in one of ``PRECISIONS``."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


@cache
def warn_of_half_precision(precision: str) -> None:
    """Says once what a precision costs, unless it is float32."""
    if precision != "float32":
        logger.warning(
            "precision %s: masks are near those of float32, not the same: how near depends on "
            "the model, see docs/runs.md#half-precision in the source tree",
            precision,
        )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _rows(levels: References) -> list[References]:
    """Each object of a batch."""
    return [tuple(_row(level, index) for level in levels) for index in range(len(levels[0].keys))]


def _row(reference: Reference, index: int) -> Reference:
    """One object of a batch, without keeping the values of the others in memory."""
    row = reference[index : index + 1]
    return replace(row, values=row.values.clone()) if len(reference.keys) > 1 else row


def _mean_width(mask: np.ndarray) -> float:
    """Pixels of an object per pixel of the longer side of its box."""
    x0, y0, x1, y1 = mask_box(mask) or (0, 0, 1, 1)
    return float(mask.sum() / max(x1 - x0, y1 - y0))


def _rectangle(box: Box, size: Size) -> np.ndarray:
    """The pixels (H, W) that a box covers, at least one."""
    left, top = (math.floor(side) for side in box[:2])
    right, bottom = (math.ceil(side) for side in box[2:])
    rectangle = np.zeros(size, bool)
    rectangle[top:bottom, left:right] = True
    return rectangle


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) uint8 to ``size`` with the antialiased bilinear filter of the training data."""
    if image.shape[:2] == size:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
