"""ReSTR: patches and words through transformers alone, no convolution before the decoder.

The parts are in ``language.py`` and ``fusion.py``; this file only says how they work together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.restr.fusion import Answer, Fusion
from projects.restr.language import LanguageEncoder
from projects.restr.vision import ConvolutionalEncoder, VisualEncoder
from unified.errors import InputError
from unified.modeling.layers import masked_mean
from unified.modeling.pixel_masks import joined_masks, only_sentence, pixel_segmentation
from unified.modeling.vocabulary import PADDING
from unified.structures import (
    FeaturePyramid,
    ImageBatch,
    Reference,
    References,
    Segmentation,
    Target,
)

PatchLabel = Literal["any", "mean"]
PATCH_THRESHOLD = 0.8


class Restr(nn.Module):
    """Encode patches and words, fuse them in one transformer, classify patches, refine.

    Source: ReSTR (arXiv:2203.16768); released code SouthFlame/restr.

    Args:
        backbone: images (B, 3, H, W) of one size -> tokens (B, P, C).
        image_size: H and W; smaller images are padded to it.
        patch_size: pixels a side of the P patches.
        patch_label: a patch is foreground if "any" of its pixels is (the released code, whose
            pooling sums), or if most are ("mean", as printed).
        patch_weight: of the loss of patches.
        prior: share of foreground that scores of 0 stand for; 0.5 as released.
    """

    backbone: VisualEncoder | ConvolutionalEncoder
    reference_kinds = frozenset({"text"})
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: VisualEncoder | ConvolutionalEncoder,
        text_encoder: LanguageEncoder,
        fusion: Fusion,
        image_size: int = 480,
        patch_size: int = 16,
        patch_label: PatchLabel = "any",
        patch_weight: float = 0.1,
        prior: float = 0.5,
        pixel_mean: Sequence[float] = (127.5, 127.5, 127.5),
        pixel_std: Sequence[float] = (127.5, 127.5, 127.5),
    ) -> None:
        super().__init__()
        self.backbone, self.text_encoder, self.fusion = backbone, text_encoder, fusion
        self.image_size, self.patch_size = image_size, patch_size
        self.patch_label, self.patch_weight = patch_label, patch_weight
        self.shift = math.log(prior / (1 - prior))
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std), persistent=False)

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """B x (3, h, w) RGB in 0..255 -> a normalised batch, padded to the size of the model.

        Raises:
            InputError: an image is larger: there is a position code for so many patches only.
        """
        longest = max(max(image.shape[-2:]) for image in images)
        if longest > self.image_size:
            raise InputError(
                f"an image has a side of {longest} pixels, this model has positions for "
                f"{self.image_size}: set INFERENCE.MAX_SIZE (and INPUT.MAX_SIZE_TRAIN) to "
                f"{self.image_size} or less"
            )
        return ImageBatch.from_images(
            images, mean=self.pixel_mean, std=self.pixel_std, divisor=self.image_size
        )

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        """Patches as one level, as the fusion takes them."""
        tokens = self.backbone(images.tensor)
        height, width = images.padded_size
        grid = (height // self.patch_size, width // self.patch_size)
        patches = self.fusion.prepare_visual(tokens).transpose(1, 2).unflatten(2, grid)
        padding = F.interpolate(images.padding_mask[:, None].float(), size=grid)[:, 0].bool()
        return FeaturePyramid(
            levels=(patches,),
            padding_masks=(padding,),
            image_sizes=images.image_sizes,
            padded_size=images.padded_size,
        )

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        """B sentences -> their words, as the fusion takes them; padding stands at the left."""
        return self.encode_ids(self.text_encoder.table.tokenize(texts))

    def encode_ids(self, ids: Tensor) -> tuple[Reference, ...]:
        """Numbers of words (B, T), 0 where there is none."""
        padding_mask = ids == PADDING
        words = self.fusion.prepare_words(self.text_encoder(ids), padding_mask)
        return (Reference(words, words, padding_mask, masked_mean(words, padding_mask)),)

    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = 4,
    ) -> Segmentation:
        """One mask per image, whatever ``top_k``; its score is the mean probability inside."""
        answer = self.answer(features, references)
        logits = self._pixels(answer, features)
        return pixel_segmentation(logits, features, mask_stride=mask_stride)

    def answer(self, features: FeaturePyramid, references: Sequence[References]) -> Answer:
        """What the fusion says about each image.

        Raises:
            InputError: there is not exactly one sentence per image.
        """
        (words,) = only_sentence(references)
        patches = features.levels[0]
        size = (patches.shape[2], patches.shape[3])
        return self.fusion(patches.flatten(2).transpose(1, 2), words.keys, size)

    def losses(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        targets: Sequence[Target],
        *,
        mask_stride: int = 4,
    ) -> dict[str, Tensor]:
        """Mean cross-entropy of pixels, and weighted of patches.

        ``mask_stride`` has no say: pixels are compared at the input size.
        """
        answer, masks = self.answer(features, references), joined_masks(targets)
        pixels = self._pixels(answer, features).float()
        patches = answer.patch_logits.float() + self.shift
        patch = F.binary_cross_entropy_with_logits(patches, self.patch_labels(masks))
        return {
            "loss_pixel": F.binary_cross_entropy_with_logits(pixels, masks),
            "loss_patch": self.patch_weight * patch,
        }

    def patch_labels(self, masks: Tensor) -> Tensor:
        """Masks (B, 1, H, W) in {0, 1} -> labels (B, 1, h, w) of patches in {0, 1}."""
        share = F.avg_pool2d(masks, self.patch_size)
        if self.patch_label == "any":
            return (share > 0).to(masks)
        return (share > PATCH_THRESHOLD).to(masks)

    def _pixels(self, answer: Answer, features: FeaturePyramid) -> Tensor:
        logits = answer.pixel_logits + self.shift
        if logits.shape[-2:] == features.padded_size:
            return logits
        return F.interpolate(logits, size=features.padded_size, mode="bilinear", align_corners=True)
