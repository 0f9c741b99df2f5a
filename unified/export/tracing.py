"""Traces the verbs of a model: each becomes a program of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from unified.export.manifest import Format, ProgramInfo
from unified.export.nouns import (
    Named,
    fill_pyramid,
    fill_reference,
    more_of_pyramid,
    pyramid_tensors,
    reference_tensors,
)
from unified.export.padding import OwnPadding
from unified.export.writing import drop_unused_weights, entries, quiet, write_program
from unified.modeling.deform_attn import MultiScaleDeformableAttention
from unified.modeling.deform_sum import sum_of_gathers
from unified.structures import (
    FeaturePyramid,
    ImageBatch,
    References,
    Size,
    join_levels,
    stack_padded,
)

Run = Callable[[Named], Named]
Work = Callable[[], ProgramInfo]
OUTPUTS = ("mask_logits", "scores", "boxes", "classes")


class Program(nn.Module):
    """Part of a model as a function from tensors to tensors.

    Args:
        model: whose weights ``run`` uses.
        inputs, outputs: names, in order.
    """

    def __init__(
        self, model: nn.Module, run: Run, inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        super().__init__()
        self.model, self.run = model, run
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def forward(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors by the names of ``inputs`` -> tensors by those of ``outputs``."""
        named = self.run(dict(zip(self.inputs, tensors, strict=True)))
        return [named[name] for name in self.outputs]


@dataclass(frozen=True)
class Examples:
    """What programs are traced with: one image, and a reference of each kind to two objects."""

    images: ImageBatch
    features: FeaturePyramid
    references: Mapping[str, References]
    divisor: int
    tokens: tuple[Named, ...] = ()

    def border(self, named: Named) -> AbstractContextManager[object]:
        """Where the picture in a program's inputs ends; see ``OwnPadding``."""
        size = self.images.padded_size
        if size == (self.divisor, self.divisor):
            return nullcontext()  # the model itself pads all to one size
        if "image_size" in named:
            picture = named["image_size"][0]
        elif "padding" in named:
            inside = ~named["padding"][0]
            picture = torch.stack((inside[:, 0].sum(), inside[0].sum()))
        else:
            return nullcontext()
        levels = [(level.shape[-2], level.shape[-1]) for level in self.features.levels]
        return OwnPadding(size, picture, self.divisor, levels)


def prepared(model: nn.Module) -> nn.Module:
    """A copy whose operations all runtimes have."""
    ready = copy.deepcopy(model)
    for module in ready.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.sample = sum_of_gathers
    return ready


