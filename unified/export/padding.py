"""Programs of one input size that see a smaller picture as the model sees it.

A model pads a picture to the next multiple of its divisor, a program to its one size. What lies
beyond the former is not there for the model: convolutions read zeros there, norms and pools do not
count it, maps are resized without it, and no query starts there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unified.structures import Size

STRIDES = (1, 2, 4, 8, 16, 32, 64, 128)


class OwnPadding(TorchFunctionMode):
    """While it is entered, operations on maps take the end of what the model would
    pad the picture to for the end of the map.

    Maps are (B, C, h, w) with the sides of ``size`` at one of ``STRIDES``; of others, and of
    operations without a rule here, nothing is known.

    Args:
        size: (H, W) of the input of the program.
        picture: (2,) int64, (h, w) of the picture.
        divisor: the model pads it to multiples of this.
        levels: (h, w) of the maps whose tokens stand in one row.
    """

    def __init__(self, size: Size, picture: Tensor, divisor: int, levels: Sequence[Size]) -> None:
        super().__init__()
        self._own, self._levels = (picture + (divisor - 1)) // divisor * divisor, levels
        self.num_tokens = sum(height * width for height, width in levels)
        self._strides = {(-(-size[0] // s), -(-size[1] // s)): s for s in STRIDES[::-1]}
        self._inside: dict[Size, Tensor] = {}  # a program has each once

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        rule = RULES.get(getattr(func, "__name__", ""))
        if rule is None:
            return func(*args, **(kwargs or {}))
        return rule(self, func, *args, **(kwargs or {}))

    def ends(self, size: Sequence[int]) -> Tensor | None:
        """(2,) sides of a map (..., h, w) as the model has it; None where that is not known."""
        stride = self._strides.get((size[-2], size[-1]))
        return None if stride is None else (self._own + (stride - 1)) // stride

    def inside(self, x: Tensor) -> Tensor | None:
        """Pixels (h, w) of a map that the model has."""
        ends = self.ends(x.shape) if x.dim() == 4 else None
        if ends is None:
            return None
        size = (x.shape[2], x.shape[3])
        if size not in self._inside:
            rows, columns = (torch.arange(n) < end for n, end in zip(size, ends, strict=True))
            self._inside[size] = rows[:, None] & columns
        return self._inside[size]

    def tokens(self) -> Tensor:
        """Which tokens (N,) of all levels the model has."""
        maps = [self.inside(torch.empty(1, 1, *level)) for level in self._levels]
        return torch.cat([x.flatten() for x in maps if x is not None])


Rule = Callable[..., Any]


def _convolve(
    border: OwnPadding, func: Rule, x: Tensor, weight: Tensor, *rest: Any, **more: Any
) -> Tensor:
    wide = max(weight.shape[2:]) > 1
    answer: Tensor = func(_zeros_beyond(border, x) if wide else x, weight, *rest, **more)
    return answer


def _pad(
    border: OwnPadding, func: Rule, x: Tensor, pad: Any, mode: str = "constant", value: Any = None
) -> Tensor:
    x = (_edges_beyond if mode == "replicate" else _zeros_beyond)(border, x)
    answer: Tensor = func(x, pad, mode=mode, value=value)
    return answer


def _maximum(border: OwnPadding, func: Rule, x: Tensor, *rest: Any, **more: Any) -> Tensor:
    answer: Tensor = func(_edges_beyond(border, x), *rest, **more)
    return answer


def _mean(border: OwnPadding, func: Rule, x: Tensor, size: Any) -> Tensor:
    inside = border.inside(x)
    if inside is None or size != 1:
        answer: Tensor = func(x, size)
        return answer
    return (x * inside).sum(dim=(2, 3), keepdim=True) / inside.sum()


def _normalize_groups(
    border: OwnPadding,
    func: Rule,
    x: Tensor,
    num: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    inside = border.inside(x)
    if inside is None:
        answer: Tensor = func(x, num, weight, bias, eps)
        return answer
    groups = x.unflatten(1, (num, -1))  # (B, G, C / G, h, w)
    count = inside.sum() * groups.shape[2]
    centred = groups - (groups * inside).sum(dim=(2, 3, 4), keepdim=True) / count
    variance = (centred.square() * inside).sum(dim=(2, 3, 4), keepdim=True) / count
    normal = (centred * (variance + eps).rsqrt()).flatten(1, 2)
    return normal * weight[:, None, None] + bias[:, None, None]


def _resize(border: OwnPadding, func: Rule, x: Tensor, **how: Any) -> Tensor:
    """By the ratio of the sides as the model has them, with gathers."""
    size, mode = how["size"], how["mode"]
    known = x.dim() == 4 and size is not None and not how["align_corners"]
    before, after = (border.ends(x.shape), border.ends(size)) if known else (None, None)
    if before is None or after is None or mode not in ("nearest", "bilinear"):
        answer: Tensor = func(x, **how)
        return answer
    for axis in (2, 3):
        last, scale = before[axis - 2] - 1, before[axis - 2] / after[axis - 2]
        place = torch.arange(size[axis - 2]) * scale
        if mode == "nearest":
            x = x.index_select(axis, place.long().clamp(max=x.shape[axis] - 1))
            continue
        place = (place + (scale / 2 - 0.5)).clamp(min=0)  # from centre to centre
        first = place.long().minimum(last)
        share = (place - first).clamp(max=1)
        share = share[:, None] if axis == 2 else share
        second = x.index_select(axis, (first + 1).minimum(last))
        x = x.index_select(axis, first) * (1 - share) + second * share
    return x


def _best(border: OwnPadding, func: Rule, x: Tensor, *rest: Any, **more: Any) -> Any:
    """Of all tokens, none that the model does not have."""
    if x.shape[-1] == border.num_tokens:
        x = x.masked_fill(~border.tokens(), -torch.inf)
    return func(x, *rest, **more)


RULES: Mapping[str, Rule] = {
    "conv2d": _convolve,
    "pad": _pad,
    "max_pool2d": _maximum,
    "adaptive_max_pool2d": _maximum,
    "adaptive_avg_pool2d": _mean,
    "group_norm": _normalize_groups,
    "interpolate": _resize,
    "topk": _best,
}


def _zeros_beyond(border: OwnPadding, x: Tensor) -> Tensor:
    inside = border.inside(x)
    return x if inside is None else x * inside


def _edges_beyond(border: OwnPadding, x: Tensor) -> Tensor:
    """The map with its last pixels, of the model, repeated beyond."""
    ends = border.ends(x.shape) if x.dim() == 4 else None
    if ends is None:
        return x
    for axis, end in zip((2, 3), ends, strict=True):
        x = x.index_select(axis, torch.arange(x.shape[axis]).minimum(end - 1))
    return x
