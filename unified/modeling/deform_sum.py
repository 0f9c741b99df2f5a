"""The sum of samples inside deformable attention: one operator with a plain formula per device.

``unified::deformable_sum`` is a Triton kernel on GPUs. Compiled, exported and checkpointed models
hold it as one node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import accumulate, chain
from typing import Any

import numpy as np
import scipy.sparse
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

Shapes = Sequence[tuple[int, int]]
BORDER = 3  # pixels of zeros in a row of a level: one before it, two after it


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
    if torch.compiler.is_compiling() or has_kernel(value):
        sides = list(chain.from_iterable(shapes))
        return torch.ops.unified.deformable_sum(value, sides, locations, weights)
    return _plain(value, shapes, locations, weights)


def has_kernel(value: Tensor) -> bool:
    """Whether the Triton kernel can work on this tensor."""
    return value.is_cuda and value.dtype in KERNEL_DTYPES and _TRITON


KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRITON = find_spec("triton") is not None


@torch.library.custom_op("unified::deformable_sum", mutates_args=())
def deformable_sum(
    value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """``sample_and_sum`` as an operator; ``sides`` are h and w of each level in turn."""
    shapes = _pairs(sides)
    if has_kernel(value):
        from unified.modeling import deform_triton

        return deform_triton.forward(value, shapes, locations, weights)
    return _plain(value, shapes, locations, weights)


@torch.library.custom_op("unified::deformable_sum_backward", mutates_args=())
def deformable_sum_backward(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the values, the locations and the weights."""
    shapes = _pairs(sides)
    if has_kernel(value):
        from unified.modeling import deform_triton

        return deform_triton.backward(grad, value, shapes, locations, weights)
    return gradients(grad, value, shapes, locations, weights)


