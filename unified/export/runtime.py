"""A folder of programs as a ``Segmenter``, for the predictors."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from unified.dependencies import require
from unified.errors import CheckpointError, ConfigError, InputError, first_line
from unified.export.manifest import SUFFIXES, Format, Manifest
from unified.export.nouns import Named, pyramid_tensors
from unified.expressions import clean_expression
from unified.inference.settings import ModelInput, VideoSettings
from unified.modeling.sentences import SentenceReader
from unified.structures import (
    MASK_STRIDE,
    FeaturePyramid,
    ImageBatch,
    Reference,
    References,
    Segmentation,
    Size,
    padded_size,
    stack_padded,
)

logger = logging.getLogger(__name__)

_REFERENCE = ("keys", "values", "padding_mask", "summary")
Engine = Callable[[Sequence[str], Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class ExportedPyramid(FeaturePyramid):
    """Features that a program made.

    Attributes:
        more: what the system adds, of the images before ``expand``; computed when asked for.
    """

    more: Callable[[], Named]


@dataclass(frozen=True, kw_only=True)
class ExportedReference(Reference):
    """A reference that a program made.

    Attributes:
        kind: "text" or "mask".
        more: what the system adds, each (B, ...).
    """

    kind: str
    more: Mapping[str, Tensor]

    def __getitem__(self, images: slice | Sequence[int]) -> Reference:
        more = {name: tensor[images] for name, tensor in self.more.items()}
        return replace(super().__getitem__(images), more=more)  # type: ignore[call-arg]

    def stack(self, others: Sequence[Reference]) -> Reference:
        rows = [self, *(other for other in others if isinstance(other, ExportedReference))]
        more = {name: torch.cat([row.more[name] for row in rows]) for name in self.more}
        return replace(super().stack(others), more=more)  # type: ignore[call-arg]


class ExportedSegmenter(nn.Module):
    """The verbs of a ``Segmenter`` by programs on the CPU, in float32.

    Attributes:
        input_size: (H, W); larger images are scaled to fit, smaller ones padded.
        inference: how the predictors ask it.
        info: of the model that was exported.
        exported: what runs, for the results of tools.

    Raises:
        CheckpointError: the folder holds no such programs.
        ConfigError: the package that runs them is missing.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.manifest = Manifest.read(folder)
        self.folder = folder
        self.input_size = self.manifest.size
        self.inference, self.info = self.manifest.settings, self.manifest.info
        self.reference_kinds = frozenset(self.manifest.reference_kinds)
        runtime = require(RUNTIMES[self.manifest.format])
        self.exported = {
            "folder": str(folder),
            "runtime": f"{runtime.__name__} {runtime.__version__}",
            "input": self.input_size,
        }
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # tells the device
        self._engine, self._reader = cache(self._load), cache(self._load_reader)

    def check_settings(self, settings: ModelInput) -> None:
        """Raises InputError unless these programs can be asked so."""
        asked = "video" if isinstance(settings, VideoSettings) else "image"
        if asked != self.manifest.what:
            raise InputError(
                f"{self.folder} was exported for {self.manifest.what}s, and {asked}s are asked "
                f"about: export the model with --what {asked}"
            )
        if settings.precision != "float32":
            raise InputError(
                f"{self.folder} runs in float32, not {settings.precision}: leave precision at "
                '"float32", or name a model'
            )

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """Images (3, h, w) that fit the input -> raw pixels (B, 3, H, W), padded."""
        sizes = tuple((int(image.shape[-2]), int(image.shape[-1])) for image in images)
        padding_mask = torch.ones(len(images), *self.input_size, dtype=torch.bool)
        for mask, (height, width) in zip(padding_mask, sizes, strict=True):
            if height > self.input_size[0] or width > self.input_size[1]:
                raise InputError(
                    f"an image of {height} x {width} does not fit the exported input of "
                    f"{self.input_size[0]} x {self.input_size[1]}: scale it down"
                )
            mask[:height, :width] = False
        own = padded_size(sizes, self.manifest.divisor)
        if own != self.input_size and not self.manifest.sees_own_padding:
            _warn_of_padding(own, self.input_size)
        return ImageBatch(stack_padded(images, self.input_size).float(), sizes, padding_mask)

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        """Features of every image."""
        rows = [
            {"pixels": images.tensor[row : row + 1], "padding": images.padding_mask[row : row + 1]}
            for row in range(len(images))
        ]
        named = _joined([self._run("image", row) for row in rows])
        num = sum(name.startswith("level") for name in named)
        return ExportedPyramid(
            levels=tuple(named[f"level{index}"] for index in range(num)),
            padding_masks=tuple(named[f"padding{index}"] for index in range(num)),
            image_sizes=images.image_sizes,
            padded_size=images.padded_size,
            high_res=named.get("high_res"),
            more=cache(partial(self._more, rows)),
        )

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        """References of B sentences."""
        rules = self.manifest.text
        assert rules is not None, "asked for by those who see that sentences are understood"
        rows: list[Named] = []
        for text in texts:
            cleaned = f"{clean_expression(text).strip()} "
            parts = [re.split(end, cleaned, maxsplit=1)[0] if end else text for end in rules.ends]
            tokens = [self._reader()([part.strip()]) for part in parts]
            rows.append({f"ids{index}": ids for index, (ids, _) in enumerate(tokens)})
            rows[-1] |= {f"valid{index}": valid for index, (_, valid) in enumerate(tokens)}
        first, *others = [_reference("text", self._run("text", row)) for row in rows]
        return tuple(
            level.stack([other[index] for other in others]) for index, level in enumerate(first)
        )

    def encode_mask(
        self, images: ImageBatch, features: FeaturePyramid, masks: Tensor
    ) -> tuple[Reference, ...]:
        """References of masks (B, H, W), on one image or on B."""
        runs = []
        for rows in _alike(features):
            row = slice(rows.start, rows.start + 1)
            named = {"pixels": images.tensor[row], "padding": images.padding_mask[row]}
            named |= _pyramid(features, rows.start) | {"masks": masks[rows]}
            runs.append(self._run("mask", named))
        return _reference("mask", _joined(runs))

    def segment(
        self,
        features: FeaturePyramid,
        references: Sequence[References],
        *,
        top_k: int = 1,
        mask_stride: int = MASK_STRIDE,
    ) -> Segmentation:
        """The best query of every image.

        Raises:
            InputError: no reference, or more queries or another stride than the export has.
        """
        given = {_kind(levels): levels for levels in references}
        kinds = "-".join(kind for kind in self.manifest.reference_kinds if kind in given)
        if self.manifest.mask_strides.get(kinds) != mask_stride or top_k != 1:
            raise InputError(
                f"this model was exported for the best mask of a prompt in "
                f"{self.manifest.what}s: export it for what is asked, or use the model itself"
            )
        assert isinstance(features, ExportedPyramid)
        runs = []
        for rows in _alike(features):
            named = _pyramid(features, rows.start)
            if self._uses_more(f"segment-{kinds}"):
                named |= {name: x[rows.start :][:1] for name, x in features.more().items()}
            for kind, levels in given.items():
                named |= {f"{kind}.{name}": x[rows] for name, x in _tensors(levels).items()}
            runs.append(self._run(f"segment-{kinds}", named))
        return Segmentation(**_joined(runs))

    def _more(self, rows: Sequence[Named]) -> Named:
        return _joined([self._run("more", row) for row in rows])

    def _uses_more(self, name: str) -> bool:
        entries = self.manifest.programs[name].inputs
        return any(entry.used and entry.name.startswith("more.") for entry in entries)

    def _load_reader(self) -> SentenceReader:
        rules = self.manifest.text
        assert rules is not None
        vocabulary = require("tokenizers").Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return SentenceReader(vocabulary, rules.context_length, rules.padding)

    def _run(self, name: str, named: Mapping[str, Tensor]) -> Named:
        info = self.manifest.programs[name]
        names, tensors = [], []
        for entry in info.inputs:
            empty = torch.zeros([max(1, n) for n in entry.shape], dtype=getattr(torch, entry.dtype))
            names.append(entry.name)
            tensors.append(named[entry.name].contiguous() if entry.used else empty)
        found = dict(zip(info.outputs, self._engine(name)(names, tensors), strict=True))
        return found | {alias: found[first] for alias, first in info.aliases.items()}

    def _load(self, name: str) -> Engine:
        path = self.folder / (name + SUFFIXES[self.manifest.format])
        try:
            return ENGINES[self.manifest.format](path)
        except Exception as error:  # what a runtime raises is up to it
            raise CheckpointError(
                f"{path} cannot be read by {self.exported['runtime']}: {first_line(error)}. Export "
                "the model again, or in another format"
            ) from error


