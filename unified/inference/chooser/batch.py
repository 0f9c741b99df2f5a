"""The candidates of several images as one batch, what is said about them, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.inference.chooser.colours import NUM_CHANNELS
from unified.inference.chooser.describing import Described

COLOURS, PLACES, ORDERS, PAIRS = 3 * NUM_CHANNELS, 16, 8, 12
LONGEST = 40  # words
ALIKE, OTHER = 0.6, 0.5  # cosine of names from which things count as alike; IoU of two things
STEEP = 12.0
ORDER_STEEP = 30.0
NEVER = -1e4


@dataclass(frozen=True)
class Candidates:
    """The candidates of I images, padded to K.

    Attributes:
        seen, colours, places, iou, within: as of ``Described`` with I in front.
        scores: (I, K) logits of the segmenter.
        there: (I, K) bool, False on padding.
    """

    seen: Tensor
    colours: Tensor
    places: Tensor
    scores: Tensor
    iou: Tensor
    within: Tensor
    there: Tensor

    @classmethod
    def stack(cls, images: Sequence[Described]) -> Candidates:
        """Pads candidates with zeros; at least one image has one."""
        longest = max(len(image) for image in images)

        def rows(name: str) -> Tensor:
            parts = [getattr(image, name).float() for image in images]
            return torch.stack([F.pad(p, (0, 0, 0, longest - len(p))) for p in parts])

        def squares(name: str) -> Tensor:
            parts = [getattr(image, name).float() for image in images]
            return torch.stack([F.pad(p, (0, longest - len(p)) * 2) for p in parts])

        scores = [image.scores.float().logit(eps=1e-4) for image in images]
        there = [torch.arange(longest, device=s.device) < len(s) for s in scores]
        return cls(
            rows("seen"),
            rows("colours"),
            rows("places"),
            torch.stack([F.pad(s, (0, longest - len(s))) for s in scores]),
            squares("iou"),
            squares("within"),
            torch.stack(there),
        )

    def only(self, chosen: Tensor) -> Candidates:
        """Those at ``chosen`` (I, K'), different ones of each image."""
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        squares = rows[:, None], chosen[:, :, None], chosen[:, None]
        return Candidates(
            **{
                name: value[squares] if name in ("iou", "within") else value[rows, chosen]
                for name, value in vars(self).items()
            }
        )


@dataclass(frozen=True)
class Choices:
    """What a network says about S sentences.

    Attributes:
        logits: (S, K) of each candidate.
        none: (S,) logit of there being none, in one softmax with ``logits``.
        many: (S,) logit of the sentence meaning several things.
    """

    logits: Tensor
    none: Tensor
    many: Tensor

    @classmethod
    def mean(cls, each: Sequence[Choices]) -> Choices:
        """Of several networks about the same candidates and sentences."""
        if len(each) == 1:
            return each[0]
        logits, none, many = (
            torch.stack([getattr(one, name) for one in each]).mean(dim=0)
            for name in ("logits", "none", "many")
        )
        return cls(logits, none, many)


class CandidateNetwork(nn.Module):
    """What networks that score candidates share: what they see of each, and how it may be called.

    Args:
        seen_dim: F of ``Described.seen``; its mean and spread are known after training.

    Attributes:
        see: (..., F), about 1, to (..., T).
        name: (..., T) to (..., D) of the language model.
    """

    mean: Tensor
    std: Tensor
    see: nn.Module
    name: nn.Module

    def __init__(self, seen_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(seen_dim))
        self.register_buffer("std", torch.ones(seen_dim))

    def names(self, seen: Tensor) -> Tensor:
        """(..., F) -> unit vectors (..., D) in the space of the language model."""
        return self._names(self._look(seen))

    def _look(self, seen: Tensor) -> Tensor:
        return self.see((seen - self.mean) / self.std)

    def _names(self, looks: Tensor) -> Tensor:
        return F.normalize(self.name(looks), dim=-1)


def order_values(candidates: Candidates, names: Tensor) -> Tensor:
    """Where each stands among those of a like name (I, K, 8), counted softly.

    Args:
        names: (I, K, D) unit vectors.
    """
    alike = torch.sigmoid((names @ names.transpose(1, 2) - ALIKE) * STEEP)
    alike = alike * ((candidates.iou < OTHER) & candidates.there[:, None])
    total = alike.sum(dim=-1)

    def before(values: Tensor) -> Tensor:
        smaller = torch.sigmoid((values[:, :, None] - values[:, None]) * ORDER_STEEP)
        return (alike * smaller).sum(dim=-1)

    x, y, area = (candidates.places[..., i] for i in (0, 1, 6))
    left, above, smaller = before(x), before(y), before(area.clamp(min=0).sqrt())
    shares = [part / (total + 0.3) * 2 - 1 for part in (left, above, smaller)]
    counts = [torch.log1p(part) for part in (total, left, before(-x), above)]
    return torch.stack((*shares, *counts, (total < 0.3).to(total)), dim=-1)


def place_values(places: Tensor) -> Tensor:
    """(..., 8) of ``Described`` as (..., 16) numbers about 1."""
    x, y, x0, y0, x1, y1, area, certainty = places.unbind(-1)
    width, height = x1 - x0, y1 - y0
    return torch.stack(
        (
            *(2 * side - 1 for side in (x, y, x0, y0, x1, y1)),
            *(width, height, area.clamp(min=1e-4).log() / 4),
            (width.clamp(min=0.01) / height.clamp(min=0.01)).log() / 2,
            *(certainty, area / (width * height).clamp(min=1e-4)),
            *((side - 0.5).abs() * 2 for side in (x, y)),
            *(2 * torch.minimum(start, 1 - end) for start, end in ((x0, x1), (y0, y1))),
        ),
        dim=-1,
    )


def pair_values(candidates: Candidates) -> Tensor:
    """Where the second lies seen from the first, (I, K, K, 12)."""
    x, y, x0, y0, x1, y1, area, _ = candidates.places.unbind(-1)
    size = ((x1 - x0).clamp(min=0.02) * (y1 - y0).clamp(min=0.02)).sqrt()[:, :, None]

    def step(values: Tensor) -> Tensor:
        return values[:, None] - values[:, :, None]

    def gap(start: Tensor, end: Tensor) -> Tensor:
        return torch.maximum(
            start[:, None] - end[:, :, None], start[:, :, None] - end[:, None]
        ).clamp(min=0)

    dx, dy, gap_x, gap_y = step(x), step(y), gap(x0, x1), gap(y0, y1)
    return torch.stack(
        (
            *(dx, dy, (dx / size).tanh(), (dy / size).tanh(), (step(y1) / size).tanh()),
            (step(area.clamp(min=1e-4).log()) / 4).clamp(-2, 2),
            *(gap_x, gap_y, (gap_x + gap_y == 0).to(dx), (dx.abs() + dy.abs()).clamp(max=1.5)),
            *(candidates.iou, candidates.within),
        ),
        dim=-1,
    )
