"""Mask supervision from boxes alone: projections, and neighbours of alike colour agree.

Source: Tian et al., BoxInst (arXiv:2012.02310), section 3. Masks and similarities live at stride
4, sampled at pixels 4 i + 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from unified.structures import Size

STRIDE = 4
DILATION = 2
MIN_SIMILARITY = 0.3
WARMUP_LAYERS = 10_000
IGNORED_BOTTOM_PIXELS = 10


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
def color_similarity(image: Tensor, padded_size: Size, original_height: int) -> Tensor:
    """How alike each pixel at stride 4 is to its 8 neighbours, (8, H/4, W/4) in [0, 1].

    The 10 lowest pixel rows of the original image count as padding, since some data sets have a
    border there. Similarity to padding is 0.

    As in the reference, the RGB image is read as BGR on the way to Lab. It is kept because the
    threshold on similarity was used with it.

    Args:
        image: (3, h, w) RGB in 0..255 after resizing, before normalising.
        padded_size: (H, W) of the batch, multiples of 4.
        original_height: height in pixels of the file, before resizing to h.
    """
    height, width = image.shape[-2:]
    pad = (0, padded_size[1] - width, 0, padded_size[0] - height)
    pooled = F.avg_pool2d(F.pad(image.float(), pad)[None], STRIDE)[0].byte()
    lab = rgb_to_lab(pooled.flip(0))
    valid = image.new_zeros(padded_size, dtype=torch.float32)
    ignored = int(IGNORED_BOTTOM_PIXELS * height / original_height)
    valid[: max(height - ignored, 0), :width] = 1
    valid = valid[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    difference = lab[:, None] - neighbours(lab)  # (3, 8, h, w)
    return torch.exp(-0.5 * difference.norm(dim=0)) * neighbours(valid[None])[0]


def rgb_to_lab(image: Tensor) -> Tensor:
    """CIE Lab (3, h, w) float32 of sRGB (3, h, w) in 0..255, white D65 seen at 2 degrees.

    Source: IEC 61966-2-1 for sRGB, CIE 15 for Lab; constants rounded as in scikit-image.
    """
    rgb = image.double() / 255
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = linear.new_tensor(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    white = linear.new_tensor([0.95047, 1.0, 1.08883])
    xyz = torch.einsum("ij,jhw->ihw", to_xyz, linear) / white[:, None, None]
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)]).float()


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
