"""An auxiliary loss that asks features directly which pixels are referred to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.uniref.auxiliary import FeatureStages
from unified.modeling.criterion import mask_dice_loss
from unified.modeling.pixel_masks import joined_masks
from unified.segmenter import Segmenter
from unified.structures import References, Target


class PixelLoss(nn.Module):
    """One linear map from features to "referred to or not", before and after the encoder.

    Queries learn what a sentence means only by being matched; this loss reaches the fusion layer
    from every pixel of every image. Not part of UniRef++.

    Args:
        dim: C.
        num_levels: finest levels that are asked; at stride 64 little is left of most objects.
        cross_entropy, dice: weights.
    """

    def __init__(self, *, dim: int, num_levels: int, cross_entropy: float, dice: float) -> None:
        super().__init__()
        self.fused, self.memory = nn.Linear(dim, 1), nn.Linear(dim, 1)
        self.num_levels, self.cross_entropy, self.dice = num_levels, cross_entropy, dice

    def forward(
        self,
        model: Segmenter,
        stages: FeatureStages,
        references: Sequence[References],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Weighted cross-entropy and Dice loss, means over levels; nothing without a reference.

        All objects of one image are joined, and partly covered cells count partly.
        """
        if not references:
            return {}
        masks = joined_masks(targets)[:, 0]
        entropy, dice = [], []
        for layer, levels in ((self.fused, stages.fused), (self.memory, stages.memory)):
            for level in levels[: self.num_levels]:
                logits = layer(level.movedim(1, -1))[..., 0].float()  # (B, h, w)
                share = F.adaptive_avg_pool2d(masks, logits.shape[-2:])
                entropy.append(F.binary_cross_entropy_with_logits(logits, share))
                dice.append(mask_dice_loss(logits, share).mean())
        return {
            "loss_pixel": self.cross_entropy * torch.stack(entropy).mean(),
            "loss_pixel_dice": self.dice * torch.stack(dice).mean(),
        }
