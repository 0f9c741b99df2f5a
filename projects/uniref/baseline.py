"""The reference's algorithm on our modules and weights, to compare speed and results with.

What it does although the result does not need it, facts by reading and running UniRef++
(FoundationVision/UniRef at 16442cf), functions ``inference_vos_3f`` and ``coco_inference``:

* the backbone runs once for the memory and again for every object;
* objects run one after another;
* on the frame of its mask an object attends to the same tokens twice, as first and latest frame;
* the masks of all queries are made, for masks alone at full resolution, and one is used;
* deformable attention samples one level after another and stores every sample.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.uniref.model import UniRef
from unified.modeling.deform_attn import MultiScaleDeformableAttention
from unified.modeling.deform_sum import sum_of_grids
from unified.modeling.detr_head import Queries
from unified.modeling.fusion import CrossAttention
from unified.modeling.layers import aligned_bilinear
from unified.modeling.mask_head import MASK_CHANNELS, MaskHead
from unified.modeling.selection import select_queries
from unified.modeling.transformer import EncoderLayer
from unified.structures import (
    MASK_STRIDE,
    FeaturePyramid,
    ImageBatch,
    References,
    Segmentation,
    join,
)


@dataclass(frozen=True)
class FeaturesOfImages(FeaturePyramid):
    """Features that know their images, so that they can be computed again."""

    images: ImageBatch | None = None

    def expand(self, num: int) -> FeaturePyramid:
        return self if num == 1 else super().expand(num)


class ReferenceAlgorithm(UniRef):
    """A ``Segmenter`` with the parameters of another UniRef and the steps of the reference."""

    prepared_for = ("float32", False)  # it runs as it is, norms of their own included

    def __init__(self, model: UniRef) -> None:
        super().__init__(
            backbone=model.backbone,
            neck=model.neck,
            head=_share(model.head),
            mask_head=model.mask_head,
            fusion=_share(model.fusion),
            text_encoder=model.text_encoder,
            mask_encoder=model.mask_encoder,
            pixel_mean=model.pixel_mean.tolist(),
            pixel_std=model.pixel_std.tolist(),
            size_divisor=model.size_divisor,
            nms_threshold=model.nms_threshold,
        )
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.sample = sum_of_grids
            elif isinstance(module, CrossAttention):
                module.dtype, module.backend, module.fold_on_cpu = None, "sdpa", False
            elif isinstance(module, EncoderLayer):
                module.cpu_part = sys.maxsize
        self.eval()

    def encode_image(self, images: ImageBatch) -> FeaturesOfImages:
        pyramid = super().encode_image(images)
        parts = {field.name: getattr(pyramid, field.name) for field in fields(pyramid)}
        return FeaturesOfImages(**parts, images=images)

    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = MASK_STRIDE,
    ) -> Segmentation:
        """One object: the frame is encoded again and the masks of all queries are made."""
        if isinstance(features, FeaturesOfImages) and features.images is not None:
            features = self.encode_image(features.images)
        doubled = [self._first_and_latest(features, kind) for kind in references]
        queries = self.head(self.fuse(features, doubled), features.padding_masks)
        last = self.head.num_layers - 1
        logits, boxes = self.head.logits(queries, last)[0], queries.references[-1]
        masks = self._masks_of_all(queries, features, mask_stride)
        index, scores, classes = select_queries(logits, boxes[0], top_k, self.nms_threshold)
        return Segmentation(
            mask_logits=masks[:, index],
            scores=scores[None],
            boxes=boxes[:, index],
            classes=classes[None],
        )

    def _first_and_latest(self, features: FeaturePyramid, kind: References) -> References:
        """A mask reference of one frame twice, anything else as it is."""
        one_frame = all(
            reference.keys.shape[1] == level.shape[-2:].numel()
            for reference, level in zip(kind, features.levels, strict=True)
        )
        return [join([reference, reference]) for reference in kind] if one_frame else kind

    def _masks_of_all(self, queries: Queries, features: FeaturePyramid, mask_stride: int) -> Tensor:
        """Mask logits of all queries of one image: (1, Q, H / mask_stride, W / mask_stride)."""
        shared = self.mask_head.features(queries.memory, features.high_res)
        height, width = features.image_sizes[0]
        points = queries.references[-2][..., :2] * shared.new_tensor([width, height])
        logits = masks_by_grouped_convolution(self.mask_head, shared, queries.hidden[-1], points)
        return aligned_bilinear(logits, MASK_STRIDE // mask_stride)


def masks_by_grouped_convolution(
    mask_head: MaskHead, shared: Tensor, hidden: Tensor, points: Tensor
) -> Tensor:
    """As ``MaskHead.forward`` for one image, with one group of channels per query.

    Args:
        shared: (1, 8, h, w); hidden: (1, Q, C); points: (1, Q, 2) in input pixels.

    Returns:
        (1, Q, h, w).
    """
    num, (height, width) = hidden.shape[1], shared.shape[-2:]
    parameters = mask_head.controller(hidden[0])
    sizes = (*mask_head.weight_sizes, *mask_head.bias_sizes)
    first, second, third, *biases = parameters.split(sizes, dim=-1)
    offsets = mask_head._relative_coordinates(points, height, width)[0]  # (Q, 2, h * w)
    offsets = offsets.view(num, 2, height, width)
    x = torch.cat([offsets, shared.expand(num, -1, -1, -1)], dim=1)  # (Q, 10, h, w)
    x = x.reshape(1, -1, height, width)
    for weight, bias in zip((first, second), biases, strict=False):
        kernel = weight.reshape(num * MASK_CHANNELS, -1, 1, 1)
        x = F.relu(F.conv2d(x, kernel, bias.reshape(-1), groups=num))
    return F.conv2d(x, third.reshape(num, -1, 1, 1), biases[2].reshape(-1), groups=num)


def _share(module: nn.Module | None) -> nn.Module | None:
    """A copy of the module's structure on the same parameters and buffers."""
    if module is None:
        return None
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
