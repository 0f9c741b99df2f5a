"""GroupViT: groups of pixels that learn from captions alone what they are called.

The parts lie beside this file; here is how they work together.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.groupvit.image_encoder import Grouped, ImageEncoder
from projects.groupvit.losses import image_text_loss, multi_label_loss
from projects.groupvit.text_encoder import TextTransformer
from projects.groupvit.tokenizer import unknown_words
from projects.groupvit.zero_shot import (
    class_scores,
    filled,
    group_affinity,
    mean_of_prompts,
    slide,
    winning_groups,
)
from unified.errors import ConfigError, InputError
from unified.modeling.pixel_masks import only_sentence
from unified.modeling.vocabulary import WordTable
from unified.structures import (
    FeaturePyramid,
    ImageBatch,
    Reference,
    References,
    Segmentation,
    Target,
)

logger = logging.getLogger(__name__)

MAX_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class GroupFeatures(FeaturePyramid):
    """An image as groups: ``levels`` is one map (B, G, h, w), how much each patch is of each group.

    Attributes:
        image: (B, D) direction of the whole image in the space shared with texts.
        groups: (B, G, D) directions of its groups; None in training, where only the whole image is
            compared with texts.
    """

    image: Tensor
    groups: Tensor | None

    def expand(self, num: int) -> GroupFeatures:
        """The features of one image (B = 1) repeated ``num`` times as views."""
        repeated = super().expand(num)
        assert isinstance(repeated, GroupFeatures)
        groups = None if self.groups is None else self.groups.expand(num, -1, -1)
        return replace(repeated, image=self.image.expand(num, -1), groups=groups)


@dataclass(frozen=True, kw_only=True)
class Caption(Reference):
    """A sentence, and (B, K, D) directions of prompts of its nouns, if those are learned from."""

    labels: Tensor | None

    def __getitem__(self, images: slice | Sequence[int]) -> Caption:
        """The captions of some images of the batch."""
        chosen = super().__getitem__(images)
        assert isinstance(chosen, Caption)
        return replace(chosen, labels=None if self.labels is None else self.labels[images])


class GroupViT(nn.Module):
    """Finds what texts name, having seen images with captions only.

    Source: GroupViT (arXiv:2202.11094) and its code.

    Args:
        tokenize: B sentences -> token ids (B, N); None if only ids are given.
        out_dim: D of the space that images and texts share.
        hidden_dim: of the two projectors.
        num_labels: K, nouns of each caption that are prompts of their own in the multi-label loss;
            0 leaves it out.
        prompts_of: (caption, K) -> K prompts; needed if ``num_labels`` is not 0.
        templates: sentences with a gap, one class name in each, for zero-shot classes.
        background: probability below which a pixel is of no class; None: every pixel is of one.
        window, stride: of the sliding window over large images.
    """

    reference_kinds = frozenset({"text"})
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        text_encoder: TextTransformer,
        tokenize: Callable[[Sequence[str]], Tensor] | None = None,
        out_dim: int = 256,
        hidden_dim: int = 4096,
        num_labels: int = 0,
        prompts_of: Callable[[str, int], list[str]] | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
        background: float | None = None,
        window: int = 448,
        stride: int = 224,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        if num_labels and prompts_of is None:
            raise ConfigError("the multi-label loss needs a way to find the nouns of a caption")
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.tokenize, self.prompts_of = tokenize, prompts_of
        self.num_labels, self.templates = num_labels, tuple(templates)
        self.background, self.window, self.stride = background, window, stride
        self.image_projector = _projector(
            image_encoder.norm.normalized_shape[0], hidden_dim, out_dim
        )
        self.text_projector = _projector(
            text_encoder.ln_final.normalized_shape[0], hidden_dim, out_dim
        )
        initial = math.log(1 / 0.07)
        self.logit_scale = nn.Parameter(torch.tensor(initial))
        self.multi_label_logit_scale = nn.Parameter(
            torch.tensor(initial), requires_grad=num_labels > 0
        )
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std), persistent=False)

    @property
    def scale(self) -> Tensor:
        """Factor of similarities, at most 100."""
        return self.logit_scale.exp().clamp(max=MAX_SCALE)

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """B x (3, h, w) RGB in 0..255 -> a normalised batch of whole patches."""
        return ImageBatch.from_images(
            images,
            mean=self.pixel_mean,
            std=self.pixel_std,
            divisor=self.image_encoder.patch_size,
        )

    def embed_image(self, grouped: Grouped) -> Tensor:
        """Directions (B, D) of images in the shared space."""
        return F.normalize(self.image_projector(grouped.groups.mean(dim=1)), dim=-1)

    def embed_groups(self, grouped: Grouped) -> Tensor:
        """Directions (B, G, D) of the groups of images in the shared space."""
        groups = self.image_projector(grouped.groups.flatten(0, 1))
        return F.normalize(groups.unflatten(0, grouped.groups.shape[:2]), dim=-1)

    def text_vectors(self, ids: Tensor) -> Tensor:
        """Vectors (B, D) of tokenised sentences (B, N) in the shared space, of any length."""
        return self.text_projector(self.text_encoder(ids))

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, N) of sentences, on the model's device."""
        if self.tokenize is None:
            raise ConfigError(
                "this GroupViT has no vocabulary: run `python tools/download_weights.py "
                "clip-vit-base-patch32`, or set MODEL.GROUPVIT.TOKENIZER to a folder with CLIP's"
            )
        return self.tokenize(texts).to(self.logit_scale.device)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Directions (B, D) of sentences."""
        return F.normalize(self.text_vectors(self.token_ids(texts)), dim=-1)

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Directions (N, D) of class names, the mean of all prompts of each.

        Raises:
            InputError: there is no name, or one is empty.
        """
        if not names or not all(name.strip() for name in names):
            raise InputError(f"expected one or more class names, none of them empty, got {names}")
        self.warn_of_unknown(names)
        texts = self.text_vectors(self.token_ids(filled(self.templates, names)))
        return mean_of_prompts(texts.unflatten(0, (len(names), -1)))

    def warn_of_unknown(self, names: Sequence[str]) -> None:
        """One warning about names of which a list of words knows no word: all are alike to it."""
        table = self.text_encoder.token_embedding
        unknown = unknown_words(table, names) if isinstance(table, WordTable) else []
        if unknown:
            logger.warning("the model knows no word of %s", ", ".join(map(repr, unknown)))

    def encode_image(self, images: ImageBatch) -> GroupFeatures:
        """Groups of every image and their directions."""
        grouped = self.image_encoder(images.tensor)
        patch = self.image_encoder.patch_size
        return GroupFeatures(
            levels=(grouped.soft_map(),),
            padding_masks=(images.padding_mask[:, ::patch, ::patch],),
            image_sizes=images.image_sizes,
            padded_size=images.padded_size,
            image=self.embed_image(grouped),
            groups=None if self.training else self.embed_groups(grouped),
        )

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        """B sentences -> one token each: its direction in the shared space."""
        embedded = self.embed_texts(texts)
        token = embedded[:, None]
        padding = torch.zeros(token.shape[:2], dtype=torch.bool, device=token.device)
        labels = None
        if self.training and self.num_labels:
            assert self.prompts_of is not None
            prompts = [prompt for t in texts for prompt in self.prompts_of(t, self.num_labels)]
            labels = self.embed_texts(prompts).unflatten(0, (len(texts), self.num_labels))
        return (
            Caption(
                keys=token, values=token, padding_mask=padding, summary=embedded, labels=labels
            ),
        )

    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = 4,
    ) -> Segmentation:
        """One mask per image: the groups that fit the text better than its pixels do on average.

        The paper does not say how one text becomes a mask; this is the simplest rule that needs no
        other classes. Logits are scaled similarities, less their mean over the pixels.
        """
        assert isinstance(features, GroupFeatures) and features.groups is not None
        text = only_sentence(references)[0].summary
        fit = self.scale * (features.groups @ text[..., None])[..., 0]  # (B, G)
        height, width = (side // mask_stride for side in features.padded_size)
        winners = winning_groups(features.levels[0], (height, width))
        logits = class_scores(winners, fit[..., None])
        return Segmentation.of_masks(logits - logits.mean(dim=(2, 3), keepdim=True), features)

    def classify_pixels(self, images: Tensor, classes: Tensor) -> Tensor:
        """Scores of classes (N, D) at every pixel of normalised images (B, 3, H, W).

        The published protocol. With a background limit the result is (B, 1 + N, H, W) and the
        background comes first; see ``class_scores``.
        """

        def score(crop: Tensor) -> Tensor:
            grouped = self.image_encoder(crop)
            image, groups = self.embed_image(grouped), self.embed_groups(grouped)
            affinity = group_affinity(groups, image, classes, self.scale)
            size = (crop.shape[-2], crop.shape[-1])
            winners = winning_groups(grouped.soft_map(), size)
            return class_scores(winners, affinity, background=self.background)

        if max(images.shape[-2:]) <= self.window:
            return score(images)
        return slide(images, score, window=self.window, stride=self.stride)

    def classify_images(self, images: Tensor, classes: Tensor) -> Tensor:
        """Probabilities (B, N) of classes (N, D) for whole normalised images (B, 3, H, W)."""
        image = self.embed_image(self.image_encoder(images))
        return (self.scale * image @ classes.t()).softmax(dim=-1)

    def losses(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        targets: Sequence[Target],
        *,
        mask_stride: int = 4,
    ) -> dict[str, Tensor]:
        """The image-text loss, and that of the nouns if there are any; masks are not looked at."""
        caption = references[0][0]
        assert isinstance(features, GroupFeatures) and isinstance(caption, Caption)
        losses = {"loss_contrast": image_text_loss(features.image, caption.summary, self.scale)}
        if caption.labels is not None:
            scale = self.multi_label_logit_scale.exp().clamp(max=MAX_SCALE)
            losses["loss_labels"] = multi_label_loss(features.image, caption.labels, scale)
        return losses


def _projector(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, out_dim),
    )
