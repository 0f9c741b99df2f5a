"""SLViT: a convolutional transformer that reads the sentence in every block.

The parts lie beside this file; here is how they work together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.slvit.backbone import LanguageMSCAN, Stage, Words
from projects.slvit.decoder import LightHamDecoder
from projects.slvit.enhance import SCORES, UncertainRegionEnhancement
from unified.errors import ConfigError
from unified.modeling.pixel_masks import joined_masks, only_sentence
from unified.modeling.text_encoder import TextEncoder
from unified.structures import (
    FeaturePyramid,
    ImageBatch,
    Reference,
    References,
    Segmentation,
    Size,
    Target,
)

STRIDE = 32  # of the coarsest level; sides of the input are multiples of it
CLASS_WEIGHTS = (0.9, 1.1)  # of background and object in the loss


@dataclass(frozen=True)
class Trace:
    """All that one pass computes: ``stages`` and their ``enhanced`` and ``decoded`` levels, finest
    first, ``uncertainty`` (B, h, w) and ``logits`` (B, 2, H / 4, W / 4)."""

    stages: list[Stage]
    uncertainty: Tensor
    enhanced: list[Tensor]
    decoded: list[Tensor]
    logits: Tensor


class SLViT(nn.Module):
    """Segments what one sentence refers to.

    Language enters every block of the backbone, so that of an image only the stem can be computed
    before the sentence is known: ``encode_image`` is the stem.

    Source: SLViT (IJCAI 2023) and its repository.

    Args:
        text_encoder: without projection: its words are the context of the backbone.
        input_size: (h, w) to which images are stretched, as published; None keeps their size and
            pads it to a multiple of 32.
        score: what tells the stages apart in the uncertain regions, see ``SCORES``. Published is
            "attn_sum", which is 1 everywhere up to rounding: its regions are arbitrary.
    """

    reference_kinds = frozenset({"text"})
    pixel_mean: Tensor
    pixel_std: Tensor
    class_weights: Tensor

    def __init__(
        self,
        *,
        backbone: LanguageMSCAN,
        text_encoder: TextEncoder,
        enhancement: UncertainRegionEnhancement,
        decoder: LightHamDecoder,
        input_size: Size | None = (480, 480),
        score: Literal["attn_sum", "logit_mean"] = "attn_sum",
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise ConfigError(f"score {score!r} of uncertain regions is unknown: {sorted(SCORES)}")
        if input_size is not None and any(side % STRIDE or side <= 0 for side in input_size):
            raise ConfigError(f"input size {input_size} must be two multiples of {STRIDE}")
        self.backbone = backbone
        self.text_encoder = text_encoder
        self.enhancement = enhancement
        self.squeeze = nn.ModuleList(nn.Conv2d(2 * dim, dim, 1) for dim in backbone.dims)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in backbone.dims)
        self.decoder = decoder
        self.input_size, self.score = input_size, score
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std), persistent=False)
        self.register_buffer("class_weights", torch.tensor(CLASS_WEIGHTS), persistent=False)

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """B x (3, h, w) RGB in 0..255 -> a normalised batch, stretched to the input size."""
        if self.input_size is not None:
            images = [_stretched(image, self.input_size) for image in images]
        return ImageBatch.from_images(
            images, mean=self.pixel_mean, std=self.pixel_std, divisor=STRIDE
        )

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        """The stem's features at stride 4: what does not depend on the sentence."""
        return FeaturePyramid(
            levels=(self.backbone.stem(images.tensor),),
            padding_masks=(images.padding_mask[:, ::4, ::4],),
            image_sizes=images.image_sizes,
            padded_size=images.padded_size,
        )

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        """B sentences -> their words, which are keys and values alike."""
        text = self.text_encoder(texts)
        words, padding_mask = text.words, text.padding_mask
        return (Reference(words, words, padding_mask, text.sentence),)

    def trace(self, stem: Tensor, words: Words, regions: Tensor | None = None) -> Trace:
        """One pass from the stem's features; ``regions`` (B, K) replaces the chosen ones."""
        stages = self.backbone(stem, words)
        score = SCORES[self.score]
        scores = [
            score(stage.attended, words.padding_mask).unflatten(1, stage.features.shape[-2:])
            for stage in stages
        ]
        uncertainty = self.enhancement.uncertainty(scores)
        if regions is None:
            regions = self.enhancement.select(uncertainty)
        levels = [stage.features for stage in stages]
        enhanced = self.enhancement(levels, regions)
        decoded = [
            F.relu(norm(squeeze(torch.cat(pair, dim=1)).movedim(1, -1)).movedim(-1, 1))
            for squeeze, norm, pair in zip(
                self.squeeze, self.norms, zip(enhanced, levels, strict=True), strict=True
            )
        ]
        return Trace(stages, uncertainty, enhanced, decoded, self.decoder(decoded))

    def class_logits(self, features: FeaturePyramid, references: Sequence[References]) -> Tensor:
        """Logits of background and object, (B, 2, H / 4, W / 4)."""
        (text,) = only_sentence(references)
        words = Words(text.keys, text.padding_mask)
        return self.trace(features.levels[0], words).logits

    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = 4,
    ) -> Segmentation:
        """One mask per image; its score is the mean probability inside it.

        Args:
            mask_stride: 4, or 1 for logits resized as published.
        """
        logits = self.class_logits(features, references)
        if mask_stride == 1:
            logits = _full_size(logits)
        return Segmentation.of_masks(logits[:, 1:] - logits[:, :1], features)

    def losses(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        targets: Sequence[Target],
        *,
        mask_stride: int = 4,
    ) -> dict[str, Tensor]:
        """Weighted cross-entropy of all pixels at input resolution, whatever the mask stride."""
        logits = _full_size(self.class_logits(features, references)).float()
        masks = joined_masks(targets)[:, 0].long()  # (B, H, W)
        return {"loss_mask": F.cross_entropy(logits, masks, weight=self.class_weights)}


def _stretched(image: Tensor, size: Size) -> Tensor:
    """(3, h, w) in 0..255 at another size, its aspect ratio ignored."""
    if tuple(image.shape[-2:]) == size:
        return image
    resized = F.interpolate(
        image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0]


def _full_size(logits: Tensor) -> Tensor:
    size = [4 * side for side in logits.shape[-2:]]
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
