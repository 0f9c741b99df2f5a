"""The network that scores candidates for a sentence: subject, place and relation.

Source: MAttNet (arXiv:1801.08186): word attention gives each module its phrase, each module scores
every candidate, weights of the sentence add the scores up. Differences: words come from a frozen
language model, candidates of a like name are counted softly by what is learnt of names, and one
more decoder layer lets candidates and words attend to each other freely.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.inference.chooser.batch import (
    COLOURS,
    LONGEST,
    NEVER,
    ORDERS,
    OTHER,
    PAIRS,
    PLACES,
    CandidateNetwork,
    Candidates,
    Choices,
    order_values,
    pair_values,
    place_values,
)

MODULES = ("subject", "place", "relation", "scene")


class ChooserNetwork(CandidateNetwork):
    """Scores the candidates of images for sentences.

    Args:
        seen_dim: F of ``Described.seen``.
        text_dim: width of the language model.
        dim: width of the network.
        dropout: in training.
    """

    def __init__(self, *, seen_dim: int, text_dim: int, dim: int = 128, dropout: float = 0.3):
        super().__init__(seen_dim)

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
        seen = self._look(candidates.seen)
        thing = torch.cat((seen, self.colour(candidates.colours)), dim=-1)
        place = torch.cat(
            (place_values(candidates.places), order_values(candidates, self._names(seen))), dim=-1
        )
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
        steps = (self.steps(pair_values(candidates)) + self.others(thing)[:, None]).relu()
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


def _cosines(things: Tensor, image: Tensor, meant: Tensor) -> Tensor:
    """Of things (I, K, E) with what S sentences about them mean (S, E): (S, K)."""
    vectors = F.normalize(things, dim=-1)[image]
    return torch.einsum("ske,se->sk", vectors, F.normalize(meant, dim=-1))
