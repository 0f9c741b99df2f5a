"""Fusion layers: how references change image features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from unified.errors import ConfigError
from unified.modeling.attention import Backend, attend_alike
from unified.modeling.layers import masked_mean, xavier_init, zero_init
from unified.modeling.products import project
from unified.structures import Reference, once

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

    Attributes:
        inputs: fields of a reference that the layer reads.
    """

    inputs: ClassVar[tuple[str, ...]] = ("keys", "values", "summary")

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
                    f"{tokens.shape[-1]}: build the fusion layer as wide as the features"
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
            self.norm_query(once(tokens)),
            self.norm_key(once(reference.keys)),
            reference.values,
            reference.padding_mask,
        )
        return attended * (gate * (1 + scale)) + gate * shift


@register_fusion
class FilmUniFusion(UniFusion):
    """UniFusion that also scales the channels of each token, as the reference as a whole says.

    UniFusion adds what a token attends to; whether the token matches it is for later layers to
    find out. A product says so at once, which pays where training sets are small. What scales is
    the mean of the values: of the words of a sentence, or of a mask's code on its frame.

    Source of the product: FiLM (arXiv:1709.07871), equation 2. Not part of UniRef++.
    """

    def __init__(self, *, dim: int, **options: Any) -> None:
        super().__init__(dim=dim, **options)
        self.film = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim))
        zero_init(self.film)

    def fuse(self, tokens: Tensor, reference: Reference) -> Tensor:
        scale = self.film(masked_mean(reference.values, reference.padding_mask))[:, None]
        return super().fuse(tokens, reference) + self.norm_query(once(tokens)) * scale


@register_fusion
class PooledFusion(FusionLayer):
    """The summary alone: ``gate * (token * (1 + scale) + shift)``, normalised tokens, no attention.

    An ablation of ``UniFusion``: a sentence as a whole gets in, its single words do not. Of a mask
    reference the summary is the mean of its frame's features: it does not tell where the mask is.
    """

    inputs = ("summary",)

    def __init__(self, *, dim: int, **_: object) -> None:
        """Takes and leaves the options of attention, so that a config needs only another name."""
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        zero_init(self.modulation)

    def fuse(self, tokens: Tensor, reference: Reference) -> Tensor:
        shift, scale, gate = self.modulation(reference.summary)[:, None].chunk(3, dim=-1)
        return gate * (self.norm_query(tokens) * (1 + scale) + shift)


@register_fusion
class NoFusion(FusionLayer):
    """References are ignored: the ablation that shows how much of a number they earn.

    It has no parameters, and the encoders of references get no gradient.
    """

    inputs = ()

    def __init__(self, *, dim: int, **_: object) -> None:
        super().__init__()

    def fuse(self, tokens: Tensor, reference: Reference) -> Tensor:
        return torch.zeros_like(tokens)


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
        self.fold_on_cpu = head_dim == dim
        inner = num_heads * head_dim
        self.dropout = nn.Dropout(dropout)
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)
        xavier_init(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, N, C), (B, M, C), (B, M, C), (B, M) True = padding -> (B, N, C).

        Query or key may also be those of one image, (1, N, C) and (1, M, C), for all values.
        """
        inference_on_cpu = query.device.type == "cpu" and not torch.is_grad_enabled()
        if self.fold_on_cpu and inference_on_cpu and self.backend != "eager" and not self.training:
            return self._forward_folded(query, key, value, padding_mask)
        q, k, v = (
            self._split(project(layer, x))
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        dropout = self.dropout.p if self.training else 0.0
        out = attend_alike(q, k, v, padding_mask, backend=self.backend, dropout=dropout)
        out = rearrange(out, "b heads n d -> b n (heads d)")
        return project(self.out_proj, out.to(query.dtype))

    def _forward_folded(
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor
    ) -> Tensor:
        """``forward`` for heads as wide as the tokens, without projecting keys and values.

        With x, y, z the inputs and Q, K, V, O one head's weights, scores are
        (x Q^T + b) (y K^T)^T = (x Q^T K + b K) y^T and outputs (P z V^T) O^T = P z (O V)^T: one
        projection folds into the other. The bias of keys moves all scores of a row alike, which
        softmax ignores; that of values adds a constant, as the weights of a row sum to one. Heads
        run one by one, so that every buffer is small enough for the allocator to use again.
        """
        dim, dtype = query.shape[-1], self.dtype or query.dtype
        keys, values = key[:, None].to(dtype), value[:, None].to(dtype)
        out_bias = self.out_proj.bias + self.out_proj.weight @ self.v_proj.bias
        output = out_bias
        for head in range(self.num_heads):
            rows = slice(head * dim, (head + 1) * dim)
            q_weight, k_weight, v_weight = (
                layer.weight[rows] for layer in (self.q_proj, self.k_proj, self.v_proj)
            )
            folded = F.linear(query, k_weight.t() @ q_weight, self.q_proj.bias[rows] @ k_weight)
            attended = attend_alike(
                folded[:, None].to(dtype), keys, values, padding_mask, backend=self.backend
            )[:, 0]
            output = output + F.linear(
                attended.to(query.dtype), self.out_proj.weight[:, rows] @ v_weight
            )
        return output

    def _split(self, x: Tensor) -> Tensor:
        heads = rearrange(x, "b n (heads d) -> b heads n d", heads=self.num_heads)
        return heads if self.dtype is None else heads.to(self.dtype)
