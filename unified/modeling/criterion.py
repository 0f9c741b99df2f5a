"""How wrong the predictions of every decoder layer and of the encoder are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unified.modeling.box_ops import cxcywh_to_xyxy, giou_loss
from unified.modeling.boxinst import pairwise_loss, projection_loss
from unified.modeling.matcher import (
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    Match,
    PaddedTargets,
    match_hungarian,
    match_simota,
)
from unified.structures import MASK_STRIDE, Target, upload

WEIGHTS: Mapping[str, float] = {
    "loss_ce": 2.0,
    "loss_bbox": 5.0,
    "loss_giou": 2.0,
    "loss_mask": 2.0,
    "loss_dice": 5.0,
    "loss_mask_cls": 1.0,
    "loss_mask_iou": 1.0,
    "loss_prj": 1.0,
    "loss_pairwise": 1.0,
}
HARD_PIXELS = 0.4
MAX_BOX_SUPERVISED = 64

DecodeMasks = Callable[[int, Tensor, Tensor], Tensor]
"""(decoder layer, K >= 1 images, their queries) -> mask logits (K, h, w) at the loss stride."""


@dataclass(frozen=True)
class LayerPrediction:
    """What one decoder layer, or the encoder about its proposals, says.

    Attributes:
        logits: (B, Q, classes).
        boxes: (B, Q, 4) cxcywh divided by the unpadded image size.
    """

    logits: Tensor
    boxes: Tensor


class Criterion:
    """Weighted losses of one batch; their plain sum is the objective.

    Decoder layers are matched by SimOTA and normalised by the number of matched pairs in the batch
    of this process, at least 1. Encoder proposals are matched one to one with every label 0. Losses
    of a batch without instances are zero, except those of the class logits, but stay connected to
    the predictions, so that every parameter gets a gradient.

    Targets with a ``color_similarity`` are supervised by their boxes only (BoxInst): projection and
    pairwise loss take the place of the mask losses. See ``boxinst.warm_up``.

    Source: Deformable DETR (arXiv:2010.04159), CondInst (arXiv:2003.05664) for the mask terms,
    BoxInst (arXiv:2012.02310), weights of UniRef++ (arXiv:2312.15715).
    """

    def __init__(
        self, *, weights: Mapping[str, float] | None = None, mask_aux: bool = False
    ) -> None:
        """``weights`` override some of ``WEIGHTS``; ``mask_aux`` adds two losses for clips."""
        self.weights = {**WEIGHTS, **(weights or {})}
        self.mask_aux = mask_aux

    def __call__(
        self,
        predictions: Sequence[LayerPrediction],
        proposals: LayerPrediction,
        targets: Sequence[Target],
        decode_masks: DecodeMasks,
        *,
        mask_stride: int = MASK_STRIDE,
    ) -> dict[str, Tensor]:
        """Scalars by name: ``loss_ce`` of the last layer, ``loss_ce_0`` of the first, ``_enc``.

        Args:
            predictions: one per decoder layer, first layer first.
            proposals: of the encoder, logits (B, N, classes).
            targets: B, with masks of the padded size.
            decode_masks: called for matched queries only.
            mask_stride: of the decoded masks, relative to the target masks.
        """
        raw = self.raw_losses(
            predictions, proposals, targets, decode_masks, mask_stride=mask_stride
        )
        return {name: value * self.weights[base_name(name)] for name, value in raw.items()}

    def raw_losses(
        self,
        predictions: Sequence[LayerPrediction],
        proposals: LayerPrediction,
        targets: Sequence[Target],
        decode_masks: DecodeMasks,
        *,
        mask_stride: int = MASK_STRIDE,
    ) -> dict[str, Tensor]:
        """The same before weighting."""
        padded = PaddedTargets.from_targets(targets)
        masks = torch.cat([_sampled_masks(target, mask_stride) for target in targets])
        similarity = _similarity(targets)
        losses: dict[str, Tensor] = {}
        for layer, prediction in enumerate(predictions):
            match = match_simota(prediction.logits, prediction.boxes, padded)
            terms = box_losses(prediction, padded, match)
            if similarity is not None:
                match = sample_pairs(match, MAX_BOX_SUPERVISED)
            if len(match):
                logits = decode_masks(layer, match.images, match.queries).float()
                wanted = masks[padded.rows[match.images, match.targets]].float()
                alike = None if similarity is None else similarity[match.images]
                terms |= self._mask_losses(logits, wanted, alike)
            else:
                # One mask decoded in vain keeps the mask branch in the graph of every process.
                first = torch.zeros(1, dtype=torch.int64, device=masks.device)
                nothing = (decode_masks(layer, first, first).float() * 0).sum()
                terms |= dict.fromkeys(self._mask_names(similarity is not None), nothing)
            suffix = "" if layer == len(predictions) - 1 else f"_{layer}"
            losses |= {name + suffix: value for name, value in terms.items()}

        anything = padded.without_labels()
        match = match_hungarian(proposals.logits, proposals.boxes, anything)
        terms = box_losses(proposals, anything, match)
        return losses | {f"{name}_enc": value for name, value in terms.items()}

    def _mask_losses(
        self, logits: Tensor, masks: Tensor, similarity: Tensor | None
    ) -> dict[str, Tensor]:
        """Of K pairs: logits and masks (K, h, w), similarity (K, 8, h, w) if boxes supervise."""
        if similarity is not None:
            values = [projection_loss(logits, masks), pairwise_loss(logits, masks, similarity)]
        else:
            values = [mask_focal_loss(logits, masks), mask_dice_loss(logits, masks)]
            values += mask_aux_losses(logits, masks) if self.mask_aux else ()
        means = (value.mean() for value in values)  # over pairs; scalars stay as they are
        return dict(zip(self._mask_names(similarity is not None), means, strict=True))

    def _mask_names(self, from_boxes: bool) -> tuple[str, ...]:
        if from_boxes:
            return "loss_prj", "loss_pairwise"
        aux = ("loss_mask_cls", "loss_mask_iou") if self.mask_aux else ()
        return "loss_mask", "loss_dice", *aux


def box_losses(
    prediction: LayerPrediction, targets: PaddedTargets, match: Match
) -> dict[str, Tensor]:
    """Focal class loss of all queries, L1 and GIoU loss of matched boxes, per matched pair."""
    logits = prediction.logits.float()
    num_pairs = max(len(match), 1)
    wanted = torch.zeros_like(logits)
    wanted[match.images, match.queries, targets.labels[match.images, match.targets]] = 1
    boxes = prediction.boxes[match.images, match.queries].float()
    goal = targets.boxes[match.images, match.targets].to(boxes)
    return {
        "loss_ce": focal_loss(logits, wanted).sum() / num_pairs,
        "loss_bbox": (boxes - goal).abs().sum() / num_pairs,
        "loss_giou": giou_loss(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(goal)).sum() / num_pairs,
    }


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sigmoid focal loss of every element, ``wanted`` 0 or 1. Source: arXiv:1708.02002, eq. 5."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    surprise = 1 - (probability * wanted + (1 - probability) * (1 - wanted))
    alpha = FOCAL_ALPHA * wanted + (1 - FOCAL_ALPHA) * (1 - wanted)
    return alpha * entropy * surprise**FOCAL_GAMMA


def mask_focal_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Focal loss (K,) averaged over all pixels, padding included, of (K, h, w)."""
    return focal_loss(logits, masks).mean(dim=(1, 2))


