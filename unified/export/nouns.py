"""The nouns as named tensors and back, with whatever a system adds to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

from torch import Tensor

from unified.structures import FeaturePyramid, References

Named = dict[str, Tensor]
_PYRAMID = {field.name for field in fields(FeaturePyramid)}


def pyramid_tensors(features: FeaturePyramid) -> Named:
    """The tensors of every pyramid by name."""
    named = {f"level{index}": level for index, level in enumerate(features.levels)}
    named |= {f"padding{index}": mask for index, mask in enumerate(features.padding_masks)}
    if features.high_res is not None:
        named["high_res"] = features.high_res
    return named


def more_of_pyramid(features: FeaturePyramid) -> Named:
    """What a system adds to a pyramid; what is computed when asked for is computed now."""
    added = {f.name: getattr(features, f.name) for f in fields(features) if f.name not in _PYRAMID}
    named: Named = {}
    for name, value in added.items():
        named |= _leaves(f"more.{name}", _computed(value))
    return named


def fill_pyramid(template: FeaturePyramid, named: Mapping[str, Tensor], num: int) -> FeaturePyramid:
    """A pyramid like the template of ``num`` equal images, with the tensors (1, ...) given."""

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.expand(num, *[-1] * (tensor.dim() - 1))

    levels = range(len(template.levels))
    added: dict[str, Any] = {}
    for field in fields(template):
        prefix = f"more.{field.name}"
        if field.name in _PYRAMID or not any(name.startswith(prefix) for name in named):
            continue
        value = getattr(template, field.name)
        fill = partial(_filled, prefix, _computed(value), named, repeat)
        added[field.name] = fill if callable(value) else fill()  # the program takes what it asks
    return replace(
        template,
        levels=tuple(repeat(named[f"level{index}"]) for index in levels),
        padding_masks=tuple(repeat(named[f"padding{index}"]) for index in levels),
        high_res=repeat(named["high_res"]) if "high_res" in named else None,
        image_sizes=cast(Any, repeat(named["image_size"])),  # a tensor: it may vary
        **added,
    )


def reference_tensors(references: References) -> Named:
    """The tensors of a reference by name."""
    named: Named = {}
    for index, level in enumerate(references):
        for field in fields(level):
            named |= _leaves(f"{index}.{field.name}", getattr(level, field.name))
    return named


def fill_reference(template: References, named: Mapping[str, Tensor]) -> References:
    """A reference like the template with the tensors given."""
    return tuple(
        replace(
            level,
            **{
                field.name: _filled(
                    f"{index}.{field.name}", getattr(level, field.name), named, lambda x: x
                )
                for field in fields(level)
            },
        )
        for index, level in enumerate(template)
    )


def _computed(value: Any) -> Any:
    return value() if callable(value) else value


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a tensor, a tuple or a dictionary."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from _leaves(f"{name}.{index}", part)


def _filled(
    name: str, value: Any, named: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> Any:
    """``_leaves`` the other way."""
    if isinstance(value, Tensor):
        return change(named[name])
    if isinstance(value, (tuple, list)):
        return tuple(
            _filled(f"{name}.{index}", part, named, change) for index, part in enumerate(value)
        )
    return value
