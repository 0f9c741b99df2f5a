"""The Detectron2 side of a segmenter: sample dicts in, losses or instances out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from unified.engine.system import Supervision
from unified.expressions import swap_left_right
from unified.masks import MASK_THRESHOLD, binary_masks, join_mirrored, mask_probabilities
from unified.modeling.box_ops import cxcywh_to_xyxy, xyxy_to_cxcywh
from unified.modeling.boxinst import box_masks, color_similarity
from unified.segmenter import TrainableSegmenter
from unified.structures import (
    ImageBatch,
    Reference,
    References,
    Size,
    Target,
    join_levels,
    stack_padded,
    upload,
)
from unified.tasks import TASKS, Task

Sample = Mapping[str, Any]
MASK_STRIDE = 4


class SegmenterShell(nn.Module):
    """Adapts a ``TrainableSegmenter`` to Detectron2's trainer, loaders and evaluators.

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

    def forward(self, batched_inputs: Sequence[Sample]) -> Any:
        """Weighted losses by name in training, one ``{"instances": Instances}`` per sample else."""
        task = TASKS[Task(batched_inputs[0]["task"])]
        images = self.model.preprocess([sample["image"] for sample in batched_inputs])
        features = self.model.encode_image(images)
        references = self._references(batched_inputs)
        if not self.training:
            found = self.model.segment(features, references, top_k=task.top_k)
            return [
                {"instances": self._instances(index, sample, found, images)}
                for index, sample in enumerate(batched_inputs)
            ]
        targets = self._targets(batched_inputs, images)
        losses = self.model.losses(features, references, targets, mask_stride=task.mask_stride)
        if self.supervision.schedule is not None and has_event_storage():
            losses = self.supervision.schedule(losses, get_event_storage().iter)
        return losses

    def predict_mirrored(self, sample: Sample) -> dict[str, Instances]:
        """What ``forward`` gives for one sample, asked as its mirror image too.

        Left and right are swapped in the mirror's sentence; example images stay. See
        ``join_mirrored``.

        Returns:
            ``instances`` of (height, width) with at most one: none if its box is empty.
        """
        images = self.model.preprocess([sample["image"], sample["image"].flip(-1)])
        references: list[References] = []
        if "expression" in sample:
            texts = [sample["expression"], swap_left_right(sample["expression"])]
            references.append(self.model.encode_text(texts))
        if "reference_masks" in sample:
            references.append([level[[0, 0]] for level in self._mask_references([sample])])
        found = self.model.segment(self.model.encode_image(images), references)
        size = (sample["height"], sample["width"])
        maps = mask_probabilities(
            found.mask_logits[:, 0].float(),
            stride=MASK_STRIDE,
            image_size=images.image_sizes[0],
            original_size=size,
        )
        joint = join_mirrored(maps, found.scores[:, 0])
        centre, rest = found.boxes[:, 0].float().split((1, 3), dim=1)  # (2, 1), (2, 3)
        boxes = torch.cat((torch.stack((centre[0], 1 - centre[1])), rest), dim=1)
        boxes = _pixel_boxes((joint.weights[:, None] * boxes).sum(dim=0, keepdim=True), size)
        instances = Instances(
            size,
            pred_boxes=boxes,
            scores=joint.score[None],
            pred_classes=found.classes[joint.weights.argmax()],
            pred_masks=joint.probability[None] > MASK_THRESHOLD,
        )
        return {"instances": instances[boxes.nonempty()]}

    def _references(self, samples: Sequence[Sample]) -> list[References]:
        references: list[References] = []
        if "expression" in samples[0]:
            references.append(self.model.encode_text([sample["expression"] for sample in samples]))
        if "reference_masks" in samples[0]:
            references.append(self._mask_references(samples))
        return references

    def _mask_references(self, samples: Sequence[Sample]) -> References:
        """All supports of each sample as one reference."""
        supports = zip(
            *(zip(s["reference_images"], s["reference_masks"], strict=True) for s in samples),
            strict=True,
        )
        return join_levels([self._encode_masks(support) for support in supports])

    def _encode_masks(self, support: Sequence[tuple[Tensor, Tensor]]) -> tuple[Reference, ...]:
        """The k-th (image, mask) of every sample as one batched reference."""
        images = self.model.preprocess([image for image, _ in support])
        masks = stack_padded([mask for _, mask in support], images.padded_size)
        masks = upload(masks, self.device).float()
        return self.model.encode_mask(images, self.model.encode_image(images), masks)

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
            for part, truth in zip(masks.split(counts), truths, strict=True):
                height, width = truth.image_size
                part[:, :height, :width] = truth.gt_masks.tensor
            masks = upload(masks, self.device)
        parts = (part.split(counts) for part in (labels, boxes, masks))
        targets = [Target(*fields) for fields in zip(*parts, similarities, strict=True)]
        complete = self.supervision.complete_target
        if complete is None:
            return targets
        return [complete(*pair) for pair in zip(targets, samples, strict=True)]

    def _instances(self, index: int, sample: Sample, found: Any, images: ImageBatch) -> Instances:
        """Masks and boxes at the original size; empty boxes are left out."""
        size = (sample["height"], sample["width"])
        boxes = _pixel_boxes(found.boxes[index], size)
        keep = boxes.nonempty()
        instances = Instances(size)
        instances.pred_boxes = boxes[keep]
        instances.scores = found.scores[index][keep].float()  # numpy knows no bfloat16
        instances.pred_classes = found.classes[index][keep]
        instances.pred_masks = binary_masks(
            found.mask_logits[index][keep].float(),
            stride=MASK_STRIDE,
            image_size=images.image_sizes[index],
            original_size=size,
        )
        return instances


def _pixel_boxes(boxes: Tensor, size: Size) -> Boxes:
    """(K, 4) cxcywh, relative, as xyxy in pixels of a picture of (H, W), clipped to it."""
    corners = cxcywh_to_xyxy(boxes)
    pixels = Boxes(corners * corners.new_tensor([size[1], size[0], size[1], size[0]]))
    pixels.clip(size)
    return pixels