@deformable_sum.register_fake
def _(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, num_heads, dim = value.shape
    return value.new_empty(batch, locations.shape[1], num_heads * dim)


@deformable_sum_backward.register_fake
def _(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_value, of_locations, of_weights = (x.new_empty(x.shape) for x in (value, locations, weights))
    return of_value, of_locations, of_weights


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = torch.ops.unified.deformable_sum_backward(
        grad, value, ctx.sides, locations, weights
    )
    return of_value, None, of_locations, of_weights


deformable_sum.register_autograd(_differentiate, setup_context=_keep)


def _pairs(sides: Sequence[int]) -> Shapes:
    return list(zip(sides[::2], sides[1::2], strict=True))


def _plain(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    on_cpu = value.device.type == "cpu"
    return (sum_of_bags if on_cpu else sum_of_grids)(value, shapes, locations, weights)


def gradients(
    grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``sample_and_sum`` by their formula, for where autograd cannot look inside.

    Args:
        grad: (B, Q, heads * D), of the sum.

    Returns:
        As value, locations and weights.
    """
    batch, num_tokens, num_heads, dim = value.shape
    table = value.float().flatten(0, 2)  # (B * N * heads, D)
    slope = grad.float().unflatten(2, (num_heads, 1, dim))  # (B, Q, heads, 1, D)
    of_table = torch.zeros_like(table)
    of_places = torch.zeros(locations.shape, dtype=torch.float32, device=value.device)
    of_weights = torch.zeros(weights.shape, dtype=torch.float32, device=value.device)
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1) * num_tokens
    head = torch.arange(num_heads, device=value.device).view(-1, 1)
    start = 0
    for level, (height, width) in enumerate(shapes):
        x, y = locations[:, :, :, level].float().unbind(-1)  # (B, Q, heads, P)
        weight = weights[:, :, :, level].float()
        for row, down, sign_y in _with_slopes(y * height - 0.5, height):
            for column, across, sign_x in _with_slopes(x * width - 0.5, width):
                token = image + start + row * width + column
                index = token * num_heads + head  # (B, Q, heads, P)
                along = (table[index] * slope).sum(-1)
                of_weights[:, :, :, level] += down * across * along
                of_places[:, :, :, level, :, 0] += sign_x * down * along * weight * width
                of_places[:, :, :, level, :, 1] += sign_y * across * along * weight * height
                amount = (down * across * weight)[..., None] * slope
                of_table.index_add_(0, index.flatten(), amount.flatten(0, 3))
        start += height * width
    return (
        of_table.view(value.shape).to(value.dtype),
        of_places.to(locations.dtype),
        of_weights.to(weights.dtype),
    )


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


def sum_of_gathers(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``sample_and_sum`` of elementary operations alone, for programs that leave torch.

    Runtimes disagree about ``grid_sample``, and some convert it wrongly; what a gather does is the
    same everywhere.
    """
    places = to_pixels(locations, shapes).movedim(-1, 2)
    table, bags, shares = _bags(value, shapes, places, weights)
    rows = table.index_select(0, bags.flatten()).view(*bags.shape, -1)  # (B * Q * heads, K, D)
    summed = (shares[:, None] @ rows).view(*locations.shape[:2], -1)
    return summed.to(value.dtype)


def sum_of_bags(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``sample_and_sum`` for CPUs, where it is several times as fast as ``sum_of_grids``."""
    return sum_at_pixels(value, shapes, to_pixels(locations, shapes).movedim(-1, 2), weights)


def sum_at_pixels(value: Tensor, shapes: Shapes, places: Tensor, weights: Tensor) -> Tensor:
    """``sum_of_bags`` of places (B, Q, 2, heads, L, P), first all x, then all y, of ``to_pixels``.

    torch sums the rows of a bag without storing the samples.
    """
    summed: Tensor = BagSum.apply(*_bags(value, shapes, places, weights))
    return summed.view(*places.shape[:2], -1).to(value.dtype)


def sum_of_tokens(
    tokens: Tensor,
    shapes: Shapes,
    places: Tensor,
    weights: Tensor,
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sums of bilinear samples of tokens as they are, for few queries.

    Args:
        tokens: (B, N, C).
        places, weights: as for ``sum_at_pixels``.
        padding_mask: (B, N) True on tokens that count as zeros.

    Returns:
        The sums (B, Q, heads, C), and the sums of all weights that fell on tokens, (B, Q, heads).
    """
    device = tokens.device
    sides = torch.tensor([(width, height) for height, width in shapes], device=device)  # (L, 2)
    ends = sides.t()[:, None, None, :, None].float()
    before = places.floor()
    fraction = places - before
    pixels = torch.stack((before, before + 1), dim=3)  # (B, Q, 2, 2, heads, L, P)
    shares = torch.stack((1 - fraction, fraction), dim=3)
    shares = shares * ((pixels >= 1) & (pixels <= ends))
    column, row = (pixels.clamp(min=1).minimum(ends) - 1).int().unbind(2)
    sizes = [height * width for height, width in shapes]
    starts = torch.tensor([0, *accumulate(sizes)][:-1], device=device, dtype=torch.int32)[:, None]
    images = torch.arange(len(tokens), device=device, dtype=torch.int32) * tokens.shape[1]
    across = sides[:, :1].int()
    token = (row * across + starts)[:, :, :, None] + column[:, :, None]
    token += images.view(-1, *[1] * 6)  # (B, Q, 2, 2, heads, L, P), rows and then columns
    shares = shares[:, :, 1, :, None] * shares[:, :, 0, None] * weights[:, :, None, None]
    bags, shares = (
        rearrange(x, "b q i j heads l p -> (b q heads) (i j l p)") for x in (token, shares)
    )
    if padding_mask is not None:
        shares = shares.masked_fill(padding_mask.flatten()[bags], 0.0)
    sums = F.embedding_bag(bags, tokens.flatten(0, 1), per_sample_weights=shares, mode="sum")
    rows = (*weights.shape[:3], -1)
    return sums.view(rows), shares.sum(dim=1).view(weights.shape[:3])


def to_pixels(locations: Tensor, shapes: Shapes) -> Tensor:
    """Locations (..., L, P, 2) in 0..1 as float32 places in pixels, 1.0 in the middle of the first.

    Pixel 0 is on a border around each level.
    """
    sizes = torch.tensor([(w, h) for h, w in shapes], device=locations.device, dtype=torch.float32)
    return locations.float() * sizes[:, None].expand(locations.shape[-3:]).contiguous() + 0.5


def _bags(
    value: Tensor, shapes: Shapes, places: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What to sum for each query and head: a bilinear sample is a weighted sum of four tokens.

    Returns:
        Rows (R, D) float32, and which of them, (B * Q * heads, K) int32, with which weights, of the
        four corners of L * P samples.
    """
    table, starts = _with_borders(value, shapes)
    # Constants are written out per head, level and point: elementwise operations want long rows.
    layout, device = places.shape[3:], value.device
    sides = torch.tensor([(width, height) for height, width in shapes], device=device)  # (L, 2)
    ends = (sides.t()[:, None, :, None] + 1).expand(2, *layout).float().contiguous()
    # Nearer than that to a level or not, a place outside reads zeros.
    places = places.clamp(min=0).minimum(ends)
    column, row = places.int().unbind(2)  # (B, Q, heads, L, P)
    num_heads, across = layout[0], sides[:, :1] + BORDER
    token = row * (across * num_heads).expand(layout).int().contiguous() + column * num_heads
    corners = torch.stack((0 * across, 0 * across + 1, across, across + 1))  # (4, L, 1)
    head = torch.arange(num_heads, device=device).view(-1, 1, 1, 1)
    batch = value.shape[0]
    image = torch.arange(batch, device=device).view(-1, 1, 1, 1) * (table.shape[0] // batch)
    first = ((starts + corners) * num_heads + head).expand(-1, -1, -1, layout[2]).flatten(2)
    # (B * Q * heads, 4 * L * P): each bag holds all corners of all samples of a query and head.
    bags = token.flatten(3)[..., None, :] + (image + first).int()[:, None]
    shares = _corner_shares(places.frac(), weights)
    return table, bags.flatten(3).flatten(0, 2), shares.flatten(3).flatten(0, 2)


def _with_borders(value: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, heads, D) with pixels of zeros around each level.

    Returns:
        (B * R * heads, D) float32, and where each level starts among the R, (L, 1).
    """
    sizes = [height * width for height, width in shapes]
    pairs = zip(value.float().split(sizes, dim=1), shapes, strict=True)
    border = (0, 0, 0, 0, 1, BORDER - 1, 1, BORDER - 1)
    levels = [F.pad(tokens.unflatten(1, shape), border).flatten(1, 2) for tokens, shape in pairs]
    starts = [0, *accumulate(level.shape[1] for level in levels)][:-1]
    table = torch.cat(levels, dim=1).flatten(0, 2)
    return table, torch.tensor(starts, device=value.device)[:, None]


def _corner_shares(fraction: Tensor, weights: Tensor) -> Tensor:
    """Weights (B, Q, heads, 4, L * P) of the pixels around each sample, the upper left one first.

    Args:
        fraction: (B, Q, 2, heads, L, P), x and y.
        weights: (B, Q, heads, L, P).
    """
    x, y = fraction.unbind(2)
    below = y * weights
    above = weights - below
    right = above * x, below * x
    shares = (above - right[0], right[0], below - right[1], right[1])
    return torch.stack(shares, dim=3).flatten(4)


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


def _with_slopes(position: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The two pixels around a position on one axis, each with its weight and the weight's slope."""
    before = position.floor()
    fraction = position - before
    for pixel, weight, slope in ((before, 1 - fraction, -1), (before + 1, fraction, 1)):
        inside = (pixel >= 0) & (pixel < size)
        yield pixel.clamp(0, size - 1).long(), weight * inside, slope * inside
