"""What all backbones share: stem, four stages, freezing, checkpointing; frozen batch norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unified.errors import ConfigError

STRIDES: dict[str, int] = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class Backbone(nn.Module):
    """Stem and four stages; each stage's output is one feature map.

    Attributes:
        name: the name it was built by, see ``BACKBONES``.
        channels: of each feature map by its name.
        strides: of each feature map in input pixels.
        folds: see ``unified.modeling.folding``.
    """

    name: str = ""
    folds: ClassVar[bool] = True

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        strides: Sequence[int] = tuple(STRIDES.values()),
        norms: Sequence[nn.Module] = (),
        divisor: int = 1,
        freeze_at: int = 0,
        checkpoint: bool = False,
    ) -> None:
        """Puts the parts together.

        Args:
            stem: images to what the first stage takes.
            stages: four modules; a Sequential is checkpointed child by child.
            channels: of the four outputs.
            strides: of the four outputs in input pixels.
            norms: maps each stage's output to (B, C, H, W); none leaves it as it is.
            divisor: images are zero-padded at the right and bottom to a multiple of this.
            freeze_at: 1 freezes the stem, 2 also res2, ... 5 everything but ``norms``.
            checkpoint: recompute activations in the backward pass to save memory.

        Raises:
            ConfigError: ``freeze_at`` is not in 0..5.
        """
        super().__init__()
        if not 0 <= freeze_at <= 5:
            raise ConfigError(f"freeze_at is {freeze_at}: expected 0 (nothing) to 5 (all stages)")
        self.stem = stem
        self.res2, self.res3, self.res4, self.res5 = stages
        self.norms = nn.ModuleDict(dict(zip(STRIDES, norms, strict=False)))
        self.channels = dict(zip(STRIDES, channels, strict=True))
        self.strides = dict(zip(STRIDES, strides, strict=True))
        self.divisor = divisor
        self.freeze_at = freeze_at
        self.checkpoint = checkpoint
        for module in self._frozen():
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of normalised images.

        Args:
            images: (B, 3, H, W) of any size; reference models pad to a multiple of 32 before.

        Returns:
            res2..res5, each (B, C, ceil(H / stride), ceil(W / stride)).
        """
        height, width = images.shape[-2:]
        # Channels last: convolutions are up to 1.5 times as fast on CPUs, and later ones follow.
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.stem(F.pad(x, (0, -width % self.divisor, 0, -height % self.divisor)))
        features = {}
        for name, stride in self.strides.items():
            x = self._run(getattr(self, name), x)
            feature = self.norms[name](x) if name in self.norms else x
            features[name] = feature[..., : -(-height // stride), : -(-width // stride)]
        return features

    def train(self, mode: bool = True) -> Backbone:
        """Frozen parts stay in evaluation mode: no stochastic depth there."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> Sequence[nn.Module]:
        return [self.stem, self.res2, self.res3, self.res4, self.res5][: self.freeze_at]

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        save_memory = self.checkpoint and self.training and torch.is_grad_enabled()
        for part in _parts(stage):
            x = checkpoint(part, x, use_reentrant=False) if save_memory else part(x)
        return x


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _parts(child)
    else:
        yield module


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and affine parameters, then an optional activation.

    Starts as the identity. Source: Detectron2 ``layers/batch_norm.py``.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.activation = activation
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if x.requires_grad:  # batch_norm would keep x for gradients of weight that nobody needs
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            x = x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]
        else:
            x = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return x if self.activation is None else self.activation(x)


def freeze_batch_norms(module: nn.Module) -> None:
    """Replaces every batch norm below ``module`` by a frozen one, keeping eps and activation."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            # timm's norm layers of mobile networks carry their activation as ``act``
            frozen = FrozenBatchNorm2d(child.num_features, child.eps, getattr(child, "act", None))
            setattr(module, name, frozen)
        else:
            freeze_batch_norms(child)
