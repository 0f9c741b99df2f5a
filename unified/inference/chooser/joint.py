"""The network that reads words and candidates together: each is a token, all attend to all.

Source: as the early fusion of MDETR (arXiv:2104.12763), over candidates that are described already.
Differences: pairs of candidates attend as they lie to each other, candidates and words as the names
of the ones are like the others, and one more token asks whether nothing is meant.
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
    PAIRS,
    PLACES,
    CandidateNetwork,
    Candidates,
    Choices,
    order_values,
    pair_values,
    place_values,
)

DIM, HEADS, LAYERS = 128, 4, 3
HIDDEN = 32  # of the numbers of a pair
KINDS = 3  # candidates, words, nothing
LIKENESS = 4.0  # logits that a cosine of 1 is worth before training
LOST_WORDS = 0.1
SPREAD = 0.3


class JointNetwork(CandidateNetwork):
    """Scores the candidates of images for sentences, as ``ChooserNetwork`` does.

    Args:
        seen_dim: F of ``Described.seen``.
        text_dim: width of the language model.
        dim: width of the network.
        dropout: in training, of what is seen and read; half of it within the layers.
    """

    def __init__(self, *, seen_dim: int, text_dim: int, dim: int = DIM, dropout: float = 0.3):
        super().__init__(seen_dim)

        def mlp(given: int, out: int) -> nn.Module:
            return nn.Sequential(
                nn.Linear(given, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, out)
            )

        def layers(number: int) -> nn.ModuleList:
            return nn.ModuleList(_Layer(dim, dropout / 2) for _ in range(number))

        self.see = nn.Sequential(nn.Dropout(dropout), mlp(seen_dim, dim))
        self.colour, self.place = mlp(COLOURS, dim), mlp(PLACES + ORDERS, dim)
        self.score = nn.Linear(1, dim)
        self.name = nn.Linear(dim, text_dim)
        self.read = nn.Linear(text_dim, dim)
        self.word_dropout = nn.Dropout(dropout)
        self.word_place = nn.Parameter(torch.randn(LONGEST, dim) * SPREAD)
        self.kinds = nn.Parameter(torch.randn(KINDS, dim) * SPREAD)
        self.pairs = nn.Sequential(
            nn.Linear(PAIRS + 1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HEADS * (LAYERS + 1))
        )
        self.between = nn.Parameter(torch.zeros(LAYERS, HEADS, KINDS, KINDS))
        self.alike = nn.Parameter(torch.ones(LAYERS, HEADS, 2))
        self.meaning = nn.Linear(text_dim, text_dim, bias=False)
        nn.init.zeros_(self.meaning.weight)
        self.scene, self.words, self.layers = layers(1), layers(1), layers(LAYERS)
        self.norm = nn.LayerNorm(dim)
        self.fit, self.asked = mlp(dim, 1), nn.Linear(dim, dim)
        self.noun = nn.Linear(dim, 1)
        self.named = nn.Parameter(torch.tensor(1.0))
        self.nothing, self.several = mlp(dim + 5, 1), nn.Linear(dim, 1)

    def forward(
        self, candidates: Candidates, image: Tensor, words: Tensor, padding: Tensor
    ) -> Choices:
        """As of ``ChooserNetwork``."""
        words, padding = words[:, :LONGEST], self._lost(padding[:, :LONGEST])
        there = candidates.there
        things, names, pairs = self._scene(candidates)
        meanings = F.normalize(words + self.meaning(words), dim=-1)
        likeness = torch.einsum("ske,sne->skn", names[image], meanings)
        said = self._said(words, padding)
        nothing = self.kinds[2].expand(len(image), 1, -1)
        tokens = torch.cat((nothing, said, things[image]), dim=1)
        absent = torch.cat((padding.new_zeros(len(image), 1), padding, ~there[image]), dim=1)
        for number, layer in enumerate(self.layers):
            bias = self._bias(number, pairs[number][image], likeness)
            tokens = layer(tokens, bias + _closed(absent))
        nothing, said, things = self.norm(tokens).split((1, *likeness.shape[:0:-1]), dim=1)
        asked = self.asked(nothing) / math.sqrt(nothing.shape[-1])
        noun = self.noun(said)[..., 0].masked_fill(padding, NEVER).softmax(dim=-1)
        named = torch.einsum("skn,sn->sk", likeness, noun)
        logits = self.fit(things)[..., 0] + (things * asked).sum(dim=-1)
        logits = logits + self.named.exp() * LIKENESS * named
        logits = logits.masked_fill(~there[image], NEVER)
        total = logits.logsumexp(dim=1, keepdim=True)
        best = F.pad(logits, (0, 1), value=NEVER).topk(2, dim=1).values
        likest = F.pad(named.masked_fill(~there[image], -1), (0, 1), value=-1).topk(2, dim=1).values
        seen = torch.cat((best, total), dim=-1).clamp(min=-30)
        none = self.nothing(torch.cat((nothing[:, 0], seen, likest), dim=-1))
        return Choices(logits, none[:, 0], self.several(nothing[:, 0])[:, 0])

    def _lost(self, padding: Tensor) -> Tensor:
        """In training some words are not read; the first token always is."""
        if not self.training:
            return padding
        lost = torch.rand(padding.shape, device=padding.device) < LOST_WORDS
        lost[:, 0] = False
        return padding | lost

    def _scene(self, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (I, K, T), names (I, K, D) and biases of layers (L, I, heads, K, K)."""
        seen = self._look(candidates.seen)
        names = self._names(seen)
        place = (place_values(candidates.places), order_values(candidates, names))
        tokens = seen + self.colour(candidates.colours) + self.place(torch.cat(place, dim=-1))
        tokens = tokens + self.score(candidates.scores[..., None]) + self.kinds[0]
        alike = names @ names.transpose(1, 2)
        pairs = self.pairs(torch.cat((pair_values(candidates), alike[..., None]), dim=-1))
        # (I, K, K, L*heads) -> (L, I, heads, K, K)
        biases = pairs.unflatten(-1, (LAYERS + 1, HEADS)).permute(3, 0, 4, 1, 2)
        for layer in self.scene:
            tokens = layer(tokens, biases[LAYERS] + _closed(~candidates.there))
        return tokens, names, biases[:LAYERS]

    def _said(self, words: Tensor, padding: Tensor) -> Tensor:
        """Words (S, N, D) -> tokens (S, N, T)."""
        tokens = self.read(self.word_dropout(words)) + self.kinds[1]
        tokens = tokens + self.word_place[: words.shape[1]]
        for layer in self.words:
            tokens = layer(tokens, _closed(padding))
        return tokens

    def _bias(self, number: int, pairs: Tensor, likeness: Tensor) -> Tensor:
        """Of a layer, (S, heads, T, T) over nothing, words and candidates.

        Args:
            pairs: (S, heads, K, K).
            likeness: (S, K, N).
        """
        things, words = likeness.shape[1:]
        kinds = torch.tensor([2] + [1] * words + [0] * things, device=likeness.device)
        to_words, to_things = LIKENESS * self.alike[number].t()[:, None, :, None, None]
        bias = self.between[number][:, kinds][:, :, kinds].expand(len(pairs), -1, -1, -1)
        words_on = F.pad(likeness.transpose(1, 2)[:, None] * to_things, (1 + words, 0))
        things_on = torch.cat((likeness[:, None] * to_words, pairs), dim=-1)
        both = torch.cat((words_on, F.pad(things_on, (1, 0))), dim=2)
        return bias + F.pad(both, (0, 0, 1, 0))


class _Layer(nn.Module):
    """Attention with a bias, then a feed-forward network; each after its norm."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Tokens (B, T, C) and bias that broadcasts to (B, heads, T, T) -> (B, T, C)."""
        # (B, T, 3*C) -> 3 x (B, heads, T, C / heads)
        parts = self.project(self.before(tokens)).unflatten(-1, (3, HEADS, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        tokens = tokens + self.dropout(self.out(heard.transpose(1, 2).flatten(2)))
        return tokens + self.dropout(self.feed(self.between(tokens)))


def _closed(absent: Tensor) -> Tensor:
    """(B, T) bool -> bias (B, 1, 1, T) that keeps attention away from them."""
    return torch.zeros_like(absent, dtype=torch.float32).masked_fill(absent, NEVER)[:, None, None]
