"""The nouns of the toolkit: what travels between encoders, fusion, heads and the video loop.

Letters: B batch, L levels, N tokens, C channels, H, W height and width in pixels, Q queries,
K kept queries or supports, M instances, T frames. ``padding_mask`` is True on padding, ``mask`` is
True on the object. Sizes are (h, w). This module imports torch and nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]

MASK_STRIDE = 4  # of mask logits and of the features that they are made from, in input pixels


@dataclass(frozen=True)
class ImageBatch:
    """Normalised images padded at the right and bottom to one size.

    Attributes:
        tensor: (B, 3, H, W) normalised RGB, zero on padding; H, W multiples of the size divisor.
        image_sizes: B x (h, w) before padding.
        padding_mask: (B, H, W) bool, True on padding.
    """

    tensor: Tensor
    image_sizes: tuple[Size, ...]
    padding_mask: Tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    @property
    def padded_size(self) -> Size:
        return self.tensor.shape[-2], self.tensor.shape[-1]

    @classmethod
    def from_images(
        cls, images: Sequence[Tensor], *, mean: Tensor, std: Tensor, divisor: int
    ) -> ImageBatch:
        """Normalises each image and pads all to the largest size rounded up to ``divisor``.

        Args:
            images: B x (3, h, w) RGB in 0..255, one numeric dtype and device.
            mean, std: (3,) on the 0..255 scale; their device is the batch's.
            divisor: padded height and width are multiples of this.
        """
        sizes = tuple((int(image.shape[-2]), int(image.shape[-1])) for image in images)
        height, width = padded_size(sizes, divisor)
        pixels = upload(stack_padded(images, (height, width)), mean.device).to(mean.dtype)
        ends = upload(torch.tensor(sizes), mean.device)[:, :, None]  # (B, 2, 1)
        below = torch.arange(height, device=mean.device) >= ends[:, 0]  # (B, H)
        right = torch.arange(width, device=mean.device) >= ends[:, 1]  # (B, W)
        padding_mask = below[:, :, None] | right[:, None]
        tensor = (pixels - mean[:, None, None]) / std[:, None, None]
        return cls(
            tensor=tensor.masked_fill(padding_mask[:, None], 0.0),
            image_sizes=sizes,
            padding_mask=padding_mask,
        )


@dataclass(frozen=True)
class FeaturePyramid:
    """Image features before any reference is fused.

    Attributes:
        levels: L x (B, C, H_l, W_l), finest first (UniRef: strides 8, 16, 32, 64; SAM: one level).
        padding_masks: L x (B, H_l, W_l) bool, True on padding.
        image_sizes: B x (h, w) in input pixels, before padding.
        padded_size: (H, W) of the padded input batch.
        high_res: (B, C', H/4, W/4) un-fused features for fine masks, or None.

    What one system adds lives in a subclass of its own, which extends ``expand``.
    """

    levels: tuple[Tensor, ...]
    padding_masks: tuple[Tensor, ...]
    image_sizes: tuple[Size, ...]
    padded_size: Size
    high_res: Tensor | None = None

    def __len__(self) -> int:
        return self.levels[0].shape[0]

    def expand(self, num: int) -> FeaturePyramid:
        """The features of one image (B = 1) repeated ``num`` times as views, without a copy."""
        return replace(
            self,
            levels=tuple(level.expand(num, -1, -1, -1) for level in self.levels),
            padding_masks=tuple(mask.expand(num, -1, -1) for mask in self.padding_masks),
            image_sizes=self.image_sizes * num,
            high_res=None if self.high_res is None else self.high_res.expand(num, -1, -1, -1),
        )


@dataclass(frozen=True)
class Reference:
    """What a sentence or a mask says about one feature level.

    Attributes:
        keys: (B, N, C) tokens that image tokens are compared with.
        values: (B, N, C) what a matching image token receives.
        padding_mask: (B, N) bool, True on tokens to ignore.
        summary: (B, C) pooled reference that conditions shift, scale and gate.

    What one system adds lives in a subclass of its own, which extends the methods.
    """

    keys: Tensor
    values: Tensor
    padding_mask: Tensor
    summary: Tensor

    def __getitem__(self, images: slice | Sequence[int]) -> Reference:
        """The reference of some images of the batch."""
        return replace(
            self,
            keys=self.keys[images],
            values=self.values[images],
            padding_mask=self.padding_mask[images],
            summary=self.summary[images],
        )

    def join(self, others: Sequence[Reference]) -> Reference:
        """This and other references to the same objects as one; see ``join``."""
        references = (self, *others)
        return replace(
            self,
            keys=_in_a_row([reference.keys for reference in references]),
            values=_in_a_row([reference.values for reference in references]),
            padding_mask=_in_a_row([reference.padding_mask for reference in references]),
            summary=torch.stack([reference.summary for reference in references]).mean(dim=0),
        )

    def stack(self, others: Sequence[Reference]) -> Reference:
        """This and references of the same kind to other objects as one batch, padded to equal N.

        What they all have from one frame, as its keys, is not copied: see ``once``.
        """
        references = (self, *others)
        length = max(reference.keys.shape[1] for reference in references)

        def padded(tokens: Tensor, value: float) -> Tensor:
            missing = length - tokens.shape[1]
            widths = (0, 0, 0, missing) if tokens.dim() == 3 else (0, missing)
            return F.pad(tokens, widths, value=value) if missing else tokens

        return replace(
            self,
            keys=_as_batch([padded(reference.keys, 0.0) for reference in references]),
            values=torch.cat([padded(reference.values, 0.0) for reference in references]),
            padding_mask=_as_batch([padded(r.padding_mask, True) for r in references]),
            summary=torch.cat([reference.summary for reference in references]),
        )


References = Sequence[Reference]
"""One reference for all levels: L entries, finest level first."""


def join(references: Sequence[Reference]) -> Reference:
    """Several references to one object as one: tokens concatenated, summaries averaged.

    K supports of a few-shot task and the first and latest frame of a video memory are this one
    operation. Source: UniRef++ (arXiv:2312.15715), section 3.3.
    """
    first, *others = references
    return first.join(others) if others else first


def once(tensor: Tensor) -> Tensor:
    """(B, ...) that is one image repeated as views -> (1, ...); any other stays as it is.

    What is computed from such a tensor needs to be computed once.
    """
    if exporting():  # a program may not depend on strides
        return tensor
    return tensor[:1] if len(tensor) > 1 and tensor.stride(0) == 0 else tensor


def exporting() -> bool:
    """Whether operations are recorded for a program whose batch size is free."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def _in_a_row(tokens: Sequence[Tensor]) -> Tensor:
    """K x (B, N, ...) as (B, K * N, ...), a view of one image where each of them is that."""
    single = [once(x) for x in tokens]
    if all(len(x) == 1 for x in single):
        return torch.cat(single, dim=1).expand(len(tokens[0]), *[-1] * (tokens[0].dim() - 1))
    return torch.cat(list(tokens), dim=1)


def _as_batch(tokens: Sequence[Tensor]) -> Tensor:
    """O x (1, ...) as (O, ...), a view where all are the same tensor."""
    first, *others = tokens
    layout = (first.data_ptr(), first.shape, first.stride())
    if len(first) == 1 and all((x.data_ptr(), x.shape, x.stride()) == layout for x in others):
        return first.expand(len(tokens), *[-1] * (first.dim() - 1))
    return torch.cat(list(tokens))


def join_levels(references: Sequence[References]) -> tuple[Reference, ...]:
    """``join`` at every level: K references of L levels become one of L levels."""
    return tuple(join(level) for level in zip(*references, strict=True))


def stack_levels(references: Sequence[References]) -> tuple[Reference, ...]:
    """References to O different objects (each B = 1) as one batch of O, padded to equal N."""
    return tuple(level[0].stack(level[1:]) for level in zip(*references, strict=True))


@dataclass(frozen=True, eq=False)
class Support:
    """One example image with the object marked, for few-shot prompts; equal only to itself.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, True on the object.
    """

    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Point:
    """A pixel of a frame, x to the right and y down, on the object or beside it."""

    x: float
    y: float
    inside: bool = True


Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Prompt:
    """What refers to one object: one or more of the fields; ``detect`` finds all objects.

    Attributes:
        text: a sentence.
        mask: (H, W) bool on this very frame.
        supports: example images with masks.
        points: on this very frame.
        box: (x0, y0, x1, y1) in pixels of this very frame, around the object.
    """

    text: str | None = None
    mask: np.ndarray | None = None
    supports: tuple[Support, ...] = ()
    points: tuple[Point, ...] = ()
    box: Box | None = None

    @property
    def points_at(self) -> bool:
        """Whether there is a point or a box: what shows the object without outlining it."""
        return bool(self.points) or self.box is not None


@dataclass(frozen=True)
class Target:
    """The instances to find in one training image.

    Attributes:
        labels: (M,) int64 class indices.
        boxes: (M, 4) cxcywh divided by the unpadded image size, in [0, 1].
        masks: (M, H, W) bool at input resolution, padded like the batch; the filled boxes where
            only boxes are known.
        color_similarity: (8, H/4, W/4) of each pixel to its neighbours; present where masks are
            only filled boxes, which makes the losses those of box supervision.

    What one system adds lives in a subclass of its own.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None
    color_similarity: Tensor | None = None


@dataclass(frozen=True)
class Segmentation:
    """The K best queries of each image.

    Attributes:
        mask_logits: (B, K, h, w) at ``mask_stride`` of the padded input.
        scores: (B, K) in [0, 1].
        boxes: (B, K, 4) cxcywh divided by the unpadded image size.
        classes: (B, K) int64.
    """

    mask_logits: Tensor
    scores: Tensor
    boxes: Tensor
    classes: Tensor

    @classmethod
    def of_masks(
        cls, mask_logits: Tensor, features: FeaturePyramid, scores: Tensor | None = None
    ) -> Segmentation:
        """That of a model which predicts masks, and perhaps scores.

        Boxes are those of the masks; the score of an empty mask is 0; the class is 0.

        Args:
            mask_logits: (B, K, h, w) at a stride of the padded input.
            features: of the same images.
            scores: (B, K); by default the mean probability inside each mask.
        """
        inside = mask_logits > 0
        areas = inside.sum(dim=(2, 3))
        if scores is None:
            probabilities = mask_logits.detach().float().sigmoid() * inside
            scores = probabilities.sum(dim=(2, 3)) / areas.clamp(min=1)
        stride = features.padded_size[0] / mask_logits.shape[2]
        sides = torch.tensor(features.image_sizes) / stride  # (B, 2), unpadded
        edges = [
            _extent(inside.any(dim=axis)) / upload(side, mask_logits.device)[:, None, None]
            for axis, side in ((2, sides[:, 1]), (3, sides[:, 0]))
        ]
        ends = torch.stack(edges, dim=-1).clamp(max=1)  # (B, K, 2 ends, x and y)
        boxes = torch.cat((ends.mean(dim=2), ends[:, :, 1] - ends[:, :, 0]), dim=-1)
        return cls(mask_logits, scores * (areas > 0), boxes, torch.zeros_like(areas))


@dataclass(frozen=True, eq=False)
class Instance:
    """One object of an image.

    Attributes:
        mask: (H, W) bool at the image's own size.
        score: in [0, 1].
        box: (x0, y0, x1, y1) in pixels, as the model predicts it; None where it has no extent.
        category: index of its class.
    """

    mask: np.ndarray
    score: float
    box: tuple[float, float, float, float] | None
    category: int


@dataclass(frozen=True)
class Presence:
    """Whether an object is there.

    Attributes:
        kind: "present"; "refused": its score is below the threshold, and it was never there;
            "absent": it was there before, or no pixel is likely enough; "outcompeted": another
            object won the same pixels; "covered": it lies within another object, which won them
            (in both cases more than four fifths of its pixels).
        by: id of that other object.
    """

    kind: Literal["present", "refused", "absent", "outcompeted", "covered"]
    by: int | None = None


@dataclass(frozen=True)
class FrameResult:
    """What the video loop says about one frame.

    Attributes:
        label_map: (H, W) uint8 at the frame's own size, pixel = object id, 0 = background.
        scores: object id -> score in [0, 1] of every known object, present or not.
        boxes: object id -> (x0, y0, x1, y1) in pixels of the frame around the object; None when
            absent.
        areas: object id -> number of pixels.
        masks: object id -> (H, W) bool, its own mask where objects do not compete for pixels;
            empty when they do.
        probabilities: object id -> (H, W) float32 before merging; only if asked for.
        presence: object id -> whether it is there, and why not.
    """

    label_map: np.ndarray
    scores: Mapping[int, float]
    boxes: Mapping[int, tuple[float, float, float, float] | None]
    areas: Mapping[int, int]
    masks: Mapping[int, np.ndarray] = field(default_factory=dict)
    probabilities: Mapping[int, np.ndarray] = field(default_factory=dict)
    presence: Mapping[int, Presence] = field(default_factory=dict)

    @property
    def absent(self) -> tuple[int, ...]:
        """Ids of the known objects that have no pixel in this frame."""
        return tuple(object_id for object_id, area in self.areas.items() if area == 0)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``, without waiting for the work queued there.

    A plain copy to a GPU waits for all of it, so a step full of small copies leaves the GPU idle.
    """
    pinned = tensor.is_cpu and torch.cuda.is_available() and not torch.compiler.is_compiling()
    if device.type == "cpu" or not pinned:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def stack_padded(maps: Sequence[Tensor], size: Size) -> Tensor:
    """B x (..., h, w) of one dtype as (B, ..., H, W), zero at the right and bottom."""
    if all(single.shape[-2:] == size for single in maps):
        return torch.stack(list(maps))
    stacked = maps[0].new_zeros(len(maps), *maps[0].shape[:-2], *size)
    for target, source in zip(stacked, maps, strict=True):
        target[..., : source.shape[-2], : source.shape[-1]] = source
    return stacked


def padded_size(sizes: Sequence[Size], divisor: int) -> Size:
    """The smallest (h, w) that holds all sizes and is a multiple of ``divisor``."""
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def resized_size(size: Sequence[int], short_side: int, max_size: int | None) -> Size:
    """(h, w) with the shorter side at ``short_side``, or less if the longer is at ``max_size``."""
    scale = short_side / min(size)
    if max_size is not None:
        scale = min(scale, max_size / max(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def fitted_size(size: Size, limit: Size) -> Size:
    """(h, w), scaled down where it does not fit into the limit."""
    scale = min(1.0, limit[0] / size[0], limit[1] / size[1])
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _extent(occupied: Tensor) -> Tensor:
    """First index and one past the last of each row (..., N) of bools: (..., 2), 0 where none."""
    length = occupied.shape[-1]
    index = torch.arange(length, device=occupied.device)
    first = torch.where(occupied, index, length).amin(dim=-1)
    last = torch.where(occupied, index + 1, 0).amax(dim=-1)
    return torch.stack((torch.minimum(first, last), last), dim=-1).float()
