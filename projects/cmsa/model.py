"""CMSA: a sentence and a picture attend to each other pair by pair, on three levels.

The parts are in ``attention.py`` and ``gates.py``; this file only says how they work together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.cmsa.attention import CrossModalSelfAttention
from projects.cmsa.gates import GATES
from unified.modeling.backbones.base import Backbone
from unified.modeling.layers import masked_mean, xavier_init
from unified.modeling.pixel_masks import joined_masks, only_sentence, pixel_segmentation
from unified.modeling.vocabulary import PADDING, WordTable
from unified.structures import (
    FeaturePyramid,
    ImageBatch,
    Reference,
    References,
    Segmentation,
    Target,
    upload,
)

STAGES = ("res3", "res4", "res5")
EMBEDDING_RANGE = 0.08
WEIGHT_PENALTY = 5e-4  # times half the squared weights of two layers is added to the loss


class Cmsa(nn.Module):
    """Encode the image and the words, pair them, attend, gate, score every cell.

    Source: CMSA (arXiv:1904.04745), section 3; released code lwye/CMSA-Net.
    """

    reference_kinds = frozenset({"text"})
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        text_encoder: WordTable,
        visual_dim: int = 1000,
        inner_dims: Sequence[int] = (64, 128, 512),
        reduced_dims: Sequence[int] = (128, 256),
        fusion_dim: int = 500,
        gate: str = "code",
        image_size: int = 320,
        pixel_mean: Sequence[float] = (122.679, 116.669, 104.007),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        """
        Args:
            visual_dim: of the coarsest level once it is reduced.
            inner_dims: of the attention on res3, res4 and res5.
            reduced_dims: of the pairs on res3 and res4.
            fusion_dim: of the levels that are gated.
            gate: a key of ``GATES``.
            image_size: images are padded to a multiple of it.
        """
        super().__init__()
        self.backbone, self.text_encoder = backbone, text_encoder
        nn.init.uniform_(text_encoder.table.weight, -EMBEDDING_RANGE, EMBEDDING_RANGE)
        self.reduce = nn.Conv2d(backbone.channels["res5"], visual_dim, 1)
        dims = (backbone.channels["res3"], backbone.channels["res4"], visual_dim)
        self.attentions = nn.ModuleList(
            CrossModalSelfAttention(
                visual_dim=dim,
                word_dim=text_encoder.table.embedding_dim,
                inner_dim=inner,
                out_dim=fusion_dim,
                reduced_dim=reduced,
            )
            for dim, inner, reduced in zip(dims, inner_dims, (*reduced_dims, None), strict=True)
        )
        self.fusion = GATES[gate](fusion_dim)
        self.score = nn.Conv2d(fusion_dim, 1, 3, padding=1)
        xavier_init(self.reduce, self.score)
        self.image_size = image_size
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std), persistent=False)

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """B x (3, h, w) RGB in 0..255 -> a normalised batch, padded to the published square."""
        return ImageBatch.from_images(
            images, mean=self.pixel_mean, std=self.pixel_std, divisor=self.image_size
        )

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        """res3, res4 and the reduced res5, each vector of length 1, all on the grid of res3."""
        stages = self.backbone(images.tensor)
        return self.pyramid([stages[name] for name in STAGES], images)

    def pyramid(self, stages: Sequence[Tensor], images: ImageBatch) -> FeaturePyramid:
        """Levels of the backbone's res3, res4 and res5; the trunk of DeepLab has one grid."""
        grid = stages[0].shape[-2:]
        levels = []
        for stage in (*stages[:2], self.reduce(stages[2])):
            if stage.shape[-2:] != grid:
                stage = F.interpolate(stage, size=grid, mode="bilinear", align_corners=False)
            levels.append(F.normalize(stage, dim=1))
        padding = F.interpolate(images.padding_mask[:, None].float(), size=grid)[:, 0].bool()
        return FeaturePyramid(
            levels=tuple(levels),
            padding_masks=(padding,) * len(levels),
            image_sizes=images.image_sizes,
            padded_size=images.padded_size,
        )

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        """B sentences -> the same words, each vector of length 1, at every level."""
        return self.encode_ids(self.text_encoder.tokenize(texts))

    def encode_ids(self, ids: Tensor) -> tuple[Reference, ...]:
        """Numbers of words (B, T), 0 where there is none."""
        words, padding_mask = F.normalize(self.text_encoder(ids), dim=2), ids == PADDING
        summary = masked_mean(words, padding_mask)
        return (Reference(words, words, padding_mask, summary),) * len(self.attentions)

    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = 4,
    ) -> Segmentation:
        """One mask per image, whatever ``top_k``; its score is the mean probability inside."""
        logits = self.logits(features, references)
        return pixel_segmentation(logits, features, mask_stride=mask_stride)

    def logits(self, features: FeaturePyramid, references: Sequence[References]) -> Tensor:
        """(B, 1, H, W) at the padded input size, above 0 where the sentence refers to.

        Raises:
            InputError: there is not exactly one sentence per image.
        """
        sentence = only_sentence(references)
        return resize_from_corner(
            self.score(self.fusion(self.attended(features, sentence))), features.padded_size
        )

    def attended(self, features: FeaturePyramid, reference: References) -> list[Tensor]:
        """Levels 3 x (B, C, h, w) that have attended to the sentence, the coarsest first."""
        paired = [
            attention(level, one.keys, one.padding_mask)
            for attention, level, one in zip(
                self.attentions, features.levels, reference, strict=True
            )
        ]
        return paired[::-1]

    def losses(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        targets: Sequence[Target],
        *,
        mask_stride: int = 4,
    ) -> dict[str, Tensor]:
        """Cross-entropy summed over the pixels of an image, mean over images, and the penalty.

        ``mask_stride`` has no say: pixels are compared at the input size.
        """
        logits = self.logits(features, references).float()
        entropy = F.binary_cross_entropy_with_logits(logits, joined_masks(targets), reduction="sum")
        squares = self.reduce.weight.square().sum() + self.score.weight.square().sum()
        return {
            "loss_pixel": entropy / len(targets),
            "loss_weights": WEIGHT_PENALTY / 2 * squares,
        }


def resize_from_corner(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize in which output pixel i looks at i / scale, not at the pixels' centres.

    Source: TensorFlow 1, ``tf.image.resize_bilinear`` as it is by default.

    Args:
        maps: (B, C, h, w).

    Returns:
        (B, C, *size).
    """
    for dim, length in zip((-2, -1), size, strict=True):
        given = maps.shape[dim]
        exact = torch.promote_types(maps.dtype, torch.float32)
        place = torch.arange(length, dtype=exact) * (given / length)
        low = place.floor()
        shape = (-1, 1) if dim == -2 else (-1,)
        weight = upload((place - low).view(shape).to(maps.dtype), maps.device)
        first = upload(low.long().clamp(max=given - 1), maps.device)
        second = (first + 1).clamp(max=given - 1)
        maps = torch.lerp(maps.index_select(dim, first), maps.index_select(dim, second), weight)
    return maps
