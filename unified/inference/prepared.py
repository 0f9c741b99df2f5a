"""A model as the predictors run it: the same answers, less work."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from unified.errors import InputError, first_line
from unified.modeling.folding import fold, foldable, twin

logger = logging.getLogger(__name__)

M = TypeVar("M")


def prepared(model: M, precision: str = "float32", *, compile: bool = False) -> M:
    """A model in eval mode that answers as ``model`` does; itself where nothing can be gained.

    It shares the weights of ``model``, but for those that are folded or stored in half precision:
    these are as they were when it was made. Prepared again for the same it is itself.

    Args:
        precision: one of ``PRECISIONS``; a model whose class says ``stores_half`` keeps weights of
            the parts that run in it so, in place of rounding them in every call.
        compile: runs the parts that its class names as ``compiled_parts`` by ``torch.compile``.
            Each size of pictures, and each first change of a number of objects, takes a while.

    Raises:
        InputError: no part of it can be compiled.
    """
    asked = (precision, compile)
    if not isinstance(model, nn.Module) or getattr(model, "prepared_for", None) == asked:
        return model
    parts: tuple[str, ...] = getattr(type(model), "compiled_parts", ())
    if compile and not parts:
        raise InputError("this model has no part that is compiled: leave out compile")
    compile = compile and compiler_works(next(model.parameters()).device)
    stored = precision != "float32" and getattr(type(model), "stores_half", False)
    if not (compile or stored or next(foldable(model), None)):
        return model
    with torch.inference_mode(False), torch.no_grad():
        ready: Any = twin(model)
        for pair in list(foldable(ready)):
            fold(pair)
        if stored:
            _store(ready, getattr(torch, precision))
    for part in parts if compile else ():
        module = ready.get_submodule(part) if _has(ready, part) else None
        if module is not None:
            module.compile()
    ready.prepared_for, ready.compiled = asked, compile
    return ready


class Preparation:
    """``prepared`` once, and again when the weights of the model were moved or changed.

    Those that are folded or stored would stay as and where they were.

    Attributes:
        ready: the model as it is run.
    """

    def __init__(self, model: Any, precision: str, *, compile: bool) -> None:
        self._model, self._precision, self._compile = model, precision, compile
        self._renew()

    def follow(self) -> bool:
        """Whether ``ready`` had to be made again."""
        if self._state() == self._known:
            return False
        self._renew()
        return True

    def _renew(self) -> None:
        module = isinstance(self._model, nn.Module)
        tensors = (*self._model.parameters(), *self._model.buffers()) if module else ()
        self._weights: tuple[torch.Tensor, ...] = tensors
        self._known = self._state()
        self.ready: Any = prepared(self._model, self._precision, compile=self._compile)

    def _state(self) -> tuple[object, ...]:
        """Another one after a change in place of any weight or buffer, or a move of all of them."""
        if not self._weights:
            return ()
        first = next(self._model.parameters())
        changes = sum(weight._version for weight in self._weights if not weight.is_inference())
        return first.device, first.dtype, first.data_ptr(), changes


def is_compiled(model: object) -> bool:
    """Whether a prepared model is compiled: that was asked for, and a compiler works."""
    return getattr(model, "compiled", False)


def _store(model: nn.Module, dtype: torch.dtype) -> None:
    """Weights that a twin shares stay as they are: it gets others of its own."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.detach(), requires_grad=False)
    model.to(dtype)


def _has(model: nn.Module, path: str) -> bool:
    """Whether there is a submodule; a model may be built without some of its parts."""
    for name in path.split("."):
        child = getattr(model, name, None)
        if not isinstance(child, nn.Module):
            return False
        model = child
    return True


@cache
def compiler_works(device: torch.device) -> bool:
    """Whether ``torch.compile`` does on this machine; says in one line why not."""
    try:
        torch.compile(_trial)(torch.ones(16, device=device))
    except Exception as error:  # what a missing or broken compiler raises is up to torch
        logger.warning("not compiled, as there is no compiler that works: %s", first_line(error))
        return False
    return True


def _trial(x: torch.Tensor) -> torch.Tensor:
    return (x + 1).sin()
