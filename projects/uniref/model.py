"""UniRef: one model that segments what a sentence or a mask refers to.

The parts come from ``unified.modeling``; this file only says how they work together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from projects.uniref.auxiliary import FeatureStages
from unified.errors import ConfigError
from unified.modeling.criterion import Criterion, LayerPrediction
from unified.modeling.detr_head import DetrHead, Queries
from unified.modeling.fusion import FusionLayer
from unified.modeling.layers import masked_mean
from unified.modeling.mask_encoder import MaskEncoder
from unified.modeling.mask_head import MaskHead
from unified.modeling.neck import Neck
from unified.modeling.precision import halve_only, in_stored_precision
from unified.modeling.selection import select_in_steps, select_queries
from unified.modeling.text_encoder import TextEncoder, TextFeatures
from unified.structures import (
    MASK_STRIDE,
    FeaturePyramid,
    ImageBatch,
    Reference,
    References,
    Segmentation,
    Target,
    upload,
)

PROPOSED_NMS = 0.9


class UniRef(nn.Module):
    """Encode the image, encode its references, fuse, segment.

    Source: UniRef++ (arXiv:2312.15715), section 3.

    Attributes:
        stores_half, compiled_parts: see ``unified.inference.prepared``.

    Args:
        auxiliary_losses: by name, see ``AuxiliaryLoss``; for training only.
    """

    detects: Literal[True] = True
    stores_half: ClassVar[bool] = True
    compiled_parts: ClassVar[tuple[str, ...]] = ("backbone", "neck", "mask_encoder", "head")

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: Neck,
        head: DetrHead,
        mask_head: MaskHead,
        fusion: FusionLayer | None = None,
        text_encoder: TextEncoder | None = None,
        mask_encoder: MaskEncoder | None = None,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        size_divisor: int = 32,
        nms_threshold: float = 0.7,
        criterion: Criterion | None = None,
        auxiliary_losses: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.mask_head = mask_head
        self.fusion = fusion
        self.text_encoder = text_encoder
        self.mask_encoder = mask_encoder
        self.size_divisor, self.nms_threshold = size_divisor, nms_threshold
        self.criterion = Criterion() if criterion is None else criterion
        self.auxiliary_losses = nn.ModuleDict(auxiliary_losses)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> UniRef:
        """Where ``to(torch.bfloat16)`` and the like end up; see ``unified.modeling.precision``."""
        parts = ("backbone.", "mask_encoder.", "fusion.")
        super()._apply(halve_only(self, parts, fn), recurse)
        return self

    @property
    def reference_kinds(self) -> frozenset[str]:
        """The subset of {"text", "mask"} that this model understands."""
        kinds = {"text": self.text_encoder, "mask": self.mask_encoder}
        return frozenset(name for name, encoder in kinds.items() if encoder is not None)

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """B x (3, h, w) RGB in 0..255 -> a normalised, padded batch on the model's device."""
        return ImageBatch.from_images(
            images, mean=self.pixel_mean, std=self.pixel_std, divisor=self.size_divisor
        )

    @in_stored_precision
    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        """Backbone features at strides 8 to 64, and the raw stride-4 map for masks."""
        stages = self.backbone(images.tensor)
        levels, padding_masks = self.neck(stages, images.padding_mask)
        return FeaturePyramid(
            levels=levels,
            padding_masks=padding_masks,
            image_sizes=images.image_sizes,
            padded_size=images.padded_size,
            high_res=stages["res2"],
        )

    @in_stored_precision
    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        """B sentences -> the same words as reference at every level."""
        if self.text_encoder is None:
            raise ConfigError("this model has no text encoder: it cannot follow a sentence")
        return self.text_reference(self.text_encoder(texts))

    @property
    def sentence_ends(self) -> tuple[str, ...]:
        """See ``TokenSegmenter``."""
        return ("",)

    @in_stored_precision
    def encode_tokens(self, rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Reference, ...]:
        """As ``encode_text``, of tokens."""
        assert self.text_encoder is not None
        return self.text_reference(self.text_encoder.encode_ids(*rows[0]))

    def text_reference(self, text: TextFeatures) -> tuple[Reference, ...]:
        """Encoded sentences as a reference: keys and values are the words, at every level."""
        reference = Reference(
            keys=text.words,
            values=text.words,
            padding_mask=text.padding_mask,
            summary=text.sentence,
        )
        return (reference,) * len(self.neck.input_proj)

    @in_stored_precision
    def encode_mask(
        self, images: ImageBatch, features: FeaturePyramid, masks: Tensor
    ) -> tuple[Reference, ...]:
        """Masks (B, H, W) of the padded size -> keys from the features, values from the masks."""
        if self.mask_encoder is None:
            raise ConfigError("this model has no mask encoder: it cannot follow a mask")
        values = self.mask_encoder(images.tensor, masks, features.levels)
        references = []
        for level, value, padding in zip(
            features.levels, values, features.padding_masks, strict=True
        ):
            keys = rearrange(level, "b c h w -> b (h w) c")
            padding_mask = padding.flatten(1)
            references.append(
                Reference(
                    keys=keys,
                    values=rearrange(value, "b c h w -> b (h w) c"),
                    padding_mask=padding_mask,
                    summary=masked_mean(keys, padding_mask),
                )
            )
        return tuple(references)

    def fuse(
        self, features: FeaturePyramid, references: Sequence[References]
    ) -> tuple[Tensor, ...]:
        """Feature levels L x (B, C, H_l, W_l) after every reference was injected."""
        if not references:
            return features.levels
        if self.fusion is None:
            raise ConfigError("this model has no fusion layer: it only detects")
        levels = []
        for index, level in enumerate(features.levels):
            tokens = rearrange(level, "b c h w -> b (h w) c")
            fused = self.fusion(tokens, [reference[index] for reference in references])
            levels.append(rearrange(fused, "b (h w) c -> b c h w", h=level.shape[-2]))
        return tuple(levels)

    @in_stored_precision
    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = MASK_STRIDE,
    ) -> Segmentation:
        """The best queries of every image and the masks of those only.

        Args:
            features: of B images.
            references: one entry per kind, each with L levels of batch B; empty for detection.
            top_k: queries kept; above 1 after non-maximum suppression.
            mask_stride: 4, or 1 for masks at the padded input size.

        Returns:
            K is the largest number of queries that survive in an image; where fewer do, the rest
            has score 0 and an empty box.
        """
        return self._segment(features, references, top_k, mask_stride, self.nms_threshold)

    @in_stored_precision
    def propose(
        self, features: FeaturePyramid, references: Sequence[References], *, top_k: int
    ) -> Segmentation:
        """As ``segment`` for a chooser, which compares masks: boxes are suppressed less."""
        return self._segment(features, references, top_k, MASK_STRIDE, PROPOSED_NMS)

    def _segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        top_k: int,
        mask_stride: int,
        nms_threshold: float,
    ) -> Segmentation:
        queries = self.head(self.fuse(features, references), features.padding_masks)
        last, boxes = self.head.num_layers - 1, queries.references[-1]
        shared = self.mask_head.features(queries.memory, features.high_res)
        index, scores, classes = self._best(queries, top_k, nms_threshold)
        return Segmentation(
            mask_logits=self.decode_masks(
                queries, shared, features.image_sizes, last, index, mask_stride=mask_stride
            ),
            scores=scores,
            boxes=boxes.gather(1, index[..., None].expand(-1, -1, 4)) * (scores > 0)[..., None],
            classes=classes,
        )

    def _best(
        self, queries: Queries, top_k: int, nms_threshold: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, scores in float32 (of those in half little is left) and classes, each (B, K)."""
        logits = self.head.logits(queries, self.head.num_layers - 1).float()
        boxes = queries.references[-1]
        if torch.compiler.is_compiling():
            return select_in_steps(logits, boxes, top_k, self.nms_threshold)
        picked = [
            select_queries(*image, top_k, nms_threshold)
            for image in zip(logits, boxes, strict=True)
        ]
        num = max(len(index) for index, _, _ in picked)
        index, scores, classes = (
            torch.stack([F.pad(part, (0, num - len(part))) for part in parts])
            for parts in zip(*picked, strict=True)
        )
        return index, scores, classes

    @in_stored_precision
    def losses(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        targets: Sequence[Target],
        *,
        mask_stride: int = MASK_STRIDE,
    ) -> dict[str, Tensor]:
        """Weighted losses of all decoder layers and the proposals; their sum is the objective.

        Args:
            features, references: as for ``segment``.
            targets: B, masks at the padded input size.
            mask_stride: stride at which masks are compared, 4 or 1.
        """
        fused = self.fuse(features, references)
        queries = self.head(fused, features.padding_masks)
        shared = self.mask_head.features(queries.memory, features.high_res)

        sizes = _widths_and_heights(features.image_sizes, queries.references[0])

        def decode(layer: int, images: Tensor, index: Tensor) -> Tensor:
            places = images * queries.references[layer].shape[1] + index
            centres = queries.references[layer].flatten(0, 1).index_select(0, places)[:, :2]
            return self.mask_head(
                shared.index_select(0, images),
                queries.hidden[layer].flatten(0, 1).index_select(0, places)[:, None],
                (centres * sizes[images])[:, None],
                mask_stride=mask_stride,
            )[:, 0]

        losses = self.criterion(
            [
                LayerPrediction(self.head.logits(queries, layer), self.head.boxes(queries, layer))
                for layer in range(self.head.num_layers)
            ],
            LayerPrediction(queries.proposals.logits, self.head.proposal_boxes(queries.proposals)),
            targets,
            decode,
            mask_stride=mask_stride,
        )
        stages = FeatureStages(features.levels, fused, queries.memory)
        for auxiliary in self.auxiliary_losses.values():
            losses |= auxiliary(self, stages, references, targets)
        return losses

    def decode_masks(
        self,
        queries: Queries,
        shared: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        layer: int,
        index: Tensor,
        *,
        mask_stride: int,
    ) -> Tensor:
        """Mask logits of chosen queries of one decoder layer.

        Args:
            shared: (B, 8, H/4, W/4) from ``mask_head.features``.
            image_sizes: B x (h, w) before padding.
            index: (B, K) queries.

        Returns:
            (B, K, H / mask_stride, W / mask_stride).
        """

        def take(x: Tensor) -> Tensor:
            return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))

        centres = take(queries.references[layer])[..., :2]
        points = centres * _widths_and_heights(image_sizes, centres)[:, None]
        hidden = take(queries.hidden[layer])
        return self.mask_head(shared, hidden, points, mask_stride=mask_stride)


def _widths_and_heights(sizes: Sequence[tuple[int, int]] | Tensor, boxes: Tensor) -> Tensor:
    """B x (h, w) as (B, 2), (w, h): what makes pixels of relative coordinates.

    In the dtype of boxes: half precision cannot hold the width of every image. In an exported
    program sizes are a tensor.
    """
    if isinstance(sizes, Tensor):
        return sizes.flip(-1).to(boxes.dtype)
    return upload(torch.tensor([(w, h) for h, w in sizes], dtype=boxes.dtype), boxes.device)
