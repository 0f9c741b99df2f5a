"""Fusion layers: how references change image features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from unified.errors import ConfigError
from unified.modeling.attention import Backend, attend
from unified.modeling.layers import xavier_init, zero_init
from unified.structures import Reference

FUSION_REGISTRY: dict[str, Callable[..., FusionLayer]] = {}


def register_fusion(layer: type[FusionLayer]) -> type[FusionLayer]:
    """Class decorator: makes ``layer`` nameable in configs under its class name."""
    FUSION_REGISTRY[layer.__name__] = layer
    return layer


def build_fusion(name: str, **options: object) -> FusionLayer:
    """The registered fusion layer ``name``.

    Raises:
        ConfigError: no layer has this name.
    """
    if name not in FUSION_REGISTRY:
        raise ConfigError(
            f"fusion layer {name!r} is unknown: registered are {sorted(FUSION_REGISTRY)}"
        )
    return FUSION_REGISTRY[name](**options)


class FusionLayer(nn.Module, ABC):
    """Contract: identity without references; their order is irrelevant; padding changes nothing.

    Implementations take keyword arguments ``dim``, ``num_heads``, ``head_dim``, ``dropout``,
    ``backend`` and ``attention_dtype`` and start as the identity (zero-initialised gate).
    """

    def forward(self, tokens: Tensor, references: Sequence[Reference]) -> Tensor:
        """Adds what each reference says, all of them computed from the same input.

        Args:
            tokens: (B, N, C) image tokens of one level.
            references: any number of references to the same B images, for this level.

        Returns:
            (B, N, C).
        """
        for reference in references:
            if reference.keys.shape[-1] != tokens.shape[-1]:
                raise ConfigError(
                    f"reference has {reference.keys.shape[-1]} channels, features have "
                    f"{tokens.shape[-1]}: set MODEL.UNIREF.HIDDEN_DIM alike"
                )
        return sum((self.fuse(tokens, reference) for reference in references), tokens)

    @abstractmethod
    def fuse(self, tokens: Tensor, reference: Reference) -> Tensor:
        """The term (B, N, C) that ``reference`` adds to ``tokens`` (B, N, C)."""


@register_fusion
class UniFusion(FusionLayer):
    """Cross-attention to the reference, modulated by its summary.

    ``gate * (attention * (1 + scale) + shift)`` with shift, scale and gate from the summary. Keys
    are normalised, values are not. One layer serves all levels, text and masks.

    Source: UniRef++ (arXiv:2312.15715), section 3.3, equations 2 and 3.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int = 8,
        head_dim: int = 256,
        dropout: float = 0.0,
        backend: Backend = "sdpa",
        attention_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.norm_key = nn.LayerNorm(dim)
        self.attention = CrossAttention(
            dim=dim,
            num_heads=num_heads,
            head_dim=head_dim,
            dropout=dropout,
            backend=backend,
            dtype=attention_dtype,
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        zero_init(self.modulation)

    def fuse(self, tokens: Tensor, reference: Reference) -> Tensor:
        shift, scale, gate = self.modulation(reference.summary)[:, None].chunk(3, dim=-1)
        attended = self.attention(
            self.norm_query(tokens),
            self.norm_key(reference.keys),
            reference.values,
            reference.padding_mask,
        )
        return gate * (attended * (1 + scale) + shift)


class CrossAttention(nn.Module):
    """Multi-head attention whose heads may be wider than ``dim / num_heads``."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        dropout: float = 0.0,
        backend: Backend = "sdpa",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.backend, self.dtype = num_heads, backend, dtype
        inner = num_heads * head_dim
        self.dropout = nn.Dropout(dropout)
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)
        xavier_init(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, N, C), (B, M, C), (B, M, C), (B, M) True = padding -> (B, N, C)."""
        q, k, v = (
            self._split(layer(x))
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        dropout = self.dropout.p if self.training else 0.0
        out = attend(q, k, v, padding_mask, backend=self.backend, dropout=dropout)
        out = out.transpose(1, 2).flatten(2)  # (B, N, heads * D)
        return self.out_proj(out.to(query.dtype))

    def _split(self, x: Tensor) -> Tensor:
        heads = x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # (B, heads, N, D)
        return heads if self.dtype is None else heads.to(self.dtype)
