"""Norms with fixed statistics as part of the convolutions before them, for inference."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from unified.modeling.backbones.base import FrozenBatchNorm2d

M = TypeVar("M", bound=nn.Module)


def twin(module: M, known: dict[int, nn.Module] | None = None) -> M:
    """A copy of the tree of modules that shares every tensor with the original.

    Replacing a module or a parameter in one leaves the other as it is.
    """
    known = {} if known is None else known
    if id(module) not in known:
        copied = copy.copy(module)
        known[id(module)] = copied
        copied.__dict__["_parameters"] = dict(module._parameters)
        copied.__dict__["_buffers"] = dict(module._buffers)
        copied.__dict__["_modules"] = {
            name: child and twin(child, known) for name, child in module._modules.items()
        }
    found = known[id(module)]
    assert isinstance(found, type(module))
    return found


class Foldable(NamedTuple):
    """Names of a convolution and of the norm that gets its output, in one module."""

    parent: nn.Module
    conv: str
    norm: str


def foldable(module: nn.Module) -> Iterator[Foldable]:
    """The norms of all parts whose class says ``folds``.

    That says of the part that every batch norm below it is registered right after the convolution
    whose output alone it gets, as in the networks of timm. A norm that is trained is left alone.
    """
    parts = [part for part in module.modules() if getattr(type(part), "folds", False)]
    for parent in {below: None for part in parts for below in part.modules()}:
        for (conv, first), (norm, second) in pairwise(parent.named_children()):
            if _is_conv(first) and _is_fixed(second):
                yield Foldable(parent, conv, norm)


def fold(pair: Foldable) -> None:
    """Makes the norm part of the convolution; of the norm its activation is left."""
    parent, conv, norm = pair
    scale, shift = _scale_and_shift(parent.get_submodule(norm))
    activation = getattr(parent.get_submodule(norm), "activation", None)
    setattr(parent, conv, _folded(parent.get_submodule(conv), scale, shift))
    setattr(parent, norm, activation or nn.Identity())


def _is_conv(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 4


def _is_fixed(norm: nn.Module) -> bool:
    learnt = isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats and not norm.training
    return learnt or isinstance(norm, FrozenBatchNorm2d)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Of each channel, float64."""
    mean, variance, weight, bias = (
        getattr(norm, name).detach().double()
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    scale = weight * (variance + norm.eps).rsqrt()
    return scale, bias - mean * scale


def _folded(conv: Any, scale: Tensor, shift: Tensor) -> nn.Module:
    """A twin of a convolution whose output is scaled and shifted."""
    folded, weight = twin(conv), conv.weight
    if conv.bias is not None:
        shift = shift + conv.bias.detach() * scale
    scaled = weight.detach() * scale[:, None, None, None]
    folded.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=False)
    folded.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
    return folded
