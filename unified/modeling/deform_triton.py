"""``sample_and_sum`` and its gradients as Triton kernels.

One program works on a block of queries of one head: all its samples pass through registers, so
nothing is stored but the results. Values are read in their own precision and summed in float32.
Importing this needs Triton; ``unified.modeling.deform_sum`` does so where it can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Shapes = Sequence[tuple[int, int]]
FORWARD = {"BLOCK": 8, "num_warps": 1}  # the fastest of ten on an H200
BACKWARD = {"BLOCK": 8, "num_warps": 1}


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """As ``sample_and_sum``."""
    value, locations, weights = (x.contiguous() for x in (value, locations, weights))
    batch, _, num_heads, dim = value.shape
    output = value.new_empty(batch, locations.shape[1], num_heads * dim)
    if output.numel():
        grid, work = _launch(value, shapes, locations, FORWARD)
        _forward[grid](value, locations, weights, output, **work)
    return output


def backward(
    grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the values, the locations and the weights.

    Many samples read the same token: their gradients are added in float32, in any order. Those of
    locations and weights belong to one sample each and are written once.
    """
    grad, value, locations, weights = (x.contiguous() for x in (grad, value, locations, weights))
    of_value = torch.zeros_like(value, dtype=torch.float32)
    of_locations, of_weights = torch.empty_like(locations), torch.empty_like(weights)
    if grad.numel():
        grid, work = _launch(value, shapes, locations, BACKWARD)
        _backward[grid](grad, value, locations, weights, of_value, of_locations, of_weights, **work)
    return of_value.to(value.dtype), of_locations, of_weights


def _launch(
    value: Tensor, shapes: Shapes, locations: Tensor, how: dict[str, int]
) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """The grid of programs, and the arguments that both kernels have."""
    batch, num_tokens, num_heads, dim = value.shape
    num_queries, _, num_levels, num_points = locations.shape[1:5]
    starts = accumulate((height * width for height, width in shapes), initial=0)
    work = {
        "num_queries": num_queries,
        "num_tokens": num_tokens,
        # As floats: Triton compiles anew for whole numbers that are divisible by 16, or are 1.
        "levels": tuple(
            (float(h), float(w), float(s)) for (h, w), s in zip(shapes, starts, strict=False)
        ),
        "HEADS": num_heads,
        "DIM": dim,
        "WIDTH": triton.next_power_of_2(dim),
        "LEVELS": num_levels,
        "POINTS": num_points,
        **how,
    }
    return (triton.cdiv(num_queries, how["BLOCK"]), num_heads, batch), work


