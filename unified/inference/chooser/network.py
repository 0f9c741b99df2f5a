"""The network that scores candidates for a sentence: subject, place and relation.

Source: MAttNet (arXiv:1801.08186): word attention gives each module its phrase, each module scores
every candidate, weights of the sentence add the scores up. Differences: words come from a frozen
language model, candidates of a like name are counted softly by what is learnt of names, and one
more decoder layer lets candidates and words attend to each other freely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.inference.chooser.colours import NUM_CHANNELS
from unified.inference.chooser.describing import Described

MODULES = ("subject", "place", "relation", "scene")
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


@dataclass(frozen=True)
class Choices:
    """What the network says about S sentences.

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


class ChooserNetwork(nn.Module):
    """Scores the candidates of images for sentences.

    Args:
        seen_dim: F of ``Described.seen``.
        text_dim: width of the language model.
        dim: width of the network.
        dropout: in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, seen_dim: int, text_dim: int, dim: int = 128, dropout: float = 0.3):
        super().__init__()
        self.register_buffer("mean", torch.zeros(seen_dim))
        self.register_buffer("std", torch.ones(seen_dim))

        def mlp(given: int, out: int) -> nn.Module:
            return nn.Sequential(
                nn.Linear(given, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, out)
            )

        half, whole = dim // 2, text_dim + dim
        thing = dim + half
        self.see = nn.Sequential(nn.Dropout(dropout), mlp(seen_dim, dim))
        self.colour = mlp(COLOURS, half)
        self.name = nn.Linear(dim, text_dim)
        self.read = nn.Linear(text_dim, dim)
        self.word_place = nn.Embedding(LONGEST, dim)
        self.word_dropout = nn.Dropout(dropout)
        self.words = nn.TransformerEncoderLayer(
            dim, 4, 2 * dim, dropout, batch_first=True, norm_first=True
        )
        self.attention = nn.Linear(dim, len(MODULES))
        self.weights = nn.Linear(whole, len(MODULES))
        self.subjects, self.places = mlp(thing, dim), mlp(PLACES + ORDERS, dim)
        self.others, self.steps = nn.Linear(thing, half), nn.Linear(PAIRS, half)
        self.token = nn.Linear(thing + PLACES + ORDERS + 1, dim)
        self.scene = nn.TransformerEncoderLayer(
            dim, 4, 2 * dim, dropout, batch_first=True, norm_first=True
        )
        self.phrases = nn.ModuleList(mlp(whole, out) for out in (dim, dim, half + 1, dim))
        self.scale = nn.Parameter(torch.full((len(MODULES),), math.log(8)))
        self.nothing = mlp(whole + 4, 1)
        self.several = mlp(whole, 1)

    def names(self, seen: Tensor) -> Tensor:
        """(..., F) -> unit vectors (..., D) in the space of the language model."""
        return self._names(self.see((seen - self.mean) / self.std))

    def _names(self, seen: Tensor) -> Tensor:
        return F.normalize(self.name(seen), dim=-1)

    def forward(
        self, candidates: Candidates, image: Tensor, words: Tensor, padding: Tensor
    ) -> Choices:
        """Scores of S sentences about I images.

        Args:
            image: (S,) which image each sentence is about.
            words: (S, N, D) of the language model.
            padding: (S, N) bool, True on padding.
        """
        there = candidates.there
        seen = self.see((candidates.seen - self.mean) / self.std)
        thing = torch.cat((seen, self.colour(candidates.colours)), dim=-1)
        place = torch.cat((_places(candidates.places), self._order(candidates, seen)), dim=-1)
        words = words[:, :LONGEST]
        padding = padding[:, :LONGEST]
        phrases, whole, mixed = self._read(words, padding)
        scale = self.scale.exp() * mixed  # (S, modules)
        meant = [read(phrases[:, number]) for number, read in enumerate(self.phrases)]
        tokens = self.token(torch.cat((thing, place, candidates.scores[..., None]), dim=-1))
        scene = self.scene(tokens, src_key_padding_mask=~there)
        parts = (
            _cosines(self.subjects(thing), image, meant[0]),
            _cosines(self.places(place), image, meant[1]),
            self._related(candidates, thing, image, meant[2]),
            _cosines(scene, image, meant[3]),
        )
        logits = torch.einsum("sm,msk->sk", scale, torch.stack(parts))
        logits = logits.masked_fill(~there[image], NEVER)
        best = F.pad(logits, (0, 1), value=NEVER).topk(2, dim=1).values.clamp(min=-30)
        total = logits.logsumexp(dim=1, keepdim=True).clamp(min=-30)
        none = self.nothing(torch.cat((whole, best, total, mixed[:, :1]), dim=-1))
        return Choices(logits, none[:, 0], self.several(whole)[:, 0])

    def _read(self, words: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Phrases (S, modules, T), the whole (S, T) and weights of modules (S, modules)."""
        places = self.word_place.weight[: words.shape[1]]
        read = self.words(
            self.read(self.word_dropout(words)) + places, src_key_padding_mask=padding
        )
        both = torch.cat((words, read), dim=-1)
        attention = self.attention(read).masked_fill(padding[..., None], NEVER).softmax(dim=1)
        phrases = torch.einsum("snm,snt->smt", attention, both)
        kept = ~padding[..., None]
        whole = (both * kept).sum(dim=1) / kept.sum(dim=1)
        return phrases, whole, self.weights(whole).softmax(dim=-1)

    def _related(
        self, candidates: Candidates, thing: Tensor, image: Tensor, meant: Tensor
    ) -> Tensor:
        """How well the best other candidate stands to each (S, K) as is meant (S, half + 1)."""
        steps = (self.steps(_pairs(candidates)) + self.others(thing)[:, None]).relu()
        weights = meant[:, 1:] / math.sqrt(steps.shape[-1])
        # One product per image: a copy of its pairs for every sentence would be large.
        fits = [
            torch.einsum("ije,se->sij", pairs, weights[image == row])
            for row, pairs in enumerate(steps)
        ]
        order = torch.cat([(image == row).nonzero()[:, 0] for row in range(len(steps))])
        fit = torch.cat(fits)[order.argsort()] + meant[:, :1, None]
        apart = candidates.there[:, None] & (candidates.iou < OTHER)
        return fit.tanh().masked_fill(~apart[image], -1.0).amax(dim=-1)

    def _order(self, candidates: Candidates, seen: Tensor) -> Tensor:
        """Where each stands among those of a like name (I, K, 8), counted softly."""
        names = self._names(seen)
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


def _cosines(things: Tensor, image: Tensor, meant: Tensor) -> Tensor:
    """Of things (I, K, E) with what S sentences about them mean (S, E): (S, K)."""
    vectors = F.normalize(things, dim=-1)[image]
    return torch.einsum("ske,se->sk", vectors, F.normalize(meant, dim=-1))


def _places(places: Tensor) -> Tensor:
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


def _pairs(candidates: Candidates) -> Tensor:
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
