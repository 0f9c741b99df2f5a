"""GroupViT's text encoder: a causal transformer whose end token stands for the sentence."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from projects.groupvit.grouping import SelfAttention
from unified.errors import ConfigError


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TextLayer(nn.Module):
    """A pre-norm transformer layer in which tokens see only those before them."""

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = SelfAttention(dim=dim, num_heads=num_heads)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(dim, 4 * dim), gelu=QuickGELU(), c_proj=nn.Linear(4 * dim, dim)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> the same."""
        x = x + self.attn(self.ln_1(x), causal=True)
        return x + self.mlp(self.ln_2(x))


class TextTransformer(nn.Module):
    """Token ids to one vector per sentence, that of its end token.

    Source: CLIP (arXiv:2103.00020), section 2.4, in the size of GroupViT's code.

    Args:
        embedding: vectors of the tokens; None makes ``vocab_size`` of them.
        end_token: id whose first place stands for the sentence; None means the largest id of each
            sentence, which in CLIP's vocabulary is the end token.
    """

    def __init__(
        self,
        *,
        context_length: int = 77,
        dim: int = 256,
        num_layers: int = 12,
        num_heads: int | None = None,
        vocab_size: int = 49408,
        embedding: nn.Module | None = None,
        end_token: int | None = None,
    ) -> None:
        super().__init__()
        heads = max(1, dim // 64) if num_heads is None else num_heads
        if dim % heads:
            raise ConfigError(f"a text width of {dim} cannot be split among {heads} heads")
        self.context_length, self.end_token = context_length, end_token
        self.token_embedding = embedding or nn.Embedding(vocab_size, dim)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, dim))
        self.layers = nn.ModuleList(TextLayer(dim=dim, num_heads=heads) for _ in range(num_layers))
        self.ln_final = nn.LayerNorm(dim)
        if isinstance(self.token_embedding, nn.Embedding):
            nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, N), N at most the context length -> (B, C)."""
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        place = ids if self.end_token is None else (ids == self.end_token).int()
        return self.ln_final(x)[torch.arange(len(x), device=x.device), place.argmax(dim=1)]
