"""Multi-scale deformable attention in plain torch, without a compiled extension."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unified.modeling.deform_sum import (
    Shapes,
    sample_and_sum,
    sum_at_pixels,
    sum_of_tokens,
)
from unified.modeling.products import linear, project, reads_weights
from unified.structures import upload

_COST_OF_A_SAMPLE = 16  # of four tokens, in multiplications per channel


@dataclass(frozen=True)
class TokenSampling:
    """What tokens that ask one another sample, before what they hold is known.

    Attributes:
        rows: (K, C) that they are projected with.
        terms: (1, N, K) that are added.
    """

    rows: Tensor
    terms: Tensor


class MultiScaleDeformableAttention(nn.Module):
    """Every query reads ``num_points`` sampled tokens per head and level.

    Source: Deformable DETR (arXiv:2010.04159), equation 3.
    """

    def __init__(
        self, *, dim: int, num_heads: int = 8, num_levels: int = 4, num_points: int = 4
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        num_samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, num_samples * 2)
        self.attention_weights = nn.Linear(dim, num_samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.sample = sample_and_sum
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        radius = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None] * radius[:, None]  # (heads, 1, points, 2)
        offsets = offsets.expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        tokens: Tensor,
        shapes: Shapes,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention output before the residual.

        Args:
            query: (B, Q, C), position code included.
            reference: (B, Q, L, 2) points or (B, Q, L, 4) cxcywh boxes, in [0, 1] of the padded
                level; offsets are relative to one pixel, or to half the box side over the points.
            tokens: (B, N, C) all levels, finest first.
            shapes: L x (h, w) with sum(h * w) = N.
            padding_mask: (B, N) True = padding; the values of padded tokens are zero.

        Returns:
            (B, Q, C).
        """
        if self._sums_on_cpu(query):
            rows, bias = self._sampling_rows()
            sampled = linear(query, rows, bias)
            places, weights = self._split(sampled)
            centres, sides = _in_pixels(reference, shapes)
            if sides is not None:
                places *= (sides * (0.5 / self.num_points))[:, :, :, None, :, None]
            places += centres[:, :, :, None, :, None]
            summed = self._sum_on_cpu(tokens, shapes, places, weights, padding_mask)
        else:
            layout = (self.num_heads, self.num_levels, self.num_points)
            offsets = self.sampling_offsets(query).unflatten(2, (*layout, 2))
            weights = self.attention_weights(query).unflatten(2, (self.num_heads, -1)).softmax(-1)
            locations = self._locations(offsets, reference, shapes)
            value = self._values(tokens, padding_mask)
            summed = self.sample(value, shapes, locations, weights.unflatten(3, layout[1:]))
        return project(self.output_proj, summed)

    def token_sampling(
        self, position: Tensor, reference: Tensor, shapes: Shapes
    ) -> TokenSampling | None:
        """What ``forward`` makes of the position of all tokens, apart from what they hold.

        Args:
            position: (1, N, C) code of the tokens that ``forward`` gets as part of its queries.
            reference: (1, N, L, 2) points.

        Returns:
            None where this is no gain, as it is for one image alone.
        """
        if not self._sums_on_cpu(position):
            return None
        rows, bias = self._sampling_rows()
        terms = linear(position, rows, bias)
        places, _ = self._split(terms)  # a view: the terms change with it
        places += _in_pixels(reference, shapes)[0][:, :, :, None, :, None]
        return TokenSampling(rows, terms)

    def of_tokens(
        self, tokens: Tensor, sampling: TokenSampling, shapes: Shapes, padding_mask: Tensor
    ) -> Tensor:
        """``forward`` of tokens (B, N, C) that ask one another, with their ``token_sampling``."""
        sampled = linear(tokens, sampling.rows).add_(sampling.terms)
        summed = self._sum_on_cpu(tokens, shapes, *self._split(sampled), padding_mask)
        return project(self.output_proj, summed)

    def _values(self, tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, N, heads, D)."""
        value = project(self.value_proj, tokens)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        return value.unflatten(2, (self.num_heads, -1))

    def _locations(self, offsets: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Of the samples, (B, Q, heads, L, P, 2) in [0, 1] of the padded level, or beyond."""
        if reference.shape[-1] == 2:
            size = upload(torch.tensor([(w, h) for h, w in shapes]), offsets.device)[:, None]
            offsets = offsets / size.expand(offsets.shape[2:]).contiguous()
        else:
            offsets = offsets / self.num_points * reference[:, :, None, :, None, 2:] * 0.5
        # Written out per point: sums of short rows are slow on CPUs.
        centres = reference[:, :, None, :, None, :2].expand(-1, -1, -1, -1, self.num_points, -1)
        return centres.contiguous() + offsets

    def _sums_on_cpu(self, query: Tensor) -> bool:
        layers = self.sampling_offsets, self.attention_weights, self.value_proj
        return self.sample is sample_and_sum and reads_weights(query, *layers)

    def _sampling_rows(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of one projection: all x of a query, all y, then all weights.

        So operations on them have long rows.
        """
        offsets, weights = self.sampling_offsets, self.attention_weights
        order = offsets.weight.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
        bias = offsets.bias.view(-1, 2).t().flatten()
        return torch.cat((order, weights.weight)), torch.cat((bias, weights.bias))

    def _split(self, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """What ``_sampling_rows`` give as places (B, Q, 2, heads, L, P), and scores of the same."""
        layout = (self.num_heads, self.num_levels, self.num_points)
        num = math.prod(layout)
        places, scores = sampled.split((2 * num, num), dim=2)
        return places.unflatten(2, (2, *layout)), scores.unflatten(2, layout)

    def _sum_on_cpu(
        self,
        tokens: Tensor,
        shapes: Shapes,
        places: Tensor,
        scores: Tensor,
        padding_mask: Tensor | None,
    ) -> Tensor:
        """What ``sample`` gives of the values, (B, Q, heads * D), with fewer passes over memory.

        Where few tokens are sampled they are summed before they are projected, which is linear.
        """
        num_heads, num_tokens, dim = self.num_heads, *tokens.shape[1:]
        weights = scores.flatten(3).softmax(-1).view(scores.shape)
        if _COST_OF_A_SAMPLE * weights[0].numel() > num_tokens * dim:
            value = self._values(tokens, None)
            if padding_mask is not None:  # faster than to fill
                value *= (~padding_mask)[..., None, None].to(value.dtype)
            return sum_at_pixels(value, shapes, places, weights)
        sums, shares = sum_of_tokens(tokens, shapes, places, weights, padding_mask)
        weight = self.value_proj.weight.unflatten(0, (num_heads, -1))
        bias = self.value_proj.bias.view(num_heads, -1)
        values = torch.einsum("bqhc,hdc->bqhd", sums, weight) + shares[..., None] * bias
        return values.flatten(2)


def _in_pixels(reference: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor | None]:
    """Centres (B, Q, 2, L), 1.0 in the middle of the first pixel, and sides of boxes in pixels."""
    sizes = torch.tensor([*zip(*shapes, strict=True)], device=reference.device).flip(0)  # (2, L)
    centres, *sides = (reference.transpose(2, 3).unflatten(2, (-1, 2)) * sizes).unbind(2)
    return centres + 0.5, sides[0] if sides else None
