"""The table of all systems: what is counted is right, and every system has a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.engine.profiles import count_multiply_adds, profiled
from unified.engine.system import find_systems
from unified.structures import FeaturePyramid, ImageBatch, Reference, Segmentation


class Counted(nn.Module):
    """As little as a model can do: pixels are projected, attend to three words, and are scored."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 8, bias=False)

    def preprocess(self, images: list[Tensor]) -> ImageBatch:
        return ImageBatch.from_images(images, mean=torch.zeros(3), std=torch.ones(3), divisor=1)

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        level = self.linear(images.tensor.movedim(1, -1)).movedim(-1, 1)
        return FeaturePyramid(
            levels=(level,),
            padding_masks=(images.padding_mask,),
            image_sizes=images.image_sizes,
            padded_size=images.padded_size,
        )

    def encode_text(self, texts: list[str]) -> tuple[Reference, ...]:
        words = torch.ones(len(texts), 3, 8)
        return (Reference(words, words, torch.zeros(len(texts), 3, dtype=bool), words[:, 0]),)

    def segment(
        self, features: FeaturePyramid, references: list[tuple[Reference, ...]]
    ) -> Segmentation:
        words = references[0][0].keys[:, None]
        query = features.levels[0].flatten(2).transpose(1, 2)[:, None]  # (B, 1, H*W, 8)
        attended = F.scaled_dot_product_attention(query, words, words)
        logits = (attended @ torch.ones(8)).unflatten(2, features.levels[0].shape[-2:])
        return Segmentation.of_masks(logits, features)


def test_projections_and_both_products_of_attention_are_counted() -> None:
    pixels = 6 * 5
    counted = count_multiply_adds(Counted(), torch.zeros(1, 3, 6, 5))
    assert counted == pixels * 3 * 8 + 2 * pixels * 3 * 8 + pixels * 8


def test_every_system_of_the_toolkit_has_a_row() -> None:
    systems = {
        name for name, found in find_systems().items() if found.build.__module__[:4] == "proj"
    }
    rows = profiled()
    with_rows = {
        name
        for name, found in find_systems().items()
        if any(model in rows for model in found.models)
    }
    assert systems and systems <= with_rows
