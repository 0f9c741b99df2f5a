"""How wrong the one mask of each image is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DICE_SCALE, DICE_EPS = 1000.0, 1e-6


@dataclass(frozen=True)
class MaskLosses:
    """Weights of the losses. Source: UniRef's SAM variant, which has no loss of the score.

    Attributes:
        score: of the squared error of the predicted IoU. Source: Segment Anything
            (arXiv:2304.02643), appendix A.
    """

    bce: float = 2.0
    dice: float = 0.5
    score: float = 0.0

    def __call__(self, logits: Tensor, scores: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Weighted losses by name, means over images.

        Args:
            logits: (B, 1, H, W).
            scores: (B, 1) predicted IoU.
            masks: (B, 1, H, W) in {0, 1}.
        """
        logits = logits.float()
        losses = {
            "loss_mask": self.bce * F.binary_cross_entropy_with_logits(logits, masks),
            "loss_dice": self.dice * dice_loss(logits, masks),
        }
        if self.score:
            actual = mask_iou(logits.detach() > 0, masks > 0)
            losses["loss_score"] = self.score * F.mse_loss(scores.float(), actual)
        return losses


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean over masks (B, 1, H, W); sums are divided by 1000, so that the epsilon counts more."""
    probability = logits.sigmoid().flatten(1) / DICE_SCALE
    masks = masks.flatten(1)
    shared = 2 * (probability * masks).sum(dim=1)
    total = probability.sum(dim=1) + (masks / DICE_SCALE).sum(dim=1)
    return (1 - (shared + DICE_EPS) / (total + DICE_EPS)).mean()


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of bool masks (B, K, H, W), (B, K); 1 where both are empty."""
    shared = (first & second).sum(dim=(2, 3))
    covered = (first | second).sum(dim=(2, 3))
    return torch.where(covered > 0, shared / covered.clamp(min=1), 1.0)
