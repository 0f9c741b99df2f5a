"""Multi-scale deformable attention in plain torch, without a compiled extension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from unified.structures import upload

Shapes = Sequence[tuple[int, int]]


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
        batch, num_queries, dim = query.shape
        value = self.value_proj(tokens)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.view(batch, -1, self.num_heads, dim // self.num_heads)
        layout = (batch, num_queries, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*layout, 2)
        weights = self.attention_weights(query).view(*layout[:3], -1).softmax(-1).view(layout)
        if reference.shape[-1] == 2:
            size = upload(torch.tensor([(w, h) for h, w in shapes]), query.device)[:, None]
            offsets = offsets / size.expand(*layout[2:], 2).contiguous()
        else:
            offsets = offsets / self.num_points * reference[:, :, None, :, None, 2:] * 0.5
        locations = reference[:, :, None, :, None, :2] + offsets
        return self.output_proj(self.sample(value, shapes, locations, weights))


def sample_and_sum(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples, zero outside the level, for all heads and levels at once.

    Args:
        value: (B, N, heads, D).
        shapes: L x (h, w).
        locations: (B, Q, heads, L, P, 2) as (x, y), 0..1 over the padded level.
        weights: (B, Q, heads, L, P).

    Returns:
        (B, Q, heads * D) in the dtype of ``value``.
    """
    on_cpu = value.device.type == "cpu"
    return (sum_of_bags if on_cpu else sum_of_grids)(value, shapes, locations, weights)


def sum_of_grids(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``sample_and_sum`` for GPUs: one ``grid_sample`` per level.

    Source: Deformable DETR (arXiv:2010.04159), its released formulation in plain torch.
    """
    places = rearrange(2 * locations.float() - 1, "b q heads l p xy -> (b heads) q l p xy")
    shares = rearrange(weights.float(), "b q heads l p -> (b heads) 1 q l p")
    table = rearrange(value.float(), "b n heads d -> (b heads) d n")
    summed = table.new_zeros(())
    levels = table.split([height * width for height, width in shapes], dim=2)
    for level, (tokens, shape) in enumerate(zip(levels, shapes, strict=True)):
        samples = F.grid_sample(
            tokens.unflatten(2, shape), places[:, :, level], align_corners=False
        )  # (B * heads, D, Q, P)
        summed = summed + (samples * shares[:, :, :, level]).sum(dim=-1)
    return rearrange(summed, "(b heads) d q -> b q (heads d)", b=len(value)).to(value.dtype)


def sum_of_bags(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``sample_and_sum`` for CPUs, where it is several times as fast as ``sum_of_grids``.

    A bilinear sample is a weighted sum of four tokens, so the operation is four bags of L * P
    weighted table rows per query and head, one per corner, which torch sums without storing the
    samples.
    """
    batch, num_tokens, num_heads, dim = value.shape
    num_queries, _, num_levels, num_points = locations.shape[1:5]
    device = value.device
    # Constants are written out per head, level and point: elementwise operations want long rows.
    layout = (num_heads, num_levels, num_points)
    size = torch.tensor(shapes, device=device)  # (L, 2)
    height, width = (side[:, None].expand(layout).contiguous().float() for side in size.unbind(-1))
    starts = (size.prod(-1).cumsum(0) - size.prod(-1))[:, None].expand(layout)
    image = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1) * num_tokens
    head = torch.arange(num_heads, device=device).view(-1, 1, 1)
    first_row = ((image + starts) * num_heads + head).int()  # (B, 1, heads, L, P)

    table = value.reshape(-1, dim).float()
    columns = _neighbours(locations[..., 0].float() * width - 0.5, width)
    rows, shares = [], []
    for row, down in _neighbours(locations[..., 1].float() * height - 0.5, height):
        row, down = row * width, down * weights
        for column, across in columns:
            rows.append((first_row + (row + column).int() * num_heads).flatten(3))
            shares.append((down * across).flatten(3))
    # (B * Q * heads, 4 * L * P): each bag holds all corners of all samples of a query and head.
    bags, shares_of_bags = (torch.cat(x, dim=-1).flatten(0, 2) for x in (rows, shares))
    summed: Tensor = BagSum.apply(table, bags, shares_of_bags)
    return summed.view(batch, num_queries, num_heads * dim).to(value.dtype)


class BagSum(torch.autograd.Function):
    """Weighted sums of table rows, ``embedding_bag`` with a backward pass for CPUs.

    The sum is a product with a sparse matrix S of bags by rows, so the gradient of the table is
    the product of its transpose with the gradient of the bags. torch sorts all indices for that;
    scipy's compressed columns need no sorting and are 20 times as fast.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, table: Tensor, bags: Tensor, weights: Tensor
    ) -> Tensor:
        """(R, D) float32, (N, K) int32 rows, (N, K) float32 -> (N, D)."""
        ctx.save_for_backward(table, bags, weights)
        return F.embedding_bag(bags, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the table and the weights."""
        table, bags, weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        with torch.enable_grad():
            weights = weights.detach().requires_grad_()
            out = F.embedding_bag(bags, table.detach(), per_sample_weights=weights, mode="sum")
        (of_weights,) = torch.autograd.grad(out, weights, grad)
        ends = np.arange(0, bags.numel() + 1, bags.shape[1], dtype=np.int32)
        transposed = scipy.sparse.csc_matrix(
            (weights.detach().flatten().numpy(), bags.flatten().numpy(), ends),
            shape=(len(table), len(bags)),
        )
        return torch.from_numpy(transposed @ grad.numpy()), None, of_weights


def _neighbours(position: Tensor, size: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """The two pixels around a position on one axis, each with its weight, 0 outside the level."""
    before = position.detach().floor()
    fraction = position - before
    pairs = []
    for pixel, weight in ((before, 1 - fraction), (before + 1, fraction)):
        nearest = pixel.clamp(min=0).minimum(size - 1)
        pairs.append((nearest, weight * (nearest == pixel)))
    return tuple(pairs)
