"""transformers' mask decoder of a SAM, computed for a CPU.

A handful of tokens exchange messages with thousands of pixels. Here the tokens are projected into
the space of the pixels and not the other way round, pixels stay in one layout up to the masks, and
only masks that are asked for are made: about a third of the time of transformers' ``forward``, with
the same numbers but for rounding. Objects run one by one, and pixels change in place: what they
need stays in the cache, and pages of memory are not asked for again and again.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from unified.masks import MAX_LOGIT
from unified.structures import Size

PIXELS = 1024  # upscaled at a time


def runs_here(image: Tensor) -> bool:
    """Whether ``decode`` answers: on a CPU, in full precision, where nothing learns."""
    plain = image.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def decode(
    decoder: Any,
    image: Tensor,
    position: Tensor,
    sparse: Tensor,
    dense: Tensor,
    *,
    several: bool,
    shown: Size | None = None,
) -> tuple[Tensor, Tensor]:
    """Mask logits (B, K, 4h, 4w) and predicted IoU (B, K), without gradient.

    Source: Segment Anything (arXiv:2304.02643), appendix A, "Lightweight mask decoder".

    Args:
        decoder: a ``SamMaskDecoder`` of transformers.
        image, dense: (B, C, h, w).
        position: (C, h, w), code of every pixel.
        sparse: (B, N, C).
        several: the masks for an ambiguous prompt, else the one for a clear prompt.
        shown: rows and columns of the embedding; beyond them, by default nowhere, logits are
            ``-MAX_LOGIT``, whatever they would be.
    """
    height, width = image.shape[-2:]
    rows, columns = shown or (height, width)
    wanted = range(1, decoder.num_mask_tokens) if several else range(1)
    code = rearrange(position, "c h w -> (h w) c").contiguous()
    output = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight))  # (T, C)
    pixels, placed = torch.empty_like(code), torch.empty_like(code)
    masks, scores = [], []
    for embedding, prompts, drawn in zip(image, sparse, dense, strict=True):
        pixels.copy_(rearrange(embedding + drawn, "c h w -> (h w) c"))
        start = torch.cat((output, prompts))
        tokens = _exchange(decoder.transformer, start, pixels, code, placed)
        mixers = torch.stack([decoder.output_hypernetworks_mlps[i](tokens[1 + i]) for i in wanted])
        part = pixels.view(height, width, -1)[:rows, :columns].flatten(0, 1)
        masks.append(_masks(decoder, part, mixers, (rows, columns)))
        scores.append(decoder.iou_prediction_head(tokens[0])[list(wanted)])
    beyond = (0, 4 * (width - columns), 0, 4 * (height - rows))
    return F.pad(torch.stack(masks), beyond, value=-MAX_LOGIT), torch.stack(scores)


def _exchange(
    transformer: Any, start: Tensor, pixels: Tensor, position: Tensor, placed: Tensor
) -> Tensor:
    """Tokens (T, C) after they and the pixels (P, C), which change too, have seen each other.

    Args:
        placed: room for as many pixels.
    """
    tokens = start
    for layer in transformer.layers:
        query = tokens if layer.skip_first_layer_pe else tokens + start
        mixed = _self_attention(layer.self_attn, query, tokens)
        tokens = layer.layer_norm1(mixed if layer.skip_first_layer_pe else tokens + mixed)
        torch.add(pixels, position, out=placed)
        gathered = _gather(layer.cross_attn_token_to_image, tokens + start, placed, pixels)
        tokens = layer.layer_norm2(tokens + gathered)
        tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
        attention = layer.cross_attn_image_to_token
        _spread(attention, placed, tokens + start, tokens, pixels)
        for strip in pixels.split(PIXELS):
            strip.copy_(layer.layer_norm4(strip))
    attention = transformer.final_attn_token_to_image
    torch.add(pixels, position, out=placed)
    gathered = _gather(attention, tokens + start, placed, pixels)
    return transformer.layer_norm_final_attn(tokens + gathered)


def _self_attention(attention: Any, query: Tensor, value: Tensor) -> Tensor:
    return attention(query=query[None, None], key=query[None, None], value=value[None, None])[0][
        0, 0
    ]


def _gather(attention: Any, query: Tensor, placed: Tensor, pixels: Tensor) -> Tensor:
    """What tokens (T, C) take from pixels (P, C), (T, C).

    With W the weights of one head, q (W x + b) of all pixels x is (q W) x and a number that softmax
    ignores; a sum of W x + b with weights that sum to 1 is W on the sum of x, and b.
    """
    heads = attention.num_attention_heads
    key, value = (_per_head(layer.weight, heads) for layer in (attention.k_proj, attention.v_proj))
    q = _per_head(attention.q_proj(query).t(), heads).transpose(1, 2)  # (heads, T, d)
    asked = (q * attention.scaling) @ key  # (heads, T, C)
    weights = (asked.flatten(0, 1) @ placed.t()).softmax(dim=-1)  # (heads * T, P)
    taken = (weights @ pixels).view_as(asked) @ value.transpose(1, 2)  # (heads, T, d)
    return attention.out_proj(taken.transpose(0, 1).flatten(1) + attention.v_proj.bias)


def _spread(attention: Any, placed: Tensor, key: Tensor, value: Tensor, pixels: Tensor) -> None:
    """Adds to pixels (P, C) what they take from tokens (T, C); see ``_gather``."""
    heads = attention.num_attention_heads
    k = _per_head(attention.k_proj(key).t(), heads).transpose(1, 2) * attention.scaling
    asked = k @ _per_head(attention.q_proj.weight, heads)  # (heads, T, C)
    offset = k @ _per_head(attention.q_proj.bias, heads)[..., None]  # (heads, T, 1)
    scores = torch.addmm(offset.flatten(0, 1), asked.flatten(0, 1), placed.t())  # (heads * T, P)
    weights = scores.view(heads, -1, len(pixels)).softmax(dim=1)
    v = _per_head(attention.v_proj(value).t(), heads).transpose(1, 2)
    given = v @ _per_head(attention.out_proj.weight.t(), heads)  # (heads, T, C)
    given = given + attention.out_proj.bias / heads  # weights of a pixel sum to 1 in each head
    pixels.addmm_(weights.flatten(0, 1).t(), given.flatten(0, 1))


def _per_head(rows: Tensor, heads: int) -> Tensor:
    """(heads * d, ...) -> (heads, d, ...)."""
    return rows.unflatten(0, (heads, -1))


def _masks(decoder: Any, pixels: Tensor, mixers: Tensor, size: Size) -> Tensor:
    """Pixels (h * w, C) and mixers (K, C / 8) -> logits (K, 4h, 4w).

    A transposed convolution of 2 x 2 at stride 2 is a matrix product for each pixel.
    """
    first, second = decoder.upscale_conv1, decoder.upscale_conv2
    norm, parts = decoder.upscale_layer_norm, []
    for strip in pixels.split(PIXELS):
        x = _upscaled(strip, first)  # (p, 4, C / 4)
        x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        x = F.gelu(_upscaled(x, second))  # (p, 4, 4, C / 8)
        parts.append(mixers @ x.flatten(0, -2).t())
    logits = torch.cat(parts, dim=1).view(len(mixers), *size, 2, 2, 2, 2)
    return logits.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(mixers), 4 * size[0], 4 * size[1])


def _upscaled(x: Tensor, layer: Any) -> Tensor:
    """(..., C) -> (..., 4, D): the four cells of each, row by row."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * D, C)
    return F.linear(x, weight, layer.bias.repeat(4)).unflatten(-1, (4, -1))
