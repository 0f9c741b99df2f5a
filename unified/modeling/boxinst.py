"""Mask supervision from boxes alone: projections, and neighbours of alike colour agree.

Source: Tian et al., BoxInst (arXiv:2012.02310), section 3. Masks and similarities live at stride
4, sampled at pixels 4 i + 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from unified.structures import MASK_STRIDE, Size, upload

DILATION = 2
MIN_SIMILARITY = 0.3
WARMUP_LAYERS = 10_000
IGNORED_BOTTOM_PIXELS = 10
TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)


def box_masks(boxes: Tensor, size: Size) -> Tensor:
    """Boxes (M, 4) xyxy in pixels filled in (M, H, W) bool: what a ``Target`` has for masks.

    Corners are cut to whole pixels and the last one is inside, as in the reference.
    """
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)  # each (M, 1)
    row = torch.arange(size[0], device=boxes.device)
    column = torch.arange(size[1], device=boxes.device)
    in_row = (row >= y0.long()) & (row < (y1 + 1).long())
    in_column = (column >= x0.long()) & (column < (x1 + 1).long())
    return in_row[:, :, None] & in_column[:, None, :]


@torch.no_grad()
def color_similarity(
    images: Tensor, image_sizes: Sequence[Size], original_heights: Sequence[int]
) -> Tensor:
    """How alike each pixel at stride 4 is to its 8 neighbours, (B, 8, H/4, W/4) in [0, 1].

    The 10 lowest pixel rows of the original image count as padding, since some data sets have a
    border there. Similarity to padding is 0.

    As in the reference, the RGB image is read as BGR on the way to Lab. It is kept because the
    threshold on similarity was used with it.

    Args:
        images: (B, 3, H, W) RGB in 0..255 after resizing, before normalising, zero on padding; H
            and W multiples of 4.
        image_sizes: B x (h, w) before padding.
        original_heights: B heights in pixels of the files, before resizing to h.
    """
    lab = rgb_to_lab(F.avg_pool2d(images.float(), MASK_STRIDE).byte().flip(1))
    ignored = (
        int(IGNORED_BOTTOM_PIXELS * height / original)
        for (height, _), original in zip(image_sizes, original_heights, strict=True)
    )
    ends = [(h - cut, w) for (h, w), cut in zip(image_sizes, ignored, strict=True)]
    bottom, right = upload(torch.tensor(ends), images.device)[:, :, None].unbind(1)  # (B, 1)
    rows, columns = (
        torch.arange(MASK_STRIDE // 2, side, MASK_STRIDE, device=images.device)
        for side in images.shape[2:]
    )
    valid = (rows < bottom)[:, :, None] & (columns < right)[:, None]
    around = neighbours(rearrange(lab, "b c h w -> (b c) h w"))  # 8 for each pixel
    around = rearrange(around, "(b c) k h w -> b c k h w", c=3)
    difference = lab[:, :, None] - around
    return torch.exp(-0.5 * difference.norm(dim=1)) * neighbours(valid.float())


def rgb_to_lab(images: Tensor) -> Tensor:
    """CIE Lab (B, 3, h, w) float32 of sRGB (B, 3, h, w) in 0..255, D65 seen at 2 degrees.

    Source: IEC 61966-2-1 for sRGB, CIE 15 for Lab; constants rounded as in scikit-image.
    """
    rgb = images.double() / 255
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz, white = (upload(torch.tensor(x, dtype=rgb.dtype), rgb.device) for x in (TO_XYZ, WHITE))
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz, linear) / white[:, None, None]
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1).float()


def neighbours(maps: Tensor) -> Tensor:
    """The 8 neighbours at distance 2 of every pixel: (N, h, w) to (N, 8, h, w), zero outside."""
    num, height, width = maps.shape
    unfolded = F.unfold(maps[:, None], kernel_size=3, dilation=DILATION, padding=DILATION)
    unfolded = unfolded.view(num, 9, height, width)
    return torch.cat([unfolded[:, :4], unfolded[:, 5:]], dim=1)


def projection_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Dice distance (K,) of logits (K, h, w) to box masks (K, h, w), both projected on x and y.

    Source: BoxInst equation 3.
    """
    scores = logits.sigmoid()
    return sum(
        (_squared_dice(scores.amax(dim), masks.amax(dim)) for dim in (1, 2)),
        start=logits.new_zeros(()),
    )


def pairwise_loss(logits: Tensor, masks: Tensor, similarity: Tensor) -> Tensor:
    """Scalar: how unlikely neighbours of alike colour inside a box get one label.

    Args:
        logits, masks: (K, h, w) of K instances; masks are the boxes, 0 or 1.
        similarity: (K, 8, h, w) from ``color_similarity``, of each instance's image.

    Source: BoxInst equations 5 and 6.
    """
    on, off = F.logsigmoid(logits), F.logsigmoid(-logits)
    both_on = on[:, None] + neighbours(on)
    both_off = off[:, None] + neighbours(off)
    disagreement = -torch.logaddexp(both_on, both_off)  # (K, 8, h, w)
    weights = (similarity >= MIN_SIMILARITY).float() * masks[:, None]
    return (disagreement * weights).sum() / weights.sum().clamp(min=1)


def warm_up(losses: Mapping[str, Tensor], counter: int) -> dict[str, Tensor]:
    """The same losses with every ``loss_pairwise*`` scaled down early in training.

    As in the reference, the counter advances once per decoder layer, last layer first: 6 layers
    end the warm-up after 1667 steps. The trainer owns the counter, so that losses are a pure
    function of the batch.

    Args:
        losses: by name, ``loss_pairwise`` of the last layer, ``loss_pairwise_0`` of the first.
        counter: number of layers before this step: step times layers; ``criterion._iter`` of an
            official checkpoint.
    """
    names = sorted(name for name in losses if name.startswith("loss_pairwise"))
    shares = {
        name: min((counter + count) / WARMUP_LAYERS, 1.0) for count, name in enumerate(names, 1)
    }
    return {name: value * shares.get(name, 1.0) for name, value in losses.items()}


def _squared_dice(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - Dice (K,) of (K, n) and (K, n) with squared denominator."""
    intersection = (prediction * target).sum(dim=1)
    total = (prediction**2).sum(dim=1) + (target**2).sum(dim=1) + 1e-5
    return 1 - 2 * intersection / total
