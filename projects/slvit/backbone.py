"""MSCAN with language in every block: the vision backbone of SLViT.

Modules carry the names of the public MSCAN weights, which load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from projects.slvit.attention import Attended, GatedCrossAttention
from unified.modeling.layers import DropPath, drop_path_rates

KERNELS = (7, 11, 21)


@dataclass(frozen=True)
class Words:
    """B sentences as the backbone reads them: hidden (B, T, D), padding_mask (B, T)."""

    hidden: Tensor
    padding_mask: Tensor


class Fusion(nn.Module):
    """Multi-scale strip convolutions and attended words, summed, as a gate of the input.

    ``conv1x1(a + strips of a + words attended from a) * x`` with ``a = depthwise 5x5 of x``.

    Source: SLViT (IJCAI 2023), language-guided multi-scale fusion attention; SegNeXt
    (arXiv:2209.08575), equation 1, for what remains without language.
    """

    def __init__(self, *, dim: int, context_dim: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        for index, size in enumerate(KERNELS):
            half = size // 2
            row = nn.Conv2d(dim, dim, (1, size), padding=(0, half), groups=dim)
            column = nn.Conv2d(dim, dim, (size, 1), padding=(half, 0), groups=dim)
            self.add_module(f"conv{index}_1", row)
            self.add_module(f"conv{index}_2", column)
        self.conv3 = nn.Conv2d(dim, dim, 1)
        self.fusion = GatedCrossAttention(dim=dim, context_dim=context_dim)

    def forward(self, x: Tensor, words: Words) -> tuple[Tensor, Attended]:
        """(B, C, H, W) -> the same, and what the words said."""
        local = self.conv0(x)
        attended = self.fusion(
            local.flatten(2).transpose(1, 2), words.hidden, words.padding_mask
        )  # tokens (B, H*W, C)
        total = local + attended.tokens.transpose(1, 2).unflatten(2, x.shape[-2:])
        for index in range(len(KERNELS)):
            row, column = (self.get_submodule(f"conv{index}_{axis}") for axis in (1, 2))
            total = total + column(row(local))
        return self.conv3(total) * x, attended


class Attention(nn.Module):
    """``Fusion`` between two 1x1 convolutions, with a shortcut."""

    def __init__(self, *, dim: int, context_dim: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1)
        self.activation = nn.GELU()
        self.spatial_gating_unit = Fusion(dim=dim, context_dim=context_dim)
        self.proj_2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, words: Words) -> tuple[Tensor, Attended]:
        fused, attended = self.spatial_gating_unit(self.activation(self.proj_1(x)), words)
        return x + self.proj_2(fused), attended


class DepthwiseConv(nn.Module):
    """3x3 depthwise convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)


class ConvMLP(nn.Module):
    """1x1 up, depthwise 3x3, GELU, 1x1 down."""

    def __init__(self, *, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, ratio * dim, 1)
        self.dwconv = DepthwiseConv(ratio * dim)
        self.activation = nn.GELU()
        self.fc2 = nn.Conv2d(ratio * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """Attention with language, then an MLP, each scaled per channel and added."""

    def __init__(
        self,
        *,
        dim: int,
        context_dim: int,
        mlp_ratio: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.attn = Attention(dim=dim, context_dim=context_dim)
        self.mlp = ConvMLP(dim=dim, ratio=mlp_ratio)
        self.drop_path = DropPath(drop_path)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), 1e-2))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), 1e-2))

    def forward(self, x: Tensor, words: Words) -> tuple[Tensor, Attended]:
        """(B, C, H, W) -> the same, and what the words said."""
        attention, attended = self.attn(self.norm1(x), words)
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * attention)
        x = x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))
        return x, attended


class Stem(nn.Module):
    """Two strided convolutions: images to stride 4."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, dim // 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(dim // 2),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
            nn.BatchNorm2d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Downsample(nn.Module):
    """One strided convolution: half the resolution."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


@dataclass(frozen=True)
class Stage:
    """Output of one stage: features (B, C, H, W) and what its last block's words said."""

    features: Tensor
    attended: Attended


class LanguageMSCAN(nn.Module):
    """Four stages at strides 4 to 32; every block reads the words.

    Source: SegNeXt (arXiv:2209.08575), MSCAN; SLViT (IJCAI 2023) for the words.

    Args:
        dims, depths, mlp_ratios: of the four stages; MSCAN-B by default.
        context_dim: D, width of the words.
        drop_path: of the last block; grows linearly from 0.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 3, 12, 3),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        context_dim: int = 768,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        self.dims, self.depths = tuple(dims), tuple(depths)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        for index, (dim, depth, ratio) in enumerate(
            zip(dims, depths, mlp_ratios, strict=True), start=1
        ):
            down = Stem(dim) if index == 1 else Downsample(dims[index - 2], dim)
            blocks = nn.ModuleList(
                Block(
                    dim=dim,
                    context_dim=context_dim,
                    mlp_ratio=ratio,
                    drop_path=next(rates),
                )
                for _ in range(depth)
            )
            self.add_module(f"patch_embed{index}", down)
            self.add_module(f"block{index}", blocks)
            self.add_module(f"norm{index}", nn.LayerNorm(dim))
        self.apply(_initialise)

    def stem(self, images: Tensor) -> Tensor:
        """What needs no words yet: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""
        return self.get_submodule("patch_embed1")(images)

    def forward(self, x: Tensor, words: Words) -> list[Stage]:
        """Four stages, finest first, from ``stem``'s features."""
        stages = []
        for index in range(1, len(self.dims) + 1):
            if index > 1:
                x = self.get_submodule(f"patch_embed{index}")(x)
            blocks = self.get_submodule(f"block{index}")
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                x, attended = block(x, words)
            norm = self.get_submodule(f"norm{index}")
            x = norm(x.movedim(1, -1)).movedim(-1, 1)
            stages.append(Stage(x, attended))
        return stages


def _initialise(module: nn.Module) -> None:
    """Source: SegNeXt repository. Linear layers of the attention are convolutions of kernel 1 in
    SLViT's, hence keep PyTorch's default."""
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        fan_out = height * width * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        assert module.bias is not None
        nn.init.zeros_(module.bias)
