"""Swin Transformer as object detectors use it: any image size, fixed window, a norm per output.

Source: Liu et al., Swin Transformer (arXiv:2103.14030) and SwinTransformer/
Swin-Transformer-Object-Detection. Written here because timm rolls the map before padding it to
whole windows where the official detector pads first, which gives other numbers on maps that are no
multiple of the window.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.backbones.base import Backbone

MASKED = -100.0  # added to the logits of pairs from different regions; the official value


class PatchEmbed(nn.Module):
    """Images to one token per patch of 4 x 4 pixels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H/4), ceil(W/4), C)."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % 4, 0, -height % 4))
        return self.norm(rearrange(self.proj(images), "b c h w -> b h w c"))


class PatchMerging(nn.Module):
    """Halves the resolution: 2 x 2 neighbours become one token of twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2C)."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # (B, H/2, W/2, 4C); the row of the neighbour runs fastest, then its column
        x = torch.cat([x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))


class WindowAttention(nn.Module):
    """Self-attention inside windows with a learned bias per relative position and head."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attends within each window.

        Args:
            windows: (B*M, N, C), the M windows of an image next to each other.
            mask: (M, N, N) added to the logits, or None.
        """
        query, key, value = rearrange(
            self.qkv(windows),
            "m n (three heads d) -> three m heads n d",
            three=3,
            heads=self.num_heads,
        )
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = rearrange(bias, "n k heads -> 1 heads n k")
        if mask is not None:
            bias = bias + mask[:, None]  # (M, heads, N, N)
            bias = bias.repeat(len(windows) // len(mask), 1, 1, 1)  # (B*M, heads, N, N)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.proj(rearrange(x, "m heads n d -> m n (heads d)"))


class SwinBlock(nn.Module):
    """Window attention and MLP, pre-norm, with stochastic depth."""

    def __init__(
        self, dim: int, num_heads: int, *, window: int, shift: int, drop_path: float
    ) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self._drop(self._attend(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        window, shift = self.window, self.shift
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        rows, cols = x.shape[1] // window, x.shape[2] // window
        mask = None
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
            mask = shift_mask((rows, cols), window, shift, x)
        x = rearrange(x, "b (rows y) (cols x) c -> (b rows cols) (y x) c", y=window, x=window)
        x = self.attn(x, mask)
        x = rearrange(
            x, "(b rows cols) (y x) c -> b (rows y) (cols x) c", rows=rows, cols=cols, y=window
        )
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width]

    def _drop(self, x: Tensor) -> Tensor:
        """Zeroes the branch of some images in training, scaling the others up."""
        if not self.training or self.drop_path == 0:
            return x
        keep = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop_path)
        return x * (keep / (1 - self.drop_path))


class OutputNorm(nn.LayerNorm):
    """Layer norm of a channels-last stage output, given out channels first."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, C, H, W)."""
        return rearrange(super().forward(x), "b h w c -> b c h w")


def relative_position_index(window: int) -> Tensor:
    """(N, N) int64 row of the bias table for each query and key of a window, N = window^2."""
    axis = torch.arange(window)
    coords = torch.cartesian_prod(axis, axis)  # (N, 2), row first
    offset = coords[:, None] - coords[None] + window - 1  # (N, N, 2) in 0..2*window-2
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]


def shift_mask(grid: tuple[int, int], window: int, shift: int, like: Tensor) -> Tensor:
    """(M, N, N) logit offsets that keep apart pixels which only the roll made neighbours.

    Args:
        grid: windows per column and per row of the padded map, M in all.
        like: gives dtype and device.
    """
    # along each axis: 0 before the last window, 1 inside it, 2 for what the roll brought round
    rows, cols = (
        torch.bucketize(
            torch.arange(num * window, device=like.device),
            torch.tensor([num * window - window, num * window - shift], device=like.device),
            right=True,
        )
        for num in grid
    )
    region = 3 * rows[:, None] + cols[None]  # (rows*window, cols*window)
    region = rearrange(region, "(rows y) (cols x) -> (rows cols) (y x)", y=window, x=window)
    apart = region[:, :, None] != region[:, None, :]
    return apart.to(like.dtype) * MASKED


def build_swin(
    *,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window: int,
    drop_path: float = 0.3,
    freeze_at: int = 0,
    checkpoint: bool = False,
) -> Backbone:
    """Swin backbone with freshly initialised weights.

    Args:
        embed_dim: channels of res2; doubled at each stage.
        depths, num_heads: blocks, and heads per block, of the four stages.
        window: side of the attention windows in tokens.
        drop_path: rate of stochastic depth at the last block, growing linearly from 0.
        freeze_at, checkpoint: see ``Backbone``.
    """
    rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
    channels = [embed_dim * 2**level for level in range(4)]
    stages = []
    for level, (dim, depth, heads) in enumerate(zip(channels, depths, num_heads, strict=True)):
        blocks = nn.Sequential(
            *(
                SwinBlock(
                    dim,
                    heads,
                    window=window,
                    shift=window // 2 if index % 2 else 0,
                    drop_path=next(rates),
                )
                for index in range(depth)
            )
        )
        parts: OrderedDict[str, nn.Module] = OrderedDict(blocks=blocks)
        if level:
            parts["downsample"] = PatchMerging(dim // 2)
            parts.move_to_end("downsample", last=False)
        stages.append(nn.Sequential(parts))
    backbone = Backbone(
        stem=PatchEmbed(embed_dim),
        stages=stages,
        norms=[OutputNorm(dim) for dim in channels],
        channels=channels,
        freeze_at=freeze_at,
        checkpoint=checkpoint,
    )
    backbone.apply(_initialise)
    return backbone


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
