"""Traces the verbs of a model to programs and writes them to a folder."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from unified.dependencies import require
from unified.errors import ConfigError
from unified.export.manifest import (
    SUFFIXES,
    Format,
    Manifest,
    ProgramInfo,
    TextRules,
    What,
)
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
from unified.files import file_sha256
from unified.inference.settings import inference_settings
from unified.modeling.deform_attn import MultiScaleDeformableAttention
from unified.modeling.deform_sum import sum_of_gathers
from unified.segmenter import TokenSegmenter
from unified.structures import (
    FeaturePyramid,
    ImageBatch,
    References,
    Size,
    join_levels,
    stack_padded,
)
from unified.tasks import TASKS, Task

logger = logging.getLogger(__name__)

Run = Callable[[Named], Named]
KINDS = ("text", "mask")
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


def export_model(
    model: Any, folder: Path, *, format: Format, what: What, size: Size | None = None
) -> Manifest:
    """Writes the programs of a model, its vocabulary and ``manifest.json``.

    Args:
        model: a ``Segmenter`` on the CPU, in eval mode.
        folder: made if it is not there.
        size: (h, w) of the largest image that the programs take, rounded up to what the model
            pads to; by default what the model's settings make of a wide picture.

    Raises:
        ConfigError: the model has a part that cannot be exported, or a package is missing.
    """
    kinds = _kinds(model)
    settings = inference_settings(model)
    chosen = settings.image if what == "image" else settings.video
    for package in {"torch": (), "onnx": ("onnxscript",)}.get(format, ("onnxscript", "openvino")):
        require(package)
    tracer = _Tracer(prepared(model), format, folder)
    short, long = chosen.short_side, min(chosen.max_size, chosen.short_side * 16 // 9)
    examples = tracer.examples(size or (short, long), kinds)
    folder.mkdir(parents=True, exist_ok=True)
    strides = {name: _stride(what, name) for name in _combinations(kinds)}
    programs = dict(tracer.encoders(examples))
    for name, stride in strides.items():
        programs[f"segment-{name}"] = tracer.segment(examples, name.split("-"), stride)
    text = _text_rules(model, folder) if "text" in kinds else None
    manifest = Manifest(
        format=format,
        what=what,
        size=examples.images.padded_size,
        divisor=examples.divisor,
        sees_own_padding=tracer.sees_own_padding(examples),
        reference_kinds=kinds,
        mask_strides=strides,
        settings=settings,
        info=model.info,
        programs=programs,
        text=text,
        files=_files(folder, programs, format, text is not None),
    )
    manifest.write(folder)
    return manifest


def _files(folder: Path, programs: Iterable[str], format: Format, text: bool) -> dict[str, str]:
    """sha256 of what was written, by name."""
    suffixes = (SUFFIXES[format], ".bin") if format == "openvino" else (SUFFIXES[format],)
    names = [f"{program}{suffix}" for program in programs for suffix in suffixes]
    names += ["tokenizer.json"] if text else []
    return {name: file_sha256(folder / name) for name in names}


def _kinds(model: Any) -> tuple[str, ...]:
    """Kinds of reference that are exported."""
    known = set(model.reference_kinds)
    if "text" in known and not isinstance(model, TokenSegmenter):
        raise ConfigError("this model cannot be exported: it does not take sentences as tokens")
    if not known & set(KINDS):
        raise ConfigError("this model cannot be exported: it follows neither sentences nor masks")
    if left := sorted(known - set(KINDS)):
        logger.warning("not exported: %s", ", ".join(left))
    return tuple(kind for kind in KINDS if kind in known)


def _combinations(kinds: Sequence[str]) -> list[str]:
    sizes = range(1, len(kinds) + 1)
    return ["-".join(chosen) for size in sizes for chosen in combinations(kinds, size)]


def _stride(what: What, kinds: str) -> int:
    """Of mask logits, as the predictors ask for them."""
    if what == "image":
        return TASKS[Task.RIS].mask_stride
    return TASKS[Task.RVOS if "text" in kinds else Task.VOS].mask_stride


def _text_rules(model: Any, folder: Path) -> TextRules:
    encoder = model.text_encoder
    encoder.tokenizer.save(str(folder / "tokenizer.json"))
    padding = encoder.bert.config.pad_token_id or 0
    return TextRules(model.sentence_ends, encoder.context_length, padding)


def prepared(model: nn.Module) -> nn.Module:
    """A copy whose operations all runtimes have."""
    ready = copy.deepcopy(model)
    for module in ready.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.sample = sum_of_gathers
    return ready


class _Tracer:
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

    def encoders(self, examples: Examples) -> Iterator[tuple[str, ProgramInfo]]:
        """Programs that encode images, masks and sentences."""
        pixels = {
            "pixels": torch.rand(1, 3, *examples.images.padded_size) * 255,
            "padding": examples.images.padding_mask,
        }

        def image(named: Named) -> Named:
            return pyramid_tensors(self.model.encode_image(self._batch(named)))

        def more(named: Named) -> Named:
            return more_of_pyramid(self.model.encode_image(self._batch(named)))

        yield "image", self._write("image", image, pixels, examples)
        if more_of_pyramid(examples.features):
            yield "more", self._write("more", more, pixels, examples)
        if "mask" in examples.references:
            yield "mask", self._mask(examples, pixels)
        if "text" in examples.references:
            yield "text", self._text(examples)

    def _mask(self, examples: Examples, pixels: Named) -> ProgramInfo:
        height, width = examples.images.padded_size
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[:, : height // 2] = True

        def run(named: Named) -> Named:
            num = named["masks"].shape[0]
            features = fill_pyramid(examples.features, named, num)
            batch = _repeat(self._batch(named), num)
            return reference_tensors(self.model.encode_mask(batch, features, named["masks"]))

        inputs = {**pixels, **self._pyramid(examples.features), "masks": masks}
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

    def segment(self, examples: Examples, kinds: Sequence[str], stride: int) -> ProgramInfo:
        """The program that segments by references of some kinds."""
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
        logger.info("exporting %s", name)

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
