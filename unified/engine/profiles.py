"""All systems in one table: parameters, work, time beside the default model, memory, results."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

from unified.dependencies import require
from unified.engine.config import load_config
from unified.engine.models import CONFIGS, default_model, model_entries
from unified.engine.system import ModelEntry, Profile, system
from unified.errors import InputError
from unified.inference.profiling import forget_peak, memory

SENTENCE = "the man on the left"
TITLES = (
    *("model", "picture", "parameters, M", "multiply-adds, G", "time", "peak memory, MB"),
    *("oIoU on the made set", "published"),
)
HEADER = f"| {' | '.join(TITLES)} |\n{'|---' * len(TITLES)}|"


@dataclass(frozen=True)
class Measured:
    """What one sentence about one picture costs a model with initial weights.

    Attributes:
        parameters: how many, a language model among them.
        multiply_adds: how many, as fvcore counts them.
        seconds: median of a pass.
        ratio: to that of the default model, in turn with it.
        peak_mb: of a process that does nothing else.
    """

    parameters: int
    multiply_adds: int
    seconds: float
    ratio: float
    peak_mb: float


def profiled() -> dict[str, ModelEntry]:
    """Models that are rows of the table."""
    return {name: entry for name, entry in model_entries().items() if entry.profile is not None}


def measure_all(
    only: str | None, threads: int, rounds: int
) -> Iterator[tuple[str, Profile, Measured]]:
    """Row by row, each in a process of its own, of all models of ``profiled`` or of one.

    Raises:
        InputError: the model has no row.
    """
    entries = profiled()
    if only is not None and only not in entries:
        raise InputError(f"{only} has no row in the table: choose among {sorted(entries)}")
    for name in entries if only is None else [only]:
        profile = entries[name].profile
        assert profile is not None
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield name, profile, pool.submit(measure, name, threads, rounds).result()


def measure(name: str, threads: int, rounds: int) -> Measured:
    """Measures a model of ``profiled``."""
    torch.set_num_threads(threads)
    forget_peak()
    entries = profiled()
    model, work = _prepare(entries[name])
    work()
    peak = memory("VmHWM")
    _, compared = _prepare(entries[default_model()])
    compared()
    laps = [(_seconds(work), _seconds(compared)) for _ in range(rounds)]
    own, theirs = (statistics.median(times) for times in zip(*laps, strict=True))
    return Measured(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=count_multiply_adds(model, _images(entries[name])),
        seconds=own,
        ratio=own / theirs,
        peak_mb=peak,
    )


def _prepare(entry: ModelEntry) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The model with weights that keep every part busy, and one pass."""
    cfg = load_config(CONFIGS / entry.config)
    found = system(cfg.MODEL.META_ARCHITECTURE)
    model = found.build(cfg).eval()
    if found.benchmark_weights is not None:
        found.benchmark_weights(model)
    ask, images = Ask(model), _images(entry)

    def work() -> Tensor:
        with torch.inference_mode():
            answer: Tensor = ask(images)
            return answer

    return model, work


def _images(entry: ModelEntry) -> Tensor:
    assert entry.profile is not None
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, *entry.profile.size), generator=generator).float()


class Ask(nn.Module):
    """One sentence about every picture: (B, 3, H, W) in 0..255 -> mask logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Tensor:
        """All the verbs that a sentence needs."""
        features = self.model.encode_image(self.model.preprocess(list(images)))
        references = self.model.encode_text([SENTENCE] * len(images))
        logits: Tensor = self.model.segment(features, [references]).mask_logits
        return logits


def count_multiply_adds(model: nn.Module, images: Tensor) -> int:
    """Multiply-adds of ``Ask``, by fvcore, which by itself knows no attention, nor vectors."""
    analysis = require("fvcore.nn").FlopCountAnalysis(Ask(model), images)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.set_op_handle("aten::matmul", _product)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        return int(analysis.total())


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Of both products of an attention: query (..., N, D), key (..., M, D), value (..., M, E)."""
    query, key, value = (x.type().sizes() for x in inputs[:3])
    return math.prod(query[:-1]) * int(key[-2] * (query[-1] + value[-1]))


def _product(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Of a product with a matrix or a vector: as many for each number as it sums."""
    return math.prod(outputs[0].type().sizes()) * int(inputs[0].type().sizes()[-1])


def _seconds(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(name: str, profile: Profile, measured: Measured) -> str:
    """A line of the table."""
    cells = (
        name,
        "x".join(map(str, profile.size)),
        f"{measured.parameters / 1e6:.1f}",
        f"{measured.multiply_adds / 1e9:.1f}",
        f"{measured.ratio:.2f}x",
        f"{measured.peak_mb:.0f}",
        profile.made or "not run",
        profile.published or "not known here",
    )
    return f"| {' | '.join(cells)} |"


def as_json(profile: Profile, measured: Measured) -> dict[str, Any]:
    """A row as plain values."""
    return asdict(profile) | asdict(measured)
