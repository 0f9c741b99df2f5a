"""A segmenter of sentences, masks and boxes for the tests: learned queries in one dot product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.toy.parts import DIM, TinyBackbone, make_text_encoder
from unified.modeling.criterion import Criterion, LayerPrediction
from unified.modeling.fusion import build_fusion
from unified.modeling.layers import masked_mean, zero_init
from unified.modeling.mask_encoder import MaskEncoder
from unified.modeling.neck import Neck
from unified.modeling.selection import select_queries
from unified.structures import FeaturePyramid, ImageBatch, Reference, Segmentation, Target

NMS_THRESHOLD = 0.7
KINDS = ("text", "mask")
SCALE = (128.0, 128.0, 128.0)
References = Sequence[tuple[Reference, ...]]


class QueryHead(nn.Module):
    """Every query gathers the pixels that are like it."""

    def __init__(self, *, dim: int, num_queries: int, num_classes: int) -> None:
        super().__init__()
        self.queries = nn.Embedding(num_queries, dim)
        self.class_embed = nn.Linear(dim, num_classes)
        self.box_embed = nn.Linear(dim, 4)

    def forward(self, tokens: Tensor, padding_mask: Tensor) -> tuple[Tensor, LayerPrediction]:
        """(B, N, C), (B, N) True = padding -> hidden states (B, Q, C), and what they say."""
        similar = self.queries.weight @ tokens.mT / tokens.shape[-1] ** 0.5  # (B, Q, N)
        weights = similar.masked_fill(padding_mask[:, None], -torch.inf).softmax(dim=-1)
        hidden = self.queries.weight + weights @ tokens
        return hidden, LayerPrediction(self.class_embed(hidden), self.box_embed(hidden).sigmoid())


class MaskHead(nn.Module):
    """Pixels that look in the direction of a query."""

    def __init__(self, *, dim: int, high_res_dim: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(high_res_dim, dim, 1)
        self.kernel = nn.Linear(dim, dim)
        self.bias = nn.Linear(dim, 1)
        self.norm = nn.GroupNorm(dim, dim)  # masks of random kernels are neither full nor empty
        zero_init(self.bias)

    def pixels(self, features: FeaturePyramid, level: Tensor) -> Tensor:
        """The finest fused level (B, C, H/8, W/8) with what is finer: (B, C, H/4, W/4)."""
        fine = self.lateral(features.high_res)
        return self.norm(fine + F.interpolate(level, size=fine.shape[-2:], mode="bilinear"))

    def forward(self, hidden: Tensor, pixels: Tensor, mask_stride: int) -> Tensor:
        """(B, K, C), (B, C, H/4, W/4) -> logits (B, K, H / mask_stride, W / mask_stride)."""
        kernel = self.kernel(hidden) / hidden.shape[-1] ** 0.5
        logits = torch.einsum("bkc,bchw->bkhw", kernel, pixels) + self.bias(hidden)[..., None]
        return F.interpolate(logits, scale_factor=4 / mask_stride, mode="bilinear")


class Toy(nn.Module):
    """All verbs of ``TrainableSegmenter``, for the kinds of reference that it is given."""

    detects: Literal[True] = True

    def __init__(
        self,
        *,
        kinds: Sequence[str] = KINDS,
        fusion: str = "UniFusion",
        num_queries: int = 12,
        num_classes: int = 1,
    ) -> None:
        super().__init__()
        self.backbone = TinyBackbone()
        channels = self.backbone.channels
        self.neck = Neck(in_dims=channels, dim=DIM)
        self.head = QueryHead(dim=DIM, num_queries=num_queries, num_classes=num_classes)
        self.mask_head = MaskHead(dim=DIM, high_res_dim=channels["res2"])
        self.fusion = build_fusion(fusion, dim=DIM, num_heads=4, head_dim=8) if kinds else None
        self.text_encoder = make_text_encoder() if "text" in kinds else None
        self.mask_encoder = MaskEncoder(dim=DIM, width=8) if "mask" in kinds else None
        self.reference_kinds = frozenset(kinds)
        self.register_buffer("scale", torch.tensor(SCALE), persistent=False)

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        return ImageBatch.from_images(images, mean=self.scale, std=self.scale, divisor=32)

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        stages = self.backbone(images.tensor)
        levels, padding_masks = self.neck(stages, images.padding_mask)
        sizes = images.image_sizes, images.padded_size
        return FeaturePyramid(levels, padding_masks, *sizes, high_res=stages["res2"])

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        text = self.text_encoder(texts)
        return (Reference(text.words, text.words, text.padding_mask, text.sentence),) * 4

    def encode_mask(
        self, images: ImageBatch, features: FeaturePyramid, masks: Tensor
    ) -> tuple[Reference, ...]:
        values = self.mask_encoder(images.tensor, masks, features.levels)
        references = []
        for level, value, mask in zip(features.levels, values, features.padding_masks, strict=True):
            keys, padding_mask = _tokens(level), mask.flatten(1)
            summary = masked_mean(keys, padding_mask)
            references.append(Reference(keys, _tokens(value), padding_mask, summary))
        return tuple(references)

    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = 4,
    ) -> Segmentation:
        hidden, said, pixels = self._ask(features, references)
        picked = [
            select_queries(*image, top_k, NMS_THRESHOLD)
            for image in zip(said.logits.float(), said.boxes, strict=True)
        ]
        num = max(len(index) for index, _, _ in picked)
        index, scores, classes = (
            torch.stack([F.pad(part, (0, num - len(part))) for part in parts])
            for parts in zip(*picked, strict=True)
        )
        rows = torch.arange(len(index), device=index.device)[:, None]
        logits = self.mask_head(hidden[rows, index], pixels, mask_stride)
        return Segmentation(logits, scores, said.boxes[rows, index].float(), classes)

    def losses(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        targets: Sequence[Target],
        *,
        mask_stride: int = 4,
    ) -> dict[str, Tensor]:
        hidden, said, pixels = self._ask(features, references)

        def decode(_: int, images: Tensor, index: Tensor) -> Tensor:
            kept = hidden[images, index][:, None]
            return self.mask_head(kept, pixels[images], mask_stride)[:, 0]

        return Criterion()([said], said, targets, decode, mask_stride=mask_stride)

    def _ask(
        self, features: FeaturePyramid, references: Sequence[References]
    ) -> tuple[Tensor, LayerPrediction, Tensor]:
        """Hidden states of the queries, what they say, and the pixels of their masks."""
        tokens = [_tokens(level) for level in features.levels]
        if references:
            tokens = [
                self.fusion(level, [reference[index] for reference in references])
                for index, level in enumerate(tokens)
            ]
        finest = tokens[0].mT.unflatten(2, features.levels[0].shape[-2:])
        padding_mask = torch.cat([mask.flatten(1) for mask in features.padding_masks], dim=1)
        hidden, said = self.head(torch.cat(tokens, dim=1), padding_mask)
        return hidden, said, self.mask_head.pixels(features, finest)


def _tokens(level: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h*w, C)."""
    return level.flatten(2).mT


MakeToy = Callable[..., Toy]


def make_toy(*, seed: int = 0, **options: object) -> Toy:
    """A toy in eval mode whose random weights make references matter."""
    torch.manual_seed(seed)
    model = Toy(**options)  # type: ignore[arg-type]
    with torch.no_grad():
        if model.fusion is not None:
            model.fusion.modulation[1].weight.normal_(std=0.3)
    return model.eval()
