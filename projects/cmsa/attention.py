"""Cross-modal self-attention: every pair of a word and a pixel attends to all such pairs.

Pairs are never stored where that can be helped. The layers before the attention are linear in
[visual, word, coordinates], so they are a sum of a term per pixel and a term per word; and what
comes out of the attention is averaged over words, so the words go through it one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unified.modeling.layers import masked_mean, xavier_init

COORDINATES = 8
RECOMPUTE_FROM = 1 << 20  # numbers of one word: fewer are kept for the backward pass


def coordinates(height: int, width: int, *, like: Tensor) -> Tensor:
    """Where each cell of a grid is, (H * W, 8): left, top, right, bottom, centre x, y, 1/W, 1/H.

    Edges and centres are in [-1, 1]. Source: CMSA-Net, ``generate_spatial_batch``; the paper lists
    the same numbers in another order.
    """
    top, left = (
        torch.arange(size, dtype=like.dtype, device=like.device) / size * 2 - 1
        for size in (height, width)
    )
    y, x = torch.meshgrid(top, left, indexing="ij")
    tall, wide = torch.full_like(y, 2 / height), torch.full_like(x, 2 / width)
    cells = (x, y, x + wide, y + tall, x + wide / 2, y + tall / 2, wide / 2, tall / 2)
    return torch.stack(cells, dim=-1).flatten(0, 1)


class PairLinear(nn.Linear):
    """A linear layer on [visual, word, coordinates] of every pair of a word and a pixel."""

    def __init__(self, visual_dim: int, word_dim: int, out_dim: int) -> None:
        super().__init__(visual_dim + word_dim + COORDINATES, out_dim)
        self.visual_dim, self.word_dim = visual_dim, word_dim

    def forward(  # type: ignore[override]
        self, pixels: Tensor, words: Tensor
    ) -> Tensor:
        """[visual, coordinates] (B, P, V + 8) and words (B, N, W) -> (B, N, P, out_dim)."""
        visual, word, place = self.weight.split((self.visual_dim, self.word_dim, COORDINATES), 1)
        of_pixels = F.linear(pixels, torch.cat((visual, place), dim=1), self.bias)
        return F.linear(words, word)[:, :, None] + of_pixels[:, None]


@dataclass(frozen=True)
class Pairs:
    """Every pair of a word and a pixel, as the attention takes them.

    Attributes:
        query: (B, N, P, D) of N words and P pixels.
        key, value: (B, M, D) of the M pooled pairs.
        ignored: (B, M) True where there is nothing but padding.
        residual: (B, P, width), the mean over words of what was projected.
        padding_mask: (B, N) True on padding, which is at the end.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    ignored: Tensor
    residual: Tensor
    padding_mask: Tensor