def mask_dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - Dice (K,) of (K, h, w), with 1 added above and below. Source: arXiv:1606.04797."""
    scores = logits.sigmoid()
    overlap = (scores * masks).sum(dim=(1, 2))
    return 1 - (2 * overlap + 1) / (scores.sum(dim=(1, 2)) + masks.sum(dim=(1, 2)) + 1)


def mask_aux_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Two more (K,) for clips: cross-entropy of the hardest pixels, and 1 - soft IoU.

    Object and background compete by their log-odds, as objects do when a video is merged; the
    hardest 40% of the pixels of each mask count.
    """
    scores = logits.sigmoid()
    odds = torch.stack([1 - scores, scores], dim=1).clamp(1e-7, 1 - 1e-7)
    odds = torch.log(odds / (1 - odds))  # (K, 2, h, w)
    entropy = F.cross_entropy(odds, masks.long(), reduction="none").flatten(1)
    hardest = entropy.topk(max(int(HARD_PIXELS * entropy.shape[1]), 1), dim=1).values
    scores = odds.softmax(dim=1)[:, 1]
    overlap = torch.minimum(scores, masks).sum(dim=(1, 2))
    iou = overlap / torch.maximum(scores, masks).sum(dim=(1, 2))
    return hardest.mean(dim=1), 1 - iou


def sample_pairs(match: Match, limit: int) -> Match:
    """At most ``limit`` pairs of the whole batch, drawn by torch's CPU generator."""
    if len(match) <= limit:
        return match
    kept = torch.randperm(len(match))[:limit].sort().values
    return match[upload(kept, match.queries.device)]


def _sampled_masks(target: Target, stride: int) -> Tensor:
    assert target.masks is not None
    return target.masks[:, stride // 2 :: stride, stride // 2 :: stride]


def _similarity(targets: Sequence[Target]) -> Tensor | None:
    """(B, 8, h, w), or None where masks are known."""
    maps = [t.color_similarity for t in targets if t.color_similarity is not None]
    return torch.stack(maps) if maps else None


def base_name(name: str) -> str:
    """``loss_mask_iou_3`` -> ``loss_mask_iou``."""
    stem, _, last = name.rpartition("_")
    return stem if last == "enc" or last.isdigit() else name
