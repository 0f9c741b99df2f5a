"""What a SAM can do without training: follow an object by the box of its previous mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from projects.sam.model import SamUniFusion
from projects.sam.pyramid import PointReference
from unified.structures import FeaturePyramid, ImageBatch, Reference


@dataclass(frozen=True, kw_only=True)
class BoxReference(PointReference):
    """The box of a mask on another frame; of several frames the latest counts."""

    def join(self, others: Sequence[Reference]) -> Reference:
        """The last one."""
        return others[-1] if others else self


class BoxTracking(SamUniFusion):
    """A SAM, with the masks of a memory as the boxes around them: nothing is trained."""

    @property
    def reference_kinds(self) -> frozenset[str]:
        """Points and boxes as of every SAM, and masks as boxes."""
        return frozenset({"point", "box", "mask"})

    def encode_mask(
        self, images: ImageBatch, features: FeaturePyramid, masks: Tensor
    ) -> tuple[Reference, ...]:
        """Masks (B, H, W) -> their boxes as SAM's prompt; the whole frame of an empty one."""
        boxes = torch.stack([_box(mask) for mask in masks.bool()])
        (shown,) = self.encode_points(None, None, boxes)
        return (
            BoxReference(
                shown.keys, shown.values, shown.padding_mask, shown.summary, ambiguous=False
            ),
        )


def _box(mask: Tensor) -> Tensor:
    """(H, W) bool -> (4,) x0, y0, x1, y1."""
    rows, columns = (mask.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):
        return mask.new_tensor([0, 0, mask.shape[1], mask.shape[0]], dtype=torch.float32)
    ends = torch.stack((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return ends.float()
