"""UniFusion inside a SAM: sentences, examples and memory for a model that knows clicks.

SAM itself is behind three methods (``adapters.py``) and stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from projects.sam.adapters import PromptableModel, Sam
from projects.sam.cache import EmbeddingCache
from projects.sam.context import Context
from projects.sam.fusion import DeepFusion
from projects.sam.losses import MaskLosses
from projects.sam.maps import at_stride, boxes_of, coarse_prompt, on_image, size
from projects.sam.mask_encoder import PatchMaskEncoder, SamMaskEncoder
from projects.sam.pyramid import PointReference, SamPyramid, SentenceReference, covered, largest
from unified.errors import ConfigError, InputError
from unified.masks import mean_logits
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
    once,
)


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
        context: what else the fusion sees of a picture.
        decoder: a mask decoder of its own for sentences and masks, so that the SAM's stays as it is
            for points and boxes; None shares that of the SAM.
        second_pass: the SAM inside is asked about the box of what was found, see ``look_again``.
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
        mask_encoder: SamMaskEncoder | PatchMaskEncoder | None = None,
        context: Context | None = None,
        decoder: nn.Module | None = None,
        second_pass: bool = False,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        criterion: MaskLosses | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        super().__init__()
        self.sam, self.cache = sam, cache
        self.fusion, self.text_encoder, self.mask_encoder = fusion, text_encoder, mask_encoder
        self.context, self.decoder, self.second_pass = context, decoder, second_pass
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
            padding_masks=(resize_padding_mask(images.padding_mask, size(embedding)),),
            image_sizes=images.image_sizes,
            padded_size=images.padded_size,
            extras=tuple(extras),
            context=None
            if self.context is None
            else self.context(
                *self.context.encode(
                    pixels * self.pixel_std[:, None, None] + self.pixel_mean[:, None, None]
                )
            ),
        )

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        """B sentences -> their words."""
        if self.text_encoder is None:
            raise ConfigError("this model has no text encoder: it cannot follow a sentence")
        text = self.text_encoder(texts)
        return (SentenceReference(text.words, text.words, text.padding_mask, text.sentence),)

    def encode_mask(
        self, images: ImageBatch, features: FeaturePyramid, masks: Tensor
    ) -> tuple[Reference, ...]:
        """Masks (B, H, W) of the padded size -> keys from the embedding, values from the masks."""
        if self.mask_encoder is None:
            raise ConfigError("this model has no mask encoder: it cannot follow a mask")
        tokens = self.seen(features)
        if isinstance(self.mask_encoder, PatchMaskEncoder):
            part = covered(features, pooled=2)
            return (self.mask_encoder.refer(images.tensor, masks, tokens, part),)
        return (self.mask_encoder.refer(images.tensor, masks, tokens),)

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

        One point alone, and with a decoder of its own a sentence alone, get the best of several
        masks, everything else the one for clear prompts.

        Raises:
            InputError: there is no reference: SAM does not look for objects by itself.
        """
        levels = [level for (level,) in references]
        pointed = any(isinstance(level, PointReference) and level.ambiguous for level in levels)
        by_sentence = all(isinstance(level, SentenceReference) for level in levels)
        several = top_k > 1 or pointed or (by_sentence and self.decoder is not None)
        logits, scores = self.decode(features, references, several=several)
        best = scores.topk(min(top_k, scores.shape[1]), dim=1).indices  # (B, K)
        logits = logits[torch.arange(len(best), device=best.device)[:, None], best]
        alone = all(isinstance(level, PointReference) for level in levels)
        if self.second_pass and top_k == 1 and not alone:
            logits = self.look_again(features, logits)
        scores = scores.gather(1, best).float().clamp(0, 1)
        return Segmentation.of_masks(at_stride(logits, features, mask_stride), features, scores)

    def look_again(self, features: FeaturePyramid, logits: Tensor) -> Tensor:
        """The mean of masks (B, 1, h, w) and what the SAM inside says of the boxes around them.

        Its edges are sharper where no reference changed its embedding; empty masks stay.
        """
        assert isinstance(features, SamPyramid)
        found = on_image(logits, features) > 0
        for mask, (height, width) in zip(found, features.image_sizes, strict=True):
            mask[height:], mask[:, width:] = False, False
        boxes, some = boxes_of(found)
        sparse, dense = self.sam.encode_prompts(len(boxes), boxes=boxes)
        again, _ = self._masks(features, features.levels[0], sparse, dense, several=False)
        return torch.where(some[:, None, None, None], mean_logits(logits, again), logits)

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
        logits, scores, _ = self.answer(features, levels, several=several)
        return logits, scores

    def answer(
        self, features: FeaturePyramid, levels: Sequence[Reference], *, several: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As ``decode``, of at least one reference, and the coarse mask of ``fuse``."""
        shown = [level for level in levels if isinstance(level, PointReference)]
        injected = [level for level in levels if not isinstance(level, PointReference)]
        assert isinstance(features, SamPyramid)
        fused, coarse = self.fuse(features, injected)
        if coarse is None:
            sparse, dense = self.sam.encode_prompts(len(features))
            summary = [] if shown else [injected[0].summary[:, None]]
        else:
            prompt = coarse_prompt(coarse, self.sam.image_size)
            sparse, dense = self.sam.encode_prompts(len(features), **prompt)
            summary = [injected[0].summary[:, None]]
        tokens = [*summary, sparse, *(level.keys for level in shown)]
        logits, scores = self._masks(
            features,
            fused,
            torch.cat(tokens, dim=1),
            dense,
            several=several,
            decoder=self.decoder if injected else None,
        )
        return logits, scores, coarse

    def _masks(
        self,
        features: SamPyramid,
        embedding: Tensor,
        sparse: Tensor,
        dense: Tensor,
        *,
        several: bool,
        decoder: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As of ``PromptableModel``, by ``decoder`` if there is one."""
        options: dict[str, Any] = {} if decoder is None else {"decoder": decoder}
        if isinstance(self.sam, Sam):
            options["shown"] = largest(covered(features, margin=1))
        return self.sam.decode_masks(
            (embedding, *features.extras), sparse, dense, several=several, **options
        )

    def fuse(
        self, features: FeaturePyramid, references: Sequence[Reference]
    ) -> tuple[Tensor, Tensor | None]:
        """The embedding (B, C, h, w) after every reference was injected.

        With ``DeepFusion`` and references also the coarse mask (B, h, w) that it found, in logits.
        Padding counts for sentences alone, as in training: what they find depends on it.
        """
        (embedding,) = features.levels
        if not references:
            return embedding, None
        if self.fusion is None:
            raise ConfigError("this model has no fusion layer: it follows points and boxes only")
        seen = self.seen(features)
        if isinstance(self.fusion, DeepFusion):
            said = all(isinstance(level, SentenceReference) for level in references)
            part = None if said else covered(features, pooled=2)
            added, coarse = self.fusion.found(seen, references, part)
        else:
            added, coarse = self.fusion(seen, references) - seen, None
        fused = embedding + rearrange(added, "b (h w) c -> b c h w", h=embedding.shape[-2])
        return fused, coarse

    def seen(self, features: FeaturePyramid) -> Tensor:
        """What the fusion sees of each pixel, (B, h * w, C)."""
        assert isinstance(features, SamPyramid)
        (embedding,) = features.levels
        seen = once(embedding)
        if features.context is not None:
            seen = seen + once(features.context)
        return rearrange(seen, "b c h w -> b (h w) c").expand(len(embedding), -1, -1)

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
        return self.criterion(at_stride(logits, features, 1), scores, joined_masks(targets))
