"""The Detectron2 side of a segmenter in training: sample dicts in, losses out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from unified.engine.system import Supervision
from unified.modeling.box_ops import xyxy_to_cxcywh
from unified.modeling.boxinst import box_masks, color_similarity
from unified.segmenter import TrainableSegmenter, encode_supports
from unified.structures import (
    ImageBatch,
    References,
    Size,
    Target,
    join_levels,
    stack_padded,
    upload,
)
from unified.tasks import TASKS, Task

Sample = Mapping[str, Any]


class SegmenterShell(nn.Module):
    """Adapts a ``TrainableSegmenter`` to Detectron2's trainer and loaders.

    A batch comes from one dataset, hence holds one task and the same reference keys in each sample:
    image (3, h, w) uint8 RGB, instances, height, width, task, and if there is such a reference
    expression, or reference_images K x (3, h, w) with reference_masks K x (h, w).
    """

    def __init__(self, model: TrainableSegmenter, supervision: Supervision) -> None:
        super().__init__()
        self.model, self.supervision = model, supervision

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def forward(self, batched_inputs: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Weighted losses by name."""
        task = TASKS[Task(batched_inputs[0]["task"])]
        images = self.model.preprocess([sample["image"] for sample in batched_inputs])
        features = self.model.encode_image(images)
        references = self._references(batched_inputs)
        targets = self._targets(batched_inputs, images)
        losses = self.model.losses(features, references, targets, mask_stride=task.mask_stride)
        if self.supervision.schedule is not None and has_event_storage():
            losses = self.supervision.schedule(losses, get_event_storage().iter)
        return losses

    def _references(self, samples: Sequence[Sample]) -> list[References]:
        references: list[References] = []
        if "expression" in samples[0]:
            references.append(self.model.encode_text([sample["expression"] for sample in samples]))
        if "reference_masks" in samples[0]:
            references.append(self._mask_references(samples))
        return references

    def _mask_references(self, samples: Sequence[Sample]) -> References:
        """The K supports of each sample as one reference, all encoded as one batch."""
        shown = [image for sample in samples for image in sample["reference_images"]]
        marked = [mask for sample in samples for mask in sample["reference_masks"]]
        levels = encode_supports(self.model, shown, marked)
        num = len(shown) // len(samples)
        return join_levels([tuple(level[k::num] for level in levels) for k in range(num)])

    def _targets(self, samples: Sequence[Sample], images: ImageBatch) -> list[Target]:
        """Ground truth of each sample, moved together; tight boxes are the mapper's task."""
        truths: list[Instances] = [sample["instances"] for sample in samples]
        counts = [len(truth) for truth in truths]
        corners = torch.cat([truth.gt_boxes.tensor for truth in truths])
        sizes = torch.tensor([(w, h, w, h) for h, w in (truth.image_size for truth in truths)])
        scale = sizes.repeat_interleave(torch.tensor(counts), dim=0).to(corners)
        boxes = upload(xyxy_to_cxcywh(corners / scale), self.device)
        labels = upload(torch.cat([truth.gt_classes for truth in truths]), self.device)
        labels = torch.zeros_like(labels) if self.supervision.class_agnostic else labels
        similarities: Sequence[Tensor | None] = (None,) * len(samples)
        if self.supervision.from_boxes:
            masks = box_masks(upload(corners, self.device), images.padded_size)
            pixels = stack_padded([sample["image"] for sample in samples], images.padded_size)
            similarities = color_similarity(
                upload(pixels, self.device),
                images.image_sizes,
                [sample["height"] for sample in samples],
            ).unbind()
        else:
            masks = torch.zeros(sum(counts), *images.padded_size, dtype=torch.bool)
            for part, truth, size in zip(
                masks.split(counts), truths, images.image_sizes, strict=True
            ):
                part[:, : size[0], : size[1]] = _resized(truth.gt_masks.tensor, size)
            masks = upload(masks, self.device)
        parts = (part.split(counts) for part in (labels, boxes, masks))
        targets = [Target(*fields) for fields in zip(*parts, similarities, strict=True)]
        complete = self.supervision.complete_target
        if complete is None:
            return targets
        return [complete(*pair) for pair in zip(targets, samples, strict=True)]


def _resized(masks: Tensor, size: Size) -> Tensor:
    """(M, h, w) bool at the size that the model gave the image in ``preprocess``."""
    if masks.shape[-2:] == size or not len(masks):
        return masks if len(masks) else masks.new_zeros(0, *size)
    return F.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0].bool()