class CrossModalSelfAttention(nn.Module):
    """Word-pixel features of one level, self-attention over all of them, mean over words.

    Source: CMSA (arXiv:1904.04745), section 3.2; CMSA-Net, ``cmsa_layer``: ReLU after each
    projection, keys and values pooled over 2 words x 2 x 2 pixels, scores not scaled, and on the
    two finer levels a projection of the pairs before. Difference: any number of images and of
    words each; pooled keys made of padding alone are left out.

    Args:
        visual_dim, word_dim: widths of what is paired.
        inner_dim: of queries, keys and values.
        out_dim: C of the result.
        reduced_dim: width of the projected pairs; None attends between the pairs as they are.
    """

    def __init__(
        self,
        *,
        visual_dim: int,
        word_dim: int,
        inner_dim: int,
        out_dim: int,
        reduced_dim: int | None = None,
    ) -> None:
        super().__init__()
        dims = (visual_dim, word_dim)
        self.reduce = None if reduced_dim is None else PairLinear(*dims, reduced_dim)
        self.width = sum(dims) + COORDINATES if reduced_dim is None else reduced_dim

        def projection() -> nn.Linear:
            if reduced_dim is None:
                return PairLinear(*dims, inner_dim)
            return nn.Linear(reduced_dim, inner_dim)

        self.query, self.key, self.value = projection(), projection(), projection()
        self.output = nn.Linear(inner_dim, self.width)
        self.project = nn.Linear(self.width, out_dim)
        layers = (self.query, self.key, self.value, self.output, self.project)
        xavier_init(*layers, *([] if self.reduce is None else [self.reduce]))

    def forward(self, visual: Tensor, words: Tensor, padding_mask: Tensor) -> Tensor:
        """The level after attending to the sentence.

        Args:
            visual: (B, V, H, W), normalised over channels.
            words: (B, N, W), normalised over channels.
            padding_mask: (B, N) True on padding, wherever it stands; every row keeps a word.

        Returns:
            (B, C, H, W).
        """
        return F.relu(self.project(self.attend(visual, words, padding_mask))).movedim(-1, 1)

    def attend(self, visual: Tensor, words: Tensor, padding_mask: Tensor) -> Tensor:
        """Attention and residual without the last projection: (B, H, W, width)."""
        pairs = self.pairs(visual, words, padding_mask)
        total = torch.zeros_like(pairs.residual)
        for number in range(pairs.query.shape[1]):
            said = self._run(pairs.query[:, number], pairs.key, pairs.value, pairs.ignored)
            total = total + said.masked_fill(pairs.padding_mask[:, number, None, None], 0)
        count = (~pairs.padding_mask).sum(dim=1)[:, None, None]
        return (total / count + pairs.residual).unflatten(1, visual.shape[-2:])

    def pairs(self, visual: Tensor, words: Tensor, padding_mask: Tensor) -> Pairs:
        """What the attention works on; see ``forward``."""
        words, padding_mask = words_first(words, padding_mask)
        size = (visual.shape[2], visual.shape[3])
        place = coordinates(*size, like=visual).expand(len(visual), -1, -1)
        pixels = torch.cat((visual.flatten(2).transpose(1, 2), place), dim=2)  # (B, P, V + 8)
        if self.reduce is None:
            residual = self._mean_pair(pixels, words, padding_mask)
            inputs: tuple[Tensor, ...] = (pixels, words)
        else:
            reduced = F.relu(self.reduce(pixels, words))  # (B, N, P, R)
            inputs = (reduced,)
            residual = masked_mean(reduced.flatten(2), padding_mask).unflatten(1, (-1, self.width))
        key, value = (
            pool(F.relu(layer(*inputs)), padding_mask, size) for layer in (self.key, self.value)
        )
        ignored = padding_mask[:, ::2, None].expand(-1, -1, key.shape[2])
        return Pairs(
            query=F.relu(self.query(*inputs)),
            key=key.flatten(1, 2),
            value=value.flatten(1, 2),
            ignored=ignored.flatten(1),
            residual=residual,
            padding_mask=padding_mask,
        )

    def _mean_pair(self, pixels: Tensor, words: Tensor, padding_mask: Tensor) -> Tensor:
        """Mean over words of [visual, word, coordinates], (B, P, V + W + 8)."""
        visual, place = pixels.split((pixels.shape[2] - COORDINATES, COORDINATES), dim=2)
        word = masked_mean(words, padding_mask)[:, None].expand(-1, pixels.shape[1], -1)
        return torch.cat((visual, word, place), dim=2)

    def _run(self, *inputs: Tensor) -> Tensor:
        """One word's pairs; in training many activations are computed again when needed."""
        many = inputs[0].shape[0] * inputs[0].shape[1] * self.width >= RECOMPUTE_FROM
        if many and self.training and torch.is_grad_enabled():
            said: Tensor = checkpoint(self._attend_word, *inputs, use_reentrant=False)
            return said
        return self._attend_word(*inputs)

    def _attend_word(self, query: Tensor, key: Tensor, value: Tensor, ignored: Tensor) -> Tensor:
        """(B, P, D), (B, M, D), (B, M, D), (B, M) True = leave out -> (B, P, width)."""
        mask = ~ignored[:, None, None]
        attended = F.scaled_dot_product_attention(
            query[:, None], key[:, None], value[:, None], attn_mask=mask, scale=1.0
        )
        return F.relu(self.output(attended[:, 0]))


def pool(pairs: Tensor, padding_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest of 2 words x 2 x 2 pixels, less at the ends: (B, N, P, D) -> (B, N/2, P/4, D).

    Values are not negative, so that a zero stands for what is not there.
    """
    pairs = pairs.masked_fill(padding_mask[..., None, None], 0)
    volume = pairs.unflatten(2, size).movedim(-1, 1)  # (B, D, N, H, W)
    pooled = F.max_pool3d(volume, 2, ceil_mode=True)
    return pooled.movedim(1, -1).flatten(2, 3)


def words_first(words: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The words of every sentence in their order before its padding, and no needless padding."""
    order = padding_mask.long().argsort(dim=1, stable=True)
    length = int((~padding_mask).sum(dim=1).max())
    words = words.take_along_dim(order[..., None], dim=1)
    return words[:, :length], padding_mask.take_along_dim(order, dim=1)[:, :length]