def load_exported(
    folder: Path,
    weights: object = None,
    device: str = "auto",
    options: Sequence[str] = (),
    kinds: Collection[str] = (),
) -> ExportedSegmenter:
    """The model of a folder that ``export_model`` wrote; arguments as of ``unified.load``.

    Raises:
        CheckpointError: the folder holds no such model.
        ConfigError: other weights, another device or options are asked for.
        InputError: it does not follow all ``kinds``.
    """
    if weights or options or device not in ("auto", "cpu"):
        raise ConfigError(
            f"{folder} is an exported model: it runs on the CPU with the weights and options that "
            "it was exported with. Leave out weights, options and device, or name a model"
        )
    model = ExportedSegmenter(folder).eval()
    boxes = {"box"} if "mask" in model.reference_kinds else set()  # as masks of their rectangles
    if set(kinds) - model.reference_kinds - boxes:
        known, asked = (" and ".join(sorted(x)) for x in (model.reference_kinds, kinds))
        raise InputError(f"{folder} follows {known}, not {asked}: name another model")
    return model


@cache
def _warn_of_padding(own: Size, exported: Size) -> None:
    """Once for each size."""
    logger.warning(
        "images are padded to %d x %d, the size of this export; the model itself pads them to "
        "%d x %d, and masks differ a little: exported with --size %dx%d they are the same",
        *exported,
        *own,
        *own,
    )


