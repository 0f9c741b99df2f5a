"""What stays float32 when a model runs in half precision, by autocast or by its stored weights.

Convolutions and matrix products may be half precision. What adds up over layers (the residual
streams of encoder and decoder) and what decides (words, proposal scores, boxes, class scores, the
weights of masks) may not: proposals that half precision cannot tell apart change places, and each
takes another learned query along.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Context without autocast; tensors that come from outside it need ``widen``."""
    return torch.autocast(device.type, enabled=False)


def widen(x: Tensor) -> Tensor:
    """The tensor in float32 if it is half precision."""
    return x.float() if x.dtype in HALF else x


def in_stored_precision(
    verb: Callable[Concatenate[M, P], T],
) -> Callable[Concatenate[M, P], T]:
    """Method decorator: autocast to the half precision that the backbone's weights have, if any.

    So weights that are stored in half precision compute as autocast does.
    """

    @wraps(verb)
    def run(model: M, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with _autocast_of(model.get_submodule("backbone")):
            return verb(model, *args, **kwargs)

    return run


def _autocast_of(module: nn.Module) -> AbstractContextManager[object]:
    weight = next((p for p in module.parameters() if p.dtype in HALF), None)
    if weight is None:
        return nullcontext()
    return torch.autocast(weight.device.type, dtype=weight.dtype)


def halve_only(
    model: nn.Module, prefixes: Collection[str], convert: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """For ``_apply``: ``convert`` that makes half precision of few tensors only.

    Args:
        model: whose ``_apply`` it is.
        prefixes: of the keys whose matrices may become half precision. Vectors, which are biases
            and what belongs to norms, and all other parts keep their dtype.
        convert: of ``_apply``.
    """
    matrices = {
        id(value)
        for name, value in (*model.named_parameters(), *model.named_buffers())
        if name.startswith(tuple(prefixes)) and value.ndim > 1
    }

    def apply(value: Tensor) -> Tensor:
        converted = convert(value)
        if converted.dtype in HALF and id(value) not in matrices:
            return value.to(converted.device)
        return converted

    return apply