@triton.jit
def _level(levels, level, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Height, width and first token of a level that is known when the kernel runs.

    A loop over levels that is not unrolled compiles in a sixth of the time.
    """
    height, width, start = levels[0]
    for other in tl.static_range(1, LEVELS):
        height = tl.where(level == other, levels[other][0], height)
        width = tl.where(level == other, levels[other][1], width)
        start = tl.where(level == other, levels[other][2], start)
    return height, width, start


@triton.jit
def _token(x, y, width, height, start, exists):  # type: ignore[no-untyped-def]
    """The token of a pixel, and whether that pixel is inside the level."""
    inside = exists & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return (start + y * width + x).to(tl.int32), inside


@triton.jit
def _read(table, token, inside, channel, HEADS: tl.constexpr, DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    """(BLOCK, WIDTH) float32 values of tokens, 0 outside."""
    place = token[:, None] * (HEADS * DIM) + channel[None, :]
    mask = inside[:, None] & (channel < DIM)[None, :]
    return tl.load(table + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _add(table, token, inside, channel, amount, HEADS: tl.constexpr, DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    place = token[:, None] * (HEADS * DIM) + channel[None, :]
    mask = inside[:, None] & (channel < DIM)[None, :]
    tl.atomic_add(table + place, amount, mask=mask, sem="relaxed")


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    value,
    locations,
    weights,
    output,
    num_queries,
    num_tokens,
    levels,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    exists = query < num_queries
    table = value + (image * num_tokens * HEADS + head) * DIM
    first = image * num_queries * HEADS
    locations += first * (LEVELS * POINTS * 2)
    weights += first * (LEVELS * POINTS)
    row = query * HEADS + head  # (BLOCK,)
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for level in tl.range(LEVELS):
        height, width, start = _level(levels, level, LEVELS)
        for point in tl.static_range(POINTS):
            sample = row * (LEVELS * POINTS) + level * POINTS + point
            x = tl.load(locations + 2 * sample, mask=exists, other=0.0).to(tl.float32)
            y = tl.load(locations + 2 * sample + 1, mask=exists, other=0.0).to(tl.float32)
            weight = tl.load(weights + sample, mask=exists, other=0.0).to(tl.float32)
            x, y = x * width - 0.5, y * height - 0.5
            left, top = tl.floor(x), tl.floor(y)
            across, down = x - left, y - top
            for corner in tl.static_range(4):
                if corner % 2:
                    column, share = left + 1, across
                else:
                    column, share = left, 1 - across
                if corner // 2:
                    token, inside = _token(column, top + 1, width, height, start, exists)
                    share = share * down
                else:
                    token, inside = _token(column, top, width, height, start, exists)
                    share = share * (1 - down)
                samples = _read(table, token, inside, channel, HEADS, DIM)
                total += samples * (share * weight)[:, None]
    place = (first + row)[:, None] * DIM + channel[None, :]
    mask = exists[:, None] & (channel < DIM)[None, :]
    tl.store(output + place, total.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad,
    value,
    locations,
    weights,
    of_value,
    of_locations,
    of_weights,
    num_queries,
    num_tokens,
    levels,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    exists = query < num_queries
    of_table = of_value + (image * num_tokens * HEADS + head) * DIM
    table = value + (image * num_tokens * HEADS + head) * DIM
    first = image * num_queries * HEADS
    row = query * HEADS + head  # (BLOCK,)
    place = (first + row)[:, None] * DIM + channel[None, :]
    mask = exists[:, None] & (channel < DIM)[None, :]
    slope = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)  # (BLOCK, WIDTH)
    locations += first * (LEVELS * POINTS * 2)
    of_locations += first * (LEVELS * POINTS * 2)
    weights += first * (LEVELS * POINTS)
    of_weights += first * (LEVELS * POINTS)
    for level in tl.range(LEVELS):
        height, width, start = _level(levels, level, LEVELS)
        for point in tl.range(POINTS):
            sample = row * (LEVELS * POINTS) + level * POINTS + point
            x = tl.load(locations + 2 * sample, mask=exists, other=0.0).to(tl.float32)
            y = tl.load(locations + 2 * sample + 1, mask=exists, other=0.0).to(tl.float32)
            weight = tl.load(weights + sample, mask=exists, other=0.0).to(tl.float32)
            x, y = x * width - 0.5, y * height - 0.5
            left, top = tl.floor(x), tl.floor(y)
            across, down = x - left, y - top
            of_x, of_y = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
            of_weight = tl.zeros((BLOCK,), tl.float32)
            for corner in tl.static_range(4):
                if corner % 2:
                    column, share_x, sign_x = left + 1, across, 1.0
                else:
                    column, share_x, sign_x = left, 1 - across, -1.0
                if corner // 2:
                    line, share_y, sign_y = top + 1, down, 1.0
                else:
                    line, share_y, sign_y = top, 1 - down, -1.0
                token, inside = _token(column, line, width, height, start, exists)
                samples = _read(table, token, inside, channel, HEADS, DIM)
                along = tl.sum(samples * slope, axis=1)  # (BLOCK,)
                of_weight += share_x * share_y * along
                of_x += sign_x * share_y * along
                of_y += sign_y * share_x * along
                amount = slope * (share_x * share_y * weight)[:, None]
                _add(of_table, token, inside, channel, amount, HEADS, DIM)
            kind = of_locations.dtype.element_ty
            tl.store(of_locations + 2 * sample, (of_x * weight * width).to(kind), mask=exists)
            tl.store(of_locations + 2 * sample + 1, (of_y * weight * height).to(kind), mask=exists)
            tl.store(of_weights + sample, of_weight.to(of_weights.dtype.element_ty), mask=exists)
