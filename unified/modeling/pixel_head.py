"""A head for training only that tells features directly which pixels are referred to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.criterion import mask_dice_loss
from unified.structures import Target, upload

LEVELS = 3  # strides 8, 16 and 32: at 64 little is left of most objects
CROSS_ENTROPY, DICE = 5.0, 2.0


class PixelHead(nn.Module):
    """One linear map from features to "referred to or not", before and after the encoder.

    Queries learn what a sentence means only by being matched; this loss reaches the fusion layer
    from every pixel of every picture. Inference does not need it. Not part of UniRef++.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fused, self.memory = nn.Linear(dim, 1), nn.Linear(dim, 1)

    def losses(
        self, fused: Sequence[Tensor], memory: Sequence[Tensor], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Weighted cross-entropy and Dice loss, means over levels.

        Args:
            fused: L x (B, C, h, w) after fusion.
            memory: L x (B, C, h, w) after the transformer's encoder.
            targets: B, with masks of the padded size; all objects of one picture are joined, and
                partly covered cells count partly.
        """
        masks = _joined(targets)
        entropy, dice = [], []
        for layer, levels in ((self.fused, fused), (self.memory, memory)):
            for level in levels[:LEVELS]:
                logits = layer(level.movedim(1, -1))[..., 0].float()  # (B, h, w)
                share = F.adaptive_avg_pool2d(masks, logits.shape[-2:])
                entropy.append(F.binary_cross_entropy_with_logits(logits, share))
                dice.append(mask_dice_loss(logits, share).mean())
        return {
            "loss_pixel": CROSS_ENTROPY * torch.stack(entropy).mean(),
            "loss_pixel_dice": DICE * torch.stack(dice).mean(),
        }


def _joined(targets: Sequence[Target]) -> Tensor:
    """(B, H, W) float, 1 where any instance is."""
    masks = [target.masks for target in targets if target.masks is not None]
    assert len(masks) == len(targets)
    counts = torch.tensor([len(mask) for mask in masks])
    owners = upload(torch.arange(len(masks)).repeat_interleave(counts), masks[0].device)
    joined = torch.zeros(len(masks), *masks[0].shape[1:], device=masks[0].device)
    return joined.index_add_(0, owners, torch.cat(masks).float()).clamp_(max=1)
