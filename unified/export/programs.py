"""Writes the programs of a model to a folder, with all that runs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unified.dependencies import require
from unified.errors import ConfigError
from unified.export.manifest import MANIFEST, Format, Manifest, ProgramInfo, TextRules, What
from unified.export.tracing import Tracer, Work, prepared
from unified.files import file_sha256
from unified.inference.settings import inference_settings
from unified.segmenter import TokenSegmenter
from unified.structures import Size
from unified.tasks import TASKS, Task

logger = logging.getLogger(__name__)

KINDS = ("text", "mask")
NAMES = {
    "image": "image encoder",
    "more": "features that sentences ask for",
    "mask": "mask encoder",
    "text": "text encoder",
}


def export_model(
    model: Any, folder: Path, *, format: Format, what: What, size: Size | None = None
) -> Manifest:
    """Writes the programs of a model, its vocabulary and ``manifest.json``.

    Args:
        model: a ``Segmenter`` on the CPU, in eval mode.
        folder: made if it is not there; what it holds is replaced once all are written.
        size: (h, w) of the largest image that the programs take, rounded up to what the model
            pads to; by default what the model's settings make of a 16:9 picture, for images wide or
            upright.

    Raises:
        ConfigError: the model has a part that cannot be exported, or a package is missing.
    """
    kinds = _kinds(model)
    settings = inference_settings(model)
    chosen = settings.image if what == "image" else settings.video
    for package in {"torch": (), "onnx": ("onnxscript",)}.get(format, ("onnxscript", "openvino")):
        require(package)
    if "text" in kinds and what == "image" and getattr(model, "chooser", None) is not None:
        logger.warning("not exported: the chooser, so sentences are answered as without it")
    with _made(folder), TemporaryDirectory(prefix=".partial-", dir=folder) as name:
        partial = Path(name)
        tracer = Tracer(prepared(model), format, partial)
        long = min(chosen.max_size, chosen.short_side * 16 // 9)
        short = long if what == "image" else chosen.short_side  # photos are as often upright
        examples = tracer.examples(size or (short, long), kinds)
        strides = {name: _stride(what, name) for name in _combinations(kinds)}
        programs = _written(tracer.programs(examples, strides))
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
            text=_text_rules(model, partial) if "text" in kinds else None,
            files={path.name: file_sha256(path) for path in sorted(partial.iterdir())},
        )
        manifest.write(partial)
        (folder / MANIFEST).unlink(missing_ok=True)  # what it names is replaced
        for file in (*manifest.files, MANIFEST):
            (partial / file).replace(folder / file)
    return manifest


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder exists; one that is made here goes again if nothing comes into it."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()


def _written(programs: Mapping[str, Work]) -> dict[str, ProgramInfo]:
    """What each program is, once it is written; says which is at work."""
    found = {}
    for number, (name, work) in enumerate(programs.items(), start=1):
        kinds = name.removeprefix("segment-").split("-")
        words = NAMES.get(name) or f"masks by {' and '.join(kinds)}"
        logger.info("program %d of %d: %s ...", number, len(programs), words)
        start = time.perf_counter()
        found[name] = work()
        logger.info("written in %.0f s", time.perf_counter() - start)
    return found


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