class Tracer:
    """Makes and writes programs of one model."""

    def __init__(self, model: Any, format: Format, folder: Path) -> None:
        self.model, self.format, self.folder = model, format, folder

    @torch.no_grad()
    def examples(self, size: Size, kinds: Sequence[str]) -> Examples:
        """Noise of a size, and references to it."""
        model = self.model
        noise = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255
        batch = model.preprocess([noise])
        height, width = batch.padded_size
        batch = model.preprocess(
            [torch.nn.functional.pad(noise, (0, width - size[1], 0, height - size[0]))]
        )
        features = model.encode_image(batch)
        references: dict[str, References] = {}
        tokens: tuple[Named, ...] = ()
        if "mask" in kinds:
            masks = torch.zeros(2, height, width, dtype=torch.bool)
            masks[:, height // 4 : height // 2, width // 4 : width // 2] = True
            frame = model.encode_mask(_repeat(batch, 2), features.expand(2), masks)
            references["mask"] = join_levels([frame, frame])
        if "text" in kinds:
            rows = [model.text_encoder.tokenize(["the large dog here"] * 2)] * len(
                model.sentence_ends
            )
            references["text"] = model.encode_tokens(rows)
            tokens = tuple({"ids": ids[:1], "valid": valid[:1]} for ids, valid in rows)
        divisor = model.preprocess([torch.zeros(3, 1, 1)]).padded_size[0]
        return Examples(batch, features, references, divisor, tokens)

    @torch.no_grad()
    def sees_own_padding(self, examples: Examples) -> bool:
        """Whether a smaller picture gets the features that the model gives it."""
        size, divisor = examples.images.padded_size, examples.divisor
        height, width = (max(side - divisor, min(side, divisor)) for side in size)
        picture = examples.images.tensor[0, :, :height, :width]
        padding = torch.ones(1, *size, dtype=torch.bool)
        padding[:, :height, :width] = False
        named = {"pixels": stack_padded([picture], size), "padding": padding}
        with examples.border(named):
            ours = self.model.encode_image(self._batch(named)).levels
        theirs = self.model.encode_image(self.model.preprocess([picture])).levels
        return all(
            torch.allclose(x[..., : y.shape[-2], : y.shape[-1]], y, rtol=1e-3, atol=1e-3)
            for x, y in zip(ours, theirs, strict=True)
        )

    def programs(self, examples: Examples, strides: Mapping[str, int]) -> dict[str, Work]:
        """By the name of each program, what traces, writes and describes it.

        Args:
            strides: of mask logits, by the kinds of reference that are given.
        """
        found: dict[str, Work] = {"image": partial(self._image, examples, "image", pyramid_tensors)}
        if more_of_pyramid(examples.features):
            found["more"] = partial(self._image, examples, "more", more_of_pyramid)
        if "mask" in examples.references:
            found["mask"] = partial(self._mask, examples)
        if "text" in examples.references:
            found["text"] = partial(self._text, examples)
        for kinds, stride in strides.items():
            found[f"segment-{kinds}"] = partial(self._segment, examples, kinds.split("-"), stride)
        return found

    def _image(
        self, examples: Examples, name: str, tensors: Callable[[FeaturePyramid], Named]
    ) -> ProgramInfo:
        def run(named: Named) -> Named:
            return tensors(self.model.encode_image(self._batch(named)))

        return self._write(name, run, self._pixels(examples), examples)

    def _mask(self, examples: Examples) -> ProgramInfo:
        height, width = examples.images.padded_size
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[:, : height // 2] = True

        def run(named: Named) -> Named:
            num = named["masks"].shape[0]
            features = fill_pyramid(examples.features, named, num)
            batch = _repeat(self._batch(named), num)
            return reference_tensors(self.model.encode_mask(batch, features, named["masks"]))

        inputs = {**self._pixels(examples), **self._pyramid(examples.features), "masks": masks}
        return self._write("mask", run, inputs, examples, {"masks": {0: Dim("objects", min=1)}})

    def _text(self, examples: Examples) -> ProgramInfo:
        inputs, shapes = {}, {}
        for index, row in enumerate(examples.tokens):
            words = Dim(f"words{index}", min=3, max=self.model.text_encoder.context_length)
            for name, tensor in row.items():
                inputs[f"{name}{index}"], shapes[f"{name}{index}"] = tensor, {1: words}
        num = len(examples.tokens)

        def run(named: Named) -> Named:
            rows = [(named[f"ids{index}"], named[f"valid{index}"]) for index in range(num)]
            return reference_tensors(self.model.encode_tokens(rows))

        return self._write("text", run, inputs, examples, shapes)

    def _segment(self, examples: Examples, kinds: Sequence[str], stride: int) -> ProgramInfo:
        features = examples.features
        templates = {kind: examples.references[kind] for kind in kinds}
        inputs = self._pyramid(features) | more_of_pyramid(features)
        shapes: dict[str, Any] = {}
        objects = Dim("objects", min=1)
        for kind, levels in templates.items():
            for name, tensor in reference_tensors(levels).items():
                index, _, field = name.partition(".")
                inputs[f"{kind}.{name}"] = tensor
                shapes[f"{kind}.{name}"] = {0: objects}
                if field in ("keys", "values", "padding_mask"):
                    first = next(
                        i for i, x in enumerate(levels) if x.keys is levels[int(index)].keys
                    )
                    shapes[f"{kind}.{name}"][1] = Dim(f"{kind}{first}", min=1)

        def run(named: Named) -> Named:
            own = {kind: _of_kind(named, kind) for kind in kinds}
            num = next(iter(own[kinds[0]].values())).shape[0]
            found = self.model.segment(
                fill_pyramid(features, named, num),
                [fill_reference(templates[kind], own[kind]) for kind in kinds],
                top_k=1,
                mask_stride=stride,
            )
            return {name: getattr(found, name) for name in OUTPUTS}

        return self._write(f"segment-{'-'.join(kinds)}", run, inputs, examples, shapes)

    def _pixels(self, examples: Examples) -> Named:
        return {
            "pixels": torch.rand(1, 3, *examples.images.padded_size) * 255,
            "padding": examples.images.padding_mask,
        }

    def _pyramid(self, features: FeaturePyramid) -> Named:
        return pyramid_tensors(features) | {"image_size": torch.tensor(features.image_sizes)}

    def _batch(self, named: Named) -> ImageBatch:
        """Raw pixels, normalised, zero on padding."""
        batch = self.model.preprocess([named["pixels"][0]])
        mask = named["padding"]
        return replace(batch, tensor=batch.tensor.masked_fill(mask[:, None], 0), padding_mask=mask)

    def _write(
        self,
        name: str,
        run: Run,
        inputs: Named,
        examples: Examples,
        shapes: Mapping[str, Any] | None = None,
    ) -> ProgramInfo:
        """Traces, writes and describes one program."""

        def run_within(named: Named) -> Named:
            with examples.border(named):
                return run(named)

        inputs = {key: x.clone() for key, x in inputs.items()}  # one tensor twice is one input
        with torch.no_grad():
            answer = run_within(inputs)
        aliases = {
            name: next(first for first, other in answer.items() if other is tensor)
            for name, tensor in answer.items()
        }
        outputs = [name for name, first in aliases.items() if name == first]
        module = Program(self.model, run_within, tuple(inputs), outputs).eval()
        dynamic = [(shapes or {}).get(name) for name in inputs]
        with torch.no_grad(), quiet():
            program = torch.export.export(
                module, (list(inputs.values()),), dynamic_shapes=(dynamic,), strict=False
            )
            drop_unused_weights(program)
            write_program(program, self.folder / name, self.format, list(inputs), outputs)
        return ProgramInfo(
            inputs=tuple(entries(program, inputs, dynamic)),
            outputs=tuple(outputs),
            aliases={name: first for name, first in aliases.items() if name != first},
        )


def _of_kind(named: Named, kind: str) -> Named:
    prefix = f"{kind}."
    return {name.removeprefix(prefix): x for name, x in named.items() if name.startswith(prefix)}


def _repeat(batch: ImageBatch, num: int) -> ImageBatch:
    """One image ``num`` times."""
    return ImageBatch(
        batch.tensor.expand(num, -1, -1, -1),
        batch.image_sizes,
        batch.padding_mask.expand(num, -1, -1),
    )
