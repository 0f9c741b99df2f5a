"""Masks that a sentence may mean: what a segmenter finds with and without it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unified.inference.frames import EncodedFrame
from unified.structures import MASK_STRIDE, Segmentation, Size

SAME = 0.8  # mask IoU from which two masks are one candidate
LEAST_CELLS = 4


@dataclass(frozen=True)
class Found:
    """Masks of one kind of question, best first or not.

    Attributes:
        probabilities: (K, h, w) on the grid of the image.
        scores: (K,) in [0, 1].
    """

    probabilities: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def followed_by(self, others: Found) -> Found:
        """These and others of the same image."""
        return Found(
            torch.cat((self.probabilities, others.probabilities)),
            torch.cat((self.scores, others.scores)),
        )

    @property
    def masks(self) -> Tensor:
        """(K, h, w) bool."""
        return self.probabilities > 0.5


def grid_size(frame: EncodedFrame) -> Size:
    """Cells of about ``MASK_STRIDE`` pixels of the model's input, without its padding."""
    height, width = frame.images.image_sizes[0]
    return max(1, round(height / MASK_STRIDE)), max(1, round(width / MASK_STRIDE))


def on_grid(found: Segmentation, frame: EncodedFrame, size: Size, *, mirrored: bool) -> Found:
    """The masks of a segmenter on the grid, turned back where it saw the mirror image.

    Args:
        found: B = 1.
        frame: what it was asked about.
        size: of the grid; each cell takes the value at its centre.
    """
    logits = found.mask_logits.float()
    stride = frame.images.padded_size[0] / logits.shape[-2]
    axes = []
    for cells, side, whole in zip(
        size, frame.images.image_sizes[0], logits.shape[-2:], strict=True
    ):
        centres = (torch.arange(cells, device=logits.device) + 0.5) / cells * side / stride
        axes.append(centres / whole * 2 - 1)
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    places = torch.stack((columns, rows), dim=-1)[None]  # (1, h, w, 2)
    sampled = F.grid_sample(logits, places, align_corners=False, padding_mode="border")[0].sigmoid()
    return Found(sampled.flip(-1) if mirrored else sampled, found.scores[0].float())


def overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Of masks (K, h, w) and (M, h, w): IoU (K, M), and the share of each first in a second."""
    a, b = first.flatten(1).float(), second.flatten(1).float()
    shared, area = a @ b.t(), a.sum(dim=1)[:, None]
    return shared / (area + b.sum(dim=1) - shared).clamp(min=1), shared / area.clamp(min=1)


def joined(parts: list[Found], limit: int) -> Found:
    """The best masks of all parts, each the mean of those that are the same.

    Args:
        parts: at least one.
        limit: number of candidates kept.
    """
    probabilities = torch.cat([part.probabilities for part in parts])
    scores = torch.cat([part.scores for part in parts])
    masks = probabilities > 0.5
    same = overlaps(masks, masks)[0] > SAME
    large = masks.flatten(1).sum(dim=1) >= LEAST_CELLS
    left = large.clone()
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if left[index] and len(kept) < limit:
            kept.append(index)
            left &= ~same[index]
    votes = same[kept].float()
    means = torch.einsum("kn,nhw->khw", votes / votes.sum(dim=1, keepdim=True), probabilities)
    return Found(means, scores[kept])