def _kind(levels: References) -> str:
    assert isinstance(levels[0], ExportedReference)
    return levels[0].kind


def _alike(features: FeaturePyramid) -> list[slice]:
    """Rows of the batch that are views of one image."""
    num = len(features)
    if features.levels[0].stride(0) == 0 or num == 1:
        return [slice(0, num)]
    return [slice(row, row + 1) for row in range(num)]


def _pyramid(features: FeaturePyramid, row: int) -> Named:
    named = {name: x[row : row + 1] for name, x in pyramid_tensors(features).items()}
    return named | {"image_size": torch.tensor([features.image_sizes[row]])}


def _joined(runs: Sequence[Named]) -> Named:
    if len(runs) == 1:
        return runs[0]
    return {name: torch.cat([run[name] for run in runs]) for name in runs[0]}


def _reference(kind: str, named: Named) -> tuple[ExportedReference, ...]:
    num = 1 + max(int(name.partition(".")[0]) for name in named)
    levels = []
    for index in range(num):
        prefix = f"{index}."
        own = {k.removeprefix(prefix): x for k, x in named.items() if k.startswith(prefix)}
        base = {name: own.pop(name) for name in _REFERENCE}
        levels.append(ExportedReference(**base, kind=kind, more=own))
    return tuple(levels)


def _tensors(levels: References) -> Named:
    """``_reference`` the other way."""
    named: Named = {}
    for index, level in enumerate(levels):
        assert isinstance(level, ExportedReference)
        own = {name: getattr(level, name) for name in _REFERENCE} | dict(level.more)
        named |= {f"{index}.{name}": tensor for name, tensor in own.items()}
    return named


def _torch_engine(path: Path) -> Engine:
    module = torch.export.load(path).module()

    def run(_: Sequence[str], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            answer: Sequence[Tensor] = module(list(tensors))
        return answer

    return run


def _onnx_engine(path: Path) -> Engine:
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Threads that spin while they wait slow down every other process of the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = {entry.name for entry in session.get_inputs()}

    def run(names: Sequence[str], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        feed = {k: x.numpy() for k, x in zip(names, tensors, strict=True) if k in known}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return run


def _openvino_engine(path: Path) -> Engine:
    core = require("openvino").Core()
    # By default it rounds to bfloat16 on processors that have it.
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(core.read_model(str(path)), "CPU", options)
    known = {name: index for index, entry in enumerate(compiled.inputs) for name in entry.names}

    def run(names: Sequence[str], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        feed = {known[k]: x.numpy() for k, x in zip(names, tensors, strict=True) if k in known}
        answer = compiled(feed)
        return [torch.from_numpy(answer[index].copy()) for index in range(len(compiled.outputs))]

    return run


RUNTIMES: Mapping[Format, str] = {
    "torch": "torch",
    "onnx": "onnxruntime",
    "openvino": "openvino",
}
ENGINES: Mapping[Format, Callable[[Path], Engine]] = {
    "torch": _torch_engine,
    "onnx": _onnx_engine,
    "openvino": _openvino_engine,
}
