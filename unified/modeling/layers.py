"""Small layers and position codes that several modules share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def xavier_init(*layers: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for linear and convolution layers."""
    for layer in layers:
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def zero_init(layer: nn.Module) -> None:
    """Zero weights and biases: the layer starts by adding nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class DropPath(nn.Module):
    """In training leaves out a whole residual branch of a sample, and scales the others up.

    Source: Huang et al. (arXiv:1603.09382), stochastic depth.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        drawn = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) < keep
        return x * drawn.to(x.dtype) / keep


def drop_path_rates(last: float, num_layers: int) -> list[float]:
    """Probabilities for ``DropPath`` of each layer, from 0 of the first to ``last``."""
    return [last * index / max(1, num_layers - 1) for index in range(num_layers)]


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x`` clamped to [0, 1], finite at both ends."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def masked_mean(tokens: Tensor, padding_mask: Tensor) -> Tensor:
    """Mean over unpadded tokens: (B, N, C), (B, N) True = padding -> (B, C)."""
    # The sum of a large image's tokens is above what float16 holds.
    wide = torch.promote_types(tokens.dtype, torch.float32)
    keep = (~padding_mask)[..., None]
    total = (tokens * keep).sum(dim=1, dtype=wide)
    return (total / keep.sum(dim=1).clamp(min=1)).to(tokens.dtype)


def resize_padding_mask(padding_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of (B, H, W) bool to (B, *size)."""
    return F.interpolate(padding_mask[:, None].float(), size=size)[:, 0].bool()


def _sine_code(position: Tensor, num_channels: int, temperature: float) -> Tensor:
    """(..., ) angles -> (..., num_channels), sin and cos interleaved."""
    index = torch.arange(num_channels, dtype=torch.float32, device=position.device)
    wavelength = temperature ** (2 * (index // 2) / num_channels)
    angle = position[..., None] / wavelength
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


def sine_position(padding_mask: Tensor, num_channels: int, temperature: float = 10000.0) -> Tensor:
    """Position code of every pixel, y half first, normalised over the unpadded extent.

    Source: DETR (arXiv:2005.12872) section A.4 with the half-pixel offset of Deformable DETR.

    Args:
        padding_mask: (B, H, W) True on padding.
        num_channels: even; half for y and half for x.

    Returns:
        (B, num_channels, H, W) float32.
    """
    valid = (~padding_mask).float()
    codes = []
    for dim in (1, 2):
        count = valid.cumsum(dim)
        last = count.select(dim, -1).unsqueeze(dim)
        angle = (count - 0.5) / (last + 1e-6) * (2 * math.pi)
        codes.append(_sine_code(angle, num_channels // 2, temperature))
    return rearrange(torch.cat(codes, dim=-1), "b h w c -> b c h w")


def box_position(boxes: Tensor, num_channels: int, temperature: float = 10000.0) -> Tensor:
    """Sine code of boxes: (..., 4) in [0, 1] -> (..., 4 * num_channels)."""
    return _sine_code(boxes * (2 * math.pi), num_channels, temperature).flatten(-2)


def aligned_bilinear(logits: Tensor, factor: int) -> Tensor:
    """Upsamples by ``factor`` so that the centre of coarse pixel i lands on ``factor * (i + 1/2)``.

    Source: CondInst (arXiv:2003.05664), its released upsampling rule.

    Args:
        logits: (B, K, h, w).

    Returns:
        (B, K, factor * h, factor * w).
    """
    if factor == 1:
        return logits
    height, width = logits.shape[-2:]
    grown = F.pad(logits, (0, 1, 0, 1), mode="replicate")
    size = (factor * height + 1, factor * width + 1)
    fine = F.interpolate(grown, size=size, mode="bilinear", align_corners=True)
    shift = factor // 2
    fine = F.pad(fine, (shift, 0, shift, 0), mode="replicate")
    return fine[..., : factor * height, : factor * width]


def recompute(*modules: nn.Module) -> None:
    """Makes modules forget their activations in training and compute them again when needed."""
    for module in modules:
        module.forward = partial(_recomputed, module, module.forward)


def _recomputed(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if module.training and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)
