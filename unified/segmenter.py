"""The verbs every system of the toolkit speaks: encode the image and its references, segment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from unified.masks import resize_mask
from unified.structures import (
    MASK_STRIDE,
    FeaturePyramid,
    ImageBatch,
    Reference,
    References,
    Segmentation,
    Target,
    stack_padded,
    upload,
)


@runtime_checkable
class Segmenter(Protocol):
    """A model that segments what references refer to.

    A system leaves out the verbs of references that its ``reference_kinds`` do not name.
    """

    @property
    def reference_kinds(self) -> frozenset[str]:
        """Kinds of reference, a subset of {"text", "mask", "point", "box"}."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, as of any ``nn.Module``."""
        ...

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """B x (3, h, w) RGB in 0..255 on any device -> a normalised batch on the model's device."""
        ...

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        """Features of every image; the costly step, run once per frame."""
        ...

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        """B sentences -> one reference per level, batch B."""
        ...

    def encode_mask(
        self, images: ImageBatch, features: FeaturePyramid, masks: Tensor
    ) -> tuple[Reference, ...]:
        """Masks (B, H, W) of the padded size on the images whose features are given."""
        ...

    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = MASK_STRIDE,
    ) -> Segmentation:
        """The ``top_k`` best queries of every image, given one or two kinds of reference.

        A ``Detector`` may get none.
        """
        ...


class Detector(Segmenter, Protocol):
    """A segmenter that finds all objects of an image where it gets no reference."""

    detects: Literal[True]


class TrainableSegmenter(Segmenter, Protocol):
    """A segmenter that can also say how wrong it is."""

    def losses(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        targets: Sequence[Target],
        *,
        mask_stride: int = MASK_STRIDE,
    ) -> Mapping[str, Tensor]:
        """Weighted scalar losses by name; their plain sum is the objective.

        Names that differ in a number at the end (``loss_mask_0``, ``loss_mask_1``) are summed in
        the log.
        """
        ...


def encode_masks(
    model: Segmenter, images: ImageBatch, features: FeaturePyramid, masks: Sequence[Tensor]
) -> tuple[Reference, ...]:
    """One reference per level, batch B, of masks (h, w) of any size on the B images of a batch."""
    resized = [resize_mask(*pair) for pair in zip(masks, images.image_sizes, strict=True)]
    padded = upload(stack_padded(resized, images.padded_size), images.tensor.device)
    return model.encode_mask(images, features, padded)


def encode_supports(
    model: Segmenter, images: Sequence[Tensor], masks: Sequence[Tensor]
) -> tuple[Reference, ...]:
    """As ``encode_masks``, of K images (3, h, w) that are encoded as one batch, padded alike.

    Norms in the model see how far each is padded, as in the reference.
    """
    batch = model.preprocess(images)
    return encode_masks(model, batch, model.encode_image(batch), masks)


class PointSegmenter(Segmenter, Protocol):
    """A segmenter whose ``reference_kinds`` hold "point" and "box"."""

    def encode_points(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None
    ) -> tuple[Reference, ...]:
        """What is shown of B objects -> one reference per level; at least one is given.

        Args:
            points: (B, P, 2) x, y in pixels of the padded input.
            labels: (B, P) int64, 1 on the object, 0 beside it.
            boxes: (B, 4) x0, y0, x1, y1 in pixels of the padded input.
        """
        ...


@runtime_checkable
class TokenSegmenter(Protocol):
    """A segmenter of sentences that can be exported: what follows the vocabulary is tensors."""

    @property
    def sentence_ends(self) -> tuple[str, ...]:
        """A pattern for each row of tokens that it reads: its first match in the cleaned sentence,
        with a space added, ends it; "" takes the whole sentence."""
        ...

    def encode_tokens(self, rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Reference, ...]:
        """As ``encode_text``, of ids (B, N) and their mask (B, N) int64, 1 on tokens, per row."""
        ...


@runtime_checkable
class PixelClassifier(Protocol):
    """A model that says which of some named classes each pixel is."""

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """As of a ``Segmenter``."""
        ...

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """N class names -> what pixels are compared with, (N, D); raises InputError."""
        ...

    def classify_pixels(self, images: Tensor, classes: Tensor) -> Tensor:
        """Scores (B, N, H, W) of classes (N, D) at every pixel of normalised (B, 3, H, W).

        (B, 1 + N, H, W) from a model that knows pixels of no class: they come first.
        """
        ...
