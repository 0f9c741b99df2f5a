"""How SLViT's words reach pixels: one head of attention, normalised over the image, and gated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Attended:
    """What the words say about every pixel.

    Attributes:
        cross: (B, N, C) attended words, normalised over the N pixels, before the gate.
        tokens: (B, N, C) the same after the gate.
        logits: (B, N, T) similarity of pixels and words before softmax, 0 on padding.
        weights: (B, N, T) its softmax over words.
    """

    cross: Tensor
    tokens: Tensor
    logits: Tensor
    weights: Tensor


class GatedCrossAttention(nn.Module):
    """One head of cross-attention from pixels to words, with a gate per pixel and channel.

    Queries and outputs are normalised over the pixels of an image (instance norm); the gate is
    ``tanh(W2 relu(W1 x))`` and may be negative.

    Source: SLViT (IJCAI 2023), language-guided multi-scale fusion attention, and its repository.
    """

    def __init__(self, *, dim: int, context_dim: int, bias: bool = True) -> None:
        """``bias`` of queries, keys and outputs: the norm, or softmax, takes it away again."""
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(context_dim, dim, bias=bias)
        self.value = nn.Linear(context_dim, dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        self.gate = nn.Sequential(
            nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.Tanh()
        )

    def forward(
        self,
        tokens: Tensor,
        words: Tensor,
        padding_mask: Tensor,
        *,
        values: Tensor | None = None,
    ) -> Attended:
        """Attends from pixels (B, N, C) to words (B, T, D); padding_mask (B, T).

        Args:
            values: (B, T, D) what a pixel receives, if not the words themselves.
        """
        keep = (~padding_mask)[..., None].to(words.dtype)
        query = _instance_norm(self.query(tokens))
        key, value = self.key(words) * keep, self.value(words if values is None else values) * keep
        logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5  # (B, N, T)
        weights = (logits - 1e4 * padding_mask[:, None].to(logits.dtype)).softmax(dim=-1)
        cross = _instance_norm(self.out(weights @ value))
        return Attended(cross, cross * self.gate(cross), logits, weights)


def _instance_norm(tokens: Tensor) -> Tensor:
    """Zero mean and unit variance of each channel over the tokens: (B, N, C) -> (B, N, C)."""
    if tokens.shape[1] == 1:  # one pixel has no variance; what is left of it is its mean, 0
        return torch.zeros_like(tokens)
    return F.instance_norm(tokens.transpose(1, 2)).transpose(1, 2)
