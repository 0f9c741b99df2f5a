"""UniFusion inside a SAM: sentences, examples and memory for a model that knows clicks.

SAM itself is behind three methods (``adapters.py``) and stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from projects.sam.adapters import PromptableModel
from projects.sam.cache import EmbeddingCache
from projects.sam.losses import MaskLosses
from projects.sam.mask_encoder import SamMaskEncoder
from unified.errors import ConfigError, InputError
from unified.modeling.fusion import FusionLayer
from unified.modeling.layers import resize_padding_mask
from unified.modeling.pixel_masks import joined_masks
from unified.modeling.text_encoder import TextEncoder
from unified.structures import (
    MASK_STRIDE,
    FeaturePyramid,
    ImageBatch,
    Reference,
    References,
    Segmentation,
    Target,
)


@dataclass(frozen=True, kw_only=True)
class SamPyramid(FeaturePyramid):
    """SAM's embedding as the one level, with what else its decoder needs.

    Attributes:
        extras: tensors (B, ...).
    """

    extras: tuple[Tensor, ...] = ()

    def expand(self, num: int) -> SamPyramid:
        """As of every pyramid."""
        expanded = super().expand(num)
        assert isinstance(expanded, SamPyramid)
        extras = tuple(extra.expand(num, *extra.shape[1:]) for extra in self.extras)
        return replace(expanded, extras=extras)


@dataclass(frozen=True, kw_only=True)
class PointReference(Reference):
    """Points and boxes as SAM's own sparse tokens, in keys and values.

    Attributes:
        ambiguous: one point may mean a thing or a part of it.
    """

    ambiguous: bool


class SamUniFusion(nn.Module):
    """Encode the image, encode its references, fuse them into the embedding, decode one mask.

    What a reference says as a whole (``summary``) is the prompt token of SAM's decoder, unless
    there are points or a box: then those are, and references change the embedding alone. So a
    fusion layer that is still the identity gives the masks of the SAM inside.

    Source: UniRef++ (arXiv:2312.15715), section 4.4, and UniRef's SAM variant.

    Args:
        sam: any model with the three methods of ``PromptableModel``; an ``nn.Module`` to be saved
            and moved with this one.
        fusion: as wide as the embedding.
        pixel_mean, pixel_std: RGB on the 0..255 scale, as the SAM was trained.
        criterion: losses, for training.
        cache: where the embeddings of a frozen encoder are kept in training.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        sam: PromptableModel,
        *,
        fusion: FusionLayer | None = None,
        text_encoder: TextEncoder | None = None,
        mask_encoder: SamMaskEncoder | None = None,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        criterion: MaskLosses | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        super().__init__()
        self.sam, self.cache = sam, cache
        self.fusion, self.text_encoder, self.mask_encoder = fusion, text_encoder, mask_encoder
        self.criterion = MaskLosses() if criterion is None else criterion
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std), persistent=False)

    @property
    def reference_kinds(self) -> frozenset[str]:
        """Points and boxes as of every SAM, text and masks if there are encoders for them."""
        kinds = {"text": self.text_encoder, "mask": self.mask_encoder}
        known = {name for name, encoder in kinds.items() if encoder is not None}
        return frozenset(known | {"point", "box"})

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """B x (3, h, w) RGB in 0..255 -> a normalised batch, padded to SAM's square.

        Raises:
            InputError: an image is larger.
        """
        longest, side = max(max(image.shape[-2:]) for image in images), self.sam.image_size
        if longest > side:
            raise InputError(
                f"an image has a side of {longest} pixels, this SAM sees {side}: set "
                f"INFERENCE.MAX_SIZE (and INPUT.MAX_SIZE_TRAIN) to {side} or less"
            )
        return ImageBatch.from_images(
            images, mean=self.pixel_mean, std=self.pixel_std, divisor=side
        )

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        """SAM's embedding as the one level."""
        encode, pixels = self.sam.encode_image, images.tensor
        cached = self.training and self.cache is not None
        embedding, *extras = self.cache(encode, pixels) if cached else encode(pixels)
        return SamPyramid(
            levels=(embedding,),
            padding_masks=(resize_padding_mask(images.padding_mask, _size(embedding)),),
            image_sizes=images.image_sizes,
            padded_size=images.padded_size,
            extras=tuple(extras),
        )

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        """B sentences -> their words."""
        if self.text_encoder is None:
            raise ConfigError("this model has no text encoder: it cannot follow a sentence")
        text = self.text_encoder(texts)
        return (Reference(text.words, text.words, text.padding_mask, text.sentence),)

    def encode_mask(
        self, images: ImageBatch, features: FeaturePyramid, masks: Tensor
    ) -> tuple[Reference, ...]:
        """Masks (B, H, W) of the padded size -> keys from the embedding, values from the masks.

        Padding counts as image, as in the reference.
        """
        if self.mask_encoder is None:
            raise ConfigError("this model has no mask encoder: it cannot follow a mask")
        (embedding,) = features.levels
        keys = _tokens(embedding)
        values = _tokens(self.mask_encoder(images.tensor, masks, embedding))
        nothing = torch.zeros(keys.shape[:2], dtype=torch.bool, device=keys.device)
        return (Reference(keys, values, nothing, keys.mean(dim=1)),)

    def encode_points(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None
    ) -> tuple[Reference, ...]:
        """Points and boxes of B objects -> SAM's sparse tokens; see ``PointSegmenter``."""
        given = points if boxes is None else boxes
        assert given is not None, "there is at least a point or a box"
        sparse, _ = self.sam.encode_prompts(len(given), points=points, labels=labels, boxes=boxes)
        return (
            PointReference(
                keys=sparse,
                values=sparse,
                padding_mask=torch.zeros(sparse.shape[:2], dtype=torch.bool, device=sparse.device),
                summary=sparse.mean(dim=1),
                ambiguous=boxes is None and points is not None and points.shape[1] == 1,
            ),
        )

    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = MASK_STRIDE,
    ) -> Segmentation:
        """The best of SAM's masks of every image; scores are its predicted IoU.

        One point alone gets the best of several masks, everything else the one for clear prompts.

        Raises:
            InputError: there is no reference: SAM does not look for objects by itself.
        """
        several = top_k > 1 or any(
            isinstance(level, PointReference) and level.ambiguous for (level,) in references
        )
        logits, scores = self.decode(features, references, several=several)
        best = scores.topk(min(top_k, scores.shape[1]), dim=1).indices  # (B, K)
        logits = logits[torch.arange(len(best), device=best.device)[:, None], best]
        found = Segmentation.of_masks(_at_stride(logits, features, mask_stride), features)
        visible = found.scores > 0
        return replace(found, scores=scores.gather(1, best).float().clamp(0, 1) * visible)

    def decode(
        self, features: FeaturePyramid, references: Sequence[References], *, several: bool
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (B, K, 4h, 4w) and predicted IoU (B, K) of references to each image."""
        if not references:
            raise InputError(
                "a SAM segments what it is shown: give a text, a mask, a point or a box, or take "
                "a model that detects"
            )
        levels = [level for (level,) in references]
        shown = [level for level in levels if isinstance(level, PointReference)]
        told = [level for level in levels if not isinstance(level, PointReference)]
        assert isinstance(features, SamPyramid)
        sparse, dense = self.sam.encode_prompts(len(features))
        sparse = shown[0].keys if shown else torch.cat([told[0].summary[:, None], sparse], dim=1)
        embedding = (self.fuse(features, told), *features.extras)
        return self.sam.decode_masks(embedding, sparse, dense, several=several)

    def fuse(self, features: FeaturePyramid, references: Sequence[Reference]) -> Tensor:
        """The embedding (B, C, h, w) after every reference was injected."""
        (embedding,) = features.levels
        if not references:
            return embedding
        if self.fusion is None:
            raise ConfigError("this model has no fusion layer: it follows points and boxes only")
        fused = self.fusion(_tokens(embedding), references)
        return rearrange(fused, "b (h w) c -> b c h w", h=embedding.shape[-2])

    def losses(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        targets: Sequence[Target],
        *,
        mask_stride: int = MASK_STRIDE,
    ) -> dict[str, Tensor]:
        """Weighted losses of the one mask of each image.

        ``mask_stride`` has no say: masks are compared at the input size, as in the reference.
        """
        logits, scores = self.decode(features, references, several=False)
        return self.criterion(_at_stride(logits, features, 1), scores, joined_masks(targets))


def _at_stride(logits: Tensor, features: FeaturePyramid, stride: int) -> Tensor:
    """SAM's masks (B, K, 4h, 4w), bilinear at ``stride`` of the padded input."""
    height, width = (side // stride for side in features.padded_size)
    if _size(logits) == (height, width):
        return logits
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _tokens(embedding: Tensor) -> Tensor:
    return rearrange(embedding, "b c h w -> b (h w) c")
