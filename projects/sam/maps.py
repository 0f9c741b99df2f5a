"""SAM's masks at other sizes, and boxes around them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unified.structures import FeaturePyramid, Size


def at_stride(logits: Tensor, features: FeaturePyramid, stride: int) -> Tensor:
    """SAM's masks (B, K, 4h, 4w), bilinear at ``stride`` of the padded input."""
    height, width = (side // stride for side in features.padded_size)
    if size(logits) == (height, width):
        return logits
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)


def on_image(logits: Tensor, features: FeaturePyramid) -> Tensor:
    """SAM's masks (B, 1, 4h, 4w) at the input size without the padding of all, (B, H, W)."""
    stride = int(features.padded_size[0]) // int(logits.shape[-2])  # tensors while traced
    height, width = (max(sides) for sides in zip(*features.image_sizes, strict=True))
    rows, columns = (-(-side // stride) + 1 for side in (height, width))
    part = logits[:, :, :rows, :columns]
    larger = F.interpolate(part, scale_factor=stride, mode="bilinear", align_corners=False)
    return larger[:, 0, :height, :width]


def coarse_prompt(coarse: Tensor, side: int) -> dict[str, Tensor]:
    """A coarse mask (B, h, w), logits, as a SAM is prompted with it: by itself and by its box.

    Args:
        side: of the padded input, in pixels, which boxes are in.
    """
    masks = F.interpolate(coarse[:, None], scale_factor=4, mode="bilinear", align_corners=False)
    found = coarse.detach() > 0
    found = torch.where(
        found.any(dim=(1, 2), keepdim=True), found, coarse >= coarse.amax(dim=(1, 2), keepdim=True)
    )
    boxes = boxes_of(found)[0] * (side / coarse.shape[-1])
    return {"boxes": boxes, "masks": masks}


def boxes_of(masks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, h, w) bool -> x0, y0, x1, y1 around each (B, 4), and which are not empty (B,)."""
    ends = []
    for axis in (1, 2):  # columns, then rows
        line = masks.any(dim=axis)
        index = torch.arange(line.shape[1], device=line.device)
        ends.append(torch.where(line, index, line.shape[1]).amin(dim=1))
        ends.append(torch.where(line, index + 1, 0).amax(dim=1))
    x0, x1, y0, y1 = ends
    return torch.stack((x0, y0, x1, y1), dim=1).float(), masks.flatten(1).any(dim=1)


def size(maps: Tensor) -> Size:
    return maps.shape[-2], maps.shape[-1]
