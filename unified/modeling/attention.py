"""Scaled dot-product attention behind three interchangeable backends."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from unified.dependencies import require
from unified.errors import ConfigError
from unified.modeling.precision import HALF, full_precision
from unified.modeling.products import answers_on_cpu, linear
from unified.structures import exporting, once

logger = logging.getLogger(__name__)

Backend = Literal["sdpa", "flash", "eager"]
BACKENDS: tuple[Backend, ...] = ("sdpa", "flash", "eager")

# Blocks of scores (rows x keys) of this many entries: enough rows for fast matrix products, and
# about the size of the last cache.
_CPU_BLOCK_ENTRIES = 1 << 24
# Less where the product with many values follows, so that the block stays in the cache; but no
# fewer rows than these, as products of few rows are slow.
_CPU_SHARED_ENTRIES = 1 << 20
_CPU_SHARED_ROWS = 640
# oneDNN packs the values anew for every block: no gain where there are more of them.
_CPU_PACKED_ENTRIES = 1 << 21
# Every how many keys are looked at to guess a row's largest score.
_CPU_KEY_STEP = 64
# A score that gives no weight: zero times infinity would be none.
_NEVER = -1e9


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding_mask: Tensor | None = None,
    *,
    backend: Backend = "sdpa",
    dropout: float = 0.0,
) -> Tensor:
    """softmax(query key^T / sqrt(D)) value over unpadded keys, in the dtype of ``query``.

    Args:
        query: (B, heads, N, D).
        key, value: (B, heads, M, D).
        padding_mask: (B, M) True = ignore; every row keeps at least one key.
        backend: "sdpa" (torch), "flash" (the flash-attn package on half-precision CUDA tensors)
            or "eager" (the formula; in half precision rounded where flash attention rounds).
        dropout: probability of dropping an attention weight; 0 outside training.

    Returns:
        (B, heads, N, D).

    Raises:
        ConfigError: the backend is unknown or "flash" without the package.
    """
    learning = dropout > 0 or any(x.requires_grad for x in (query, key, value))
    # A GPU answers only after all work before, which in training costs more than a needless mask.
    costly = learning and backend == "sdpa" and query.device.type != "cpu"
    unknown = costly or torch.compiler.is_compiling()  # a program may not depend on values
    if padding_mask is not None and not unknown and not bool(padding_mask.any()):
        padding_mask = None
    if backend == "eager":
        return _eager(query, key, value, padding_mask, dropout)
    if backend == "flash":
        return _flash(query, key, value, padding_mask, dropout)
    if backend != "sdpa":
        raise ConfigError(f"attention backend {backend!r} is unknown: choose one of {BACKENDS}")
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not learning:
        if bfloat16_pays():
            return _blockwise_cpu(query, key, value, padding_mask)
        wide = attend(query.float(), key.float(), value.float(), padding_mask)
        return wide.to(query.dtype)
    if exporting() and padding_mask is not None:
        return _in_products(query, key, value, padding_mask)
    if padding_mask is not None and answers_on_cpu(query, key, value):
        if bool((padding_mask == padding_mask[:1]).all()):  # a mask costs more than to leave out
            kept = (~padding_mask[0]).nonzero()[:, 0]
            key, value, padding_mask = key.index_select(2, kept), value.index_select(2, kept), None
    mask = None if padding_mask is None else ~padding_mask[:, None, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def attend_alike(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding_mask: Tensor,
    *,
    backend: Backend = "sdpa",
    dropout: float = 0.0,
) -> Tensor:
    """``attend`` where query or key may be those of one image, for all of B values.

    If both are, as for objects whose masks are remembered from the same frames, their weights are
    computed once on CPUs.

    Args:
        query: (1 or B, heads, N, D).
        key: (1 or B, heads, M, D).
        value: (B, heads, M, D).
        padding_mask: (B, M) True = ignore.

    Returns:
        (B, heads, N, D).
    """
    num, ignored = value.shape[0], once(padding_mask)
    plain = backend == "sdpa" and query.device.type == "cpu"
    learning = dropout > 0 or any(x.requires_grad for x in (query, key, value))
    alike = not torch.compiler.is_compiling() and len(query) == len(key) == len(ignored) == 1 < num
    if plain and alike and not learning:
        if query.dtype == torch.float32:
            with full_precision(query.device):
                return _weights_once(query[0], key[0], value, ignored[0])
        if query.dtype == torch.bfloat16 and not bfloat16_pays():
            inputs = query[0].float(), key[0].float(), value.float()
            with full_precision(query.device):
                return _weights_once(*inputs, ignored[0]).to(query.dtype)
    query, key = (x.expand(num, -1, -1, -1) for x in (query, key))
    return attend(query, key, value, padding_mask, backend=backend, dropout=dropout)


def _weights_once(query: Tensor, key: Tensor, value: Tensor, ignored: Tensor) -> Tensor:
    """``attend`` of (heads, N, D), (heads, M, D), (B, heads, M, D) and (M,), by blocks of rows."""
    kept = (~ignored).nonzero()[:, 0]
    keys = key.index_select(1, kept)
    values = value.permute(1, 2, 0, 3).index_select(1, kept).flatten(2)  # (heads, M, B * D)
    scaled = query * (1 / math.sqrt(query.shape[-1]))
    output = query.new_empty(*query.shape[:2], values.shape[-1])
    rows = min(_CPU_SHARED_ROWS, _CPU_BLOCK_ENTRIES // len(kept))  # more do not fit
    rows = max(1, rows, _CPU_SHARED_ENTRIES // len(kept))
    for head in range(len(scaled)):
        blocks = zip(scaled[head].split(rows), output[head].split(rows), strict=True)
        for block, result in blocks:
            weights = torch.mm(block, keys[head].t())
            torch.softmax(weights, dim=-1, out=weights)
            if values[head].numel() > _CPU_PACKED_ENTRIES:
                torch.mm(weights, values[head], out=result)
            else:
                result.copy_(linear(weights, values[head].t()))
    return rearrange(output, "heads n (b d) -> b heads n d", b=len(value))


def _in_products(query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor) -> Tensor:
    """``attend`` for programs, which store all scores: with as few passes over them as can be.

    Padding is taken off inside the product, by one more channel that is 1 in every query.
    """
    scaled = query * (1 / math.sqrt(query.shape[-1]))
    below = torch.zeros_like(key[..., :1]).masked_fill(padding_mask[:, None, :, None], _NEVER)
    queries = torch.cat((scaled, torch.ones_like(scaled[..., :1])), dim=-1)
    scores = queries @ torch.cat((key, below), dim=-1).transpose(-1, -2)
    return scores.softmax(dim=-1) @ value


def _eager(
    query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None, dropout: float
) -> Tensor:
    """The formula in float32; half-precision inputs get flash attention's two roundings.

    Flash attention keeps scores and sums in float32 and rounds the unnormalised probabilities and
    the output. Source: FlashAttention-2 (arXiv:2307.08691), algorithm 1.
    """
    dtype = query.dtype
    scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
    if padding_mask is not None:
        scores = scores.masked_fill(padding_mask[:, None, None], -math.inf)
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    total = weights.sum(dim=-1, keepdim=True)
    kept = F.dropout(weights.to(dtype).float(), dropout)
    return (kept @ value.float() / total).to(dtype)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None, dropout: float
) -> Tensor:
    flash_attn = require("flash_attn")
    if query.dtype not in HALF or query.device.type == "cpu":
        _warn_without_flash(str(query.dtype).removeprefix("torch."), query.device.type)
        return attend(query, key, value, padding_mask, backend="sdpa", dropout=dropout)
    q, k, v = (x.transpose(1, 2).contiguous() for x in (query, key, value))  # (B, N, heads, D)
    if padding_mask is None:
        return flash_attn.flash_attn_func(q, k, v, dropout).transpose(1, 2)
    batch, num_queries, num_heads, dim = q.shape
    keep = ~padding_mask
    lengths = keep.sum(dim=1)
    starts = F.pad(lengths.cumsum(0), (1, 0)).int()
    steps = torch.arange(0, (batch + 1) * num_queries, num_queries, device=q.device).int()
    out = flash_attn.flash_attn_varlen_kvpacked_func(
        q.reshape(-1, num_heads, dim),
        torch.stack((k[keep], v[keep]), dim=1),
        steps,
        starts,
        num_queries,
        int(lengths.max()),
        dropout,
    )
    return out.view(batch, num_queries, num_heads, dim).transpose(1, 2)


@cache
def _warn_without_flash(dtype: str, device: str) -> None:
    """Once for each kind of input."""
    logger.warning(
        'attention backend "flash" computes in half precision on GPUs, inputs are %s on %s: '
        '"sdpa" takes over. Run in bfloat16, or name "sdpa" in the configuration',
        dtype,
        device,
    )


@cache
def bfloat16_pays() -> bool:
    """Whether attention in bfloat16 is faster than in float32 on this CPU, by one measurement.

    It is where bfloat16 products are; on other CPUs it may take twice as long. Takes about 0.1 s.
    """
    query, key = torch.ones(1, 1, 512, 256), torch.ones(1, 1, 2048, 256)
    half = query.bfloat16(), key.bfloat16(), key.bfloat16()
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        seconds = [
            (_seconds(attend, query, key, key), _seconds(_blockwise_cpu, *half, None))
            for _ in range(4)
        ]
    wide, narrow = (min(column) for column in zip(*seconds, strict=True))
    if narrow < wide:
        return True
    logger.warning(
        "attention in bfloat16 takes %.1f times as long as in float32 on this processor: float32 "
        "is used for it",
        narrow / wide,
    )
    return False


def _seconds(work: Callable[..., object], *args: object) -> float:
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def _blockwise_cpu(
    query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None
) -> Tensor:
    """bfloat16 attention by blocks of rows, with plain matrix products.

    On CPUs with bfloat16 instructions those are several times faster than float32 ones, which
    torch's fused CPU attention does not exploit. Scores leave the product rounded to bfloat16, so a
    guess of the row's largest score is taken off before the rounding: it is finest where the
    weights are largest.
    """
    output = torch.empty_like(query)
    scaled = query * (1 / math.sqrt(query.shape[-1]))
    num_rows, num_keys = query.shape[2], key.shape[2]
    num_blocks = -(-num_rows * num_keys // _CPU_BLOCK_ENTRIES)
    rows = -(-num_rows // num_blocks)  # alike in all blocks: small products are slow
    scores = query.new_empty(rows, num_keys)
    # The guess comes off inside the product, by one more channel that is 1 in every key. Seven
    # empty ones keep the rows aligned.
    ones = F.pad(key.new_ones(num_keys, 1), (0, 7))
    for image in range(query.shape[0]):
        ignored = None if padding_mask is None else padding_mask[image]
        for head in range(query.shape[1]):
            guess = (scaled[image, head] @ key[image, head, ::_CPU_KEY_STEP].t()).amax(-1, True)
            queries = torch.cat((scaled[image, head], F.pad(-guess, (0, 7))), dim=1)
            keys = torch.cat((key[image, head], ones), dim=1).t()
            blocks = zip(queries.split(rows), output[image, head].split(rows), strict=True)
            for block, result in blocks:
                weights = scores[: len(block)]
                torch.mm(block, keys, out=weights)
                if ignored is not None:
                    weights.masked_fill_(ignored, -math.inf)
                torch.softmax(weights, dim=-1, out=weights)
                torch.mm(weights, value[image, head], out=result)
    return output
