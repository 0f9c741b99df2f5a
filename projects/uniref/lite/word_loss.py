"""An auxiliary loss that classifies every cell of an image by the names of its objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.uniref.auxiliary import FeatureStages
from unified.segmenter import Segmenter
from unified.structures import References, Target, upload


@dataclass(frozen=True)
class NamedTarget(Target):
    """A target with the class names of its instances.

    Attributes:
        class_names: M; None where that is not known of all of them.
    """

    class_names: tuple[str, ...] | None = None


def with_class_names(target: Target, sample: Mapping[str, Any]) -> NamedTarget:
    """The target with the names that its sample has, if there are any."""
    return NamedTarget(**vars(target), class_names=sample.get("class_names"))


class WordLoss(nn.Module):
    """Cross-entropy of cells over the names in the batch, which the text encoder turns to vectors.

    A sentence is about one object, and what its words mean shows only in contrast to many others.
    Here all objects of an image are told apart at once by products of features with words, which
    is what a fusion layer starts from. Not part of UniRef++.

    Source of the products: LSeg (arXiv:2201.03546), word-pixel correlation.

    Args:
        dim: C.
        num_levels: finest levels that are asked.
        weight: of the loss.
        background: weight of a cell without a named object, relative to one that is full of it.
    """

    def __init__(self, *, dim: int, num_levels: int, weight: float, background: float) -> None:
        super().__init__()
        self.cells = nn.Linear(dim, dim)
        self.nothing = nn.Linear(dim, 1)
        self.num_levels, self.weight, self.background = num_levels, weight, background

    def forward(
        self,
        model: Segmenter,
        stages: FeatureStages,
        references: Sequence[References],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Weighted mean over cells and levels; partly covered cells count partly.

        Nothing where the batch has no object, or one whose name is not known.
        """
        named = [_class_names(target) for target in targets]
        known = [own for own in named if own is not None]
        names = sorted({name for own in known for name in own})
        if len(known) < len(targets) or not names:
            return {}
        words = model.encode_text(names)[0].summary  # (N, C)
        rows, masks = _placed(targets, known, names)
        terms = []
        for level in stages.encoded[: self.num_levels]:
            cells = level.movedim(1, -1).flatten(1, 2)  # (B, h * w, C)
            products = self.cells(cells) @ words.t() / math.sqrt(words.shape[-1])
            logits = torch.cat((products, self.nothing(cells)), dim=-1).float()
            shares = logits.new_zeros(len(targets) * len(names), cells.shape[1])
            size = level.shape[-2], level.shape[-1]
            covered = F.adaptive_avg_pool2d(masks[:, None], size).flatten(1)
            shares = shares.index_add(0, rows, covered).clamp(max=1)
            shares = shares.view(len(targets), len(names), -1).transpose(1, 2)
            rest = (1 - shares.sum(dim=-1, keepdim=True)).clamp(min=0) * self.background
            wanted = torch.cat((shares, rest), dim=-1)
            surprise = -(wanted * logits.log_softmax(dim=-1)).sum()
            terms.append(surprise / wanted.sum())
        return {"loss_word": self.weight * torch.stack(terms).mean()}


def _class_names(target: Target) -> tuple[str, ...] | None:
    return target.class_names if isinstance(target, NamedTarget) else None


def _placed(
    targets: Sequence[Target], named: Sequence[tuple[str, ...]], names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """For each of the M objects of a batch: image * N + name, and its mask (M, H, W) float32."""
    places = {name: index for index, name in enumerate(names)}
    rows, masks = [], []
    for image, (target, own) in enumerate(zip(targets, named, strict=True)):
        assert target.masks is not None
        rows += [image * len(names) + places[name] for name in own]
        masks.append(target.masks)
    joined = torch.cat(masks).float()
    return upload(torch.tensor(rows, dtype=torch.int64), joined.device), joined
