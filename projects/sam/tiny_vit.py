"""MobileSAM's image encoder: timm's TinyViT, computed for a CPU.

Norms of convolutions become part of them, what is wide runs in strips and rows of windows, and
what is done with a pixel alone is done in place, so that it stays in the cache and pages of memory
are not asked for again and again: half the time of timm's own ``forward``, with the same numbers
but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 16  # of the widest maps at a time; even, for those at stride 2
TOKENS = 2048  # of an MLP at a time


class TinyVit(nn.Module):
    """timm's TinyViT whose last stage keeps the stride of 16, before the neck of a SAM.

    Source: MobileSAM (arXiv:2306.14289); TinyViT (arXiv:2207.10666).

    Args:
        patch_embed, stages: of timm's ``TinyVit``.
        neck: of a ``SamModel``, (B, h, w, D) -> (B, C, h, w).
    """

    def __init__(self, *, patch_embed: nn.Module, stages: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.patch_embed: Any = patch_embed
        self.stages: Any = stages
        self.neck = neck

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C, S / 16, S / 16)."""
        learns = torch.is_grad_enabled() and any(part.requires_grad for part in self.parameters())
        elsewhere = images.device.type != "cpu" or torch.compiler.is_compiling()
        if self.training or learns or images.requires_grad or elsewhere:
            return self.neck(self.stages(self.patch_embed(images)).permute(0, 2, 3, 1))
        x = images.contiguous(memory_format=torch.channels_last)
        x = _gelu_(_conv(x, self.patch_embed.conv1))
        x = _conv(x, self.patch_embed.conv2)
        first, *others = self.stages
        for block in first.blocks:
            x = _inverted(x, block, shortcut=True)
        for stage in others:
            x = _inverted(x, stage.downsample, shortcut=False).permute(0, 2, 3, 1)
            for block in stage.blocks:
                x = _block(x, block)
            x = x.permute(0, 3, 1, 2)
        return self.neck(x.permute(0, 2, 3, 1))


def _folded(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution without bias and the batch norm after it."""
    norm = layer.bn
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return layer.conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def _conv(x: Tensor, layer: Any) -> Tensor:
    conv = layer.conv
    return F.conv2d(x, *_folded(layer), conv.stride, conv.padding, 1, conv.groups)


def _inverted(x: Tensor, block: Any, *, shortcut: bool) -> Tensor:
    """An inverted residual block or a downsampling of timm, in strips of rows: (B, C, H, W)."""
    weights = [_folded(layer) for layer in (block.conv1, block.conv2, block.conv3)]
    (stride, _), groups = block.conv2.conv.stride, block.conv2.conv.groups
    height, out = x.shape[2], []
    for top in range(0, height, ROWS):
        bottom = min(top + ROWS, height)
        start, stop = max(top - 1, 0), min(bottom + 1, height)
        y = _gelu_(_pointwise(x[:, :, start:stop], *weights[0]))
        y = F.pad(y, (0, 0, start - top + 1, bottom + 1 - stop))
        y = _gelu_(F.conv2d(y, *weights[1], stride, (0, 1), 1, groups))
        y = _pointwise(y, *weights[2])
        out.append(_gelu_(y.add_(x[:, :, top:bottom])) if shortcut else y)
    return torch.cat(out, dim=2)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution of 1 x 1 as one matrix product."""
    return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)


def _block(x: Tensor, block: Any) -> Tensor:
    """Attention in windows, a local convolution and an MLP on (B, H, W, C)."""
    x = torch.cat(list(_attended(x, block.attn, block.window_size)), dim=1).add_(x)
    x = _conv(x.permute(0, 3, 1, 2), block.local_conv).permute(0, 2, 3, 1)
    tokens = x.flatten(0, 2).split(TOKENS)
    return torch.cat([_mlp(part, block.mlp).add_(part) for part in tokens]).view(x.shape)


def _mlp(x: Tensor, mlp: Any) -> Tensor:
    return mlp.fc2(_gelu_(mlp.fc1(mlp.norm(x))))


def _gelu_(x: Tensor) -> Tensor:
    """In the memory of ``x``, which autograd does not know."""
    return torch.ops.aten.gelu_(x)


def _attended(x: Tensor, attention: Any, side: int) -> Iterator[Tensor]:
    """What attention gives for each row of windows, (B, side, W, C); windows are padded with 0."""
    batch, height, width, _ = x.shape
    across = -(-width // side)
    bias = attention.get_attention_biases(x.device)
    heads, dim = attention.num_heads, attention.key_dim
    for top in range(0, height, side):
        rows = min(side, height - top)
        row = F.pad(x[:, top : top + rows], (0, 0, 0, across * side - width, 0, side - rows))
        row = attention.qkv(attention.norm(row))
        row = row.view(batch, side, across, side, heads, 3, dim).permute(5, 0, 2, 4, 1, 3, 6)
        q, k, v = row.reshape(3, batch * across, heads, side * side, dim)
        mask = bias.expand(len(q), -1, -1, -1)  # in four dimensions torch has a fast kernel
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.view(batch, across, heads, side, side, dim).permute(0, 3, 1, 4, 2, 5)
        yield attention.proj(y.reshape(batch, side, across * side, -1)[:, :rows, :width])
