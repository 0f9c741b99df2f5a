"""What is seen in candidate masks: features, colours, place and size, computed once per image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.inference.chooser.candidates import Found, overlaps
from unified.inference.chooser.colours import colour_maps
from unified.inference.frames import EncodedFrame, resize_image
from unified.modeling.backbones import Backbone
from unified.structures import Size

STAGES = ("res3", "res4", "res5")
NUM_LEVELS = 3  # of the segmenter's own features


@dataclass(frozen=True)
class Described:
    """K candidates of one image.

    Attributes:
        seen: (K, F) means within the mask of frozen features and of the segmenter's own.
        colours: (K, 42) means of ``colour_maps`` in the mask, in its upper and its lower half.
        places: (K, 8): centre x, y, then x0, y0, x1, y1, area, all as shares of the image, and its
            certainty: how far probabilities in the mask are from 0.5, times 2, on average.
        scores: (K,) of the segmenter.
        iou, within: (K, K) IoU, and the share of the first that lies in the second.
    """

    seen: Tensor
    colours: Tensor
    places: Tensor
    scores: Tensor
    iou: Tensor
    within: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def extended(self, others: Described, masks: Tensor) -> Described:
        """These and other candidates of the same image, with the masks (K, h, w) of all."""
        iou, within = overlaps(masks, masks)
        return Described(
            seen=torch.cat((self.seen, others.seen)),
            colours=torch.cat((self.colours, others.colours)),
            places=torch.cat((self.places, others.places)),
            scores=torch.cat((self.scores, others.scores)),
            iou=iou,
            within=within,
        )


class Describer:
    """Sees one image; the costly part runs once.

    Args:
        backbone: with pretrained weights; not that of the segmenter, which forgot part of them.
        mean, std: (3,) that it expects, on the 0..255 scale.
        image: (H, W, 3) uint8 RGB.
        frame: the same image as the segmenter encoded it.
        size: of the grid of masks.
    """

    def __init__(
        self,
        backbone: Backbone,
        mean: Tensor,
        std: Tensor,
        image: np.ndarray,
        frame: EncodedFrame,
        size: Size,
    ) -> None:
        self.backbone, self.mean, self.std = backbone, mean, std
        self.size = size
        height, width = frame.images.image_sizes[0]
        sides = max(32, round(height / 32) * 32), max(32, round(width / 32) * 32)
        stages = backbone(self._normalised(resize_image(image, sides))[None])
        self.maps = [stages[stage][0] for stage in STAGES]
        self.num_frozen = sum(map(len, self.maps))  # features of ``seen`` that come first
        for level in frame.features.levels[:NUM_LEVELS]:
            stride = frame.images.padded_size[0] / level.shape[-2]
            rows, columns = (max(1, round(side / stride)) for side in (height, width))
            self.maps.append(level[0, :, :rows, :columns].float())
        self.colours = colour_maps(resize_image(image, size)).to(mean.device)

    def describe(self, found: Found) -> Described:
        """Candidates (at least one) on the grid of this image."""
        masks = found.masks.float()
        edges = _edges(masks)
        area = masks.sum(dim=(1, 2))
        height, width = self.size
        y = ((torch.arange(height, device=masks.device) + 0.5) / height)[:, None]
        x = (torch.arange(width, device=masks.device) + 0.5) / width
        certainty = ((found.probabilities - 0.5).abs() * 2 * masks).sum(dim=(1, 2)) / area
        centres = [(masks * axis).sum(dim=(1, 2)) / area for axis in (x, y)]
        places = torch.stack(
            (*centres, *edges.unbind(1), area / masks[0].numel(), certainty), dim=1
        )
        upper = masks * (y < edges[:, 1::2].mean(dim=1)[:, None, None])
        iou, within = overlaps(masks, masks)
        return Described(
            seen=torch.cat([_means(masks, level) for level in self.maps], dim=1),
            colours=torch.cat([_means(x, self.colours) for x in (masks, upper, masks - upper)], 1),
            places=places,
            scores=found.scores,
            iou=iou,
            within=within,
        )

    def _normalised(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 -> (3, H, W)."""
        tensor = torch.from_numpy(np.array(pixels)).to(self.mean.device).movedim(-1, 0).float()
        return (tensor - self.mean[:, None, None]) / self.std[:, None, None]


def _edges(masks: Tensor) -> Tensor:
    """x0, y0, x1, y1 (K, 4) around masks (K, h, w), as shares of the image."""
    ends = []
    for axis in (1, 2):  # over rows, then over columns
        occupied = masks.amax(dim=axis)
        cells = occupied.shape[1]
        ends.append(occupied.argmax(dim=1) / cells)
        ends.append(1 - occupied.flip(1).argmax(dim=1) / cells)
    x0, x1, y0, y1 = ends
    return torch.stack((x0, y0, x1, y1), dim=1)


def _means(masks: Tensor, values: Tensor) -> Tensor:
    """Means (K, C) of values (C, H, W) within masks (K, h, w); zeros in an empty one."""
    size = values.shape[-2], values.shape[-1]
    shares = F.adaptive_avg_pool2d(masks[None], size)[0]
    shares = shares / shares.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    return torch.einsum("khw,chw->kc", shares, values)
