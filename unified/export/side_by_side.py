"""Ways to run one model, frame by frame in turn, so that all meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unified.export.runtime import load_exported
from unified.inference.benchmark import moving_rectangles, prompt
from unified.inference.profiling import median_milliseconds
from unified.inference.video_predictor import VideoPredictor
from unified.structures import Size

WARM_UP = 3  # the frame of the masks, the first with a memory, the first with two frames of it
HEADER = "| objects | way | processor time a frame, ms | clock, ms | ratio | pixels that differ |\n"
HEADER += "|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Row:
    """Medians of one way with one number of objects, as ``median_milliseconds`` takes them.

    Attributes:
        processor: ms of the processor per frame, all threads together.
        clock: ms that pass per frame.
        ratio: processor time of the first way, as a multiple of this one's.
        different: share of pixels whose label is not that of the first way.
    """

    num_objects: int
    way: str
    processor: float
    clock: float
    ratio: float
    different: float

    def __str__(self) -> str:
        return (
            f"| {self.num_objects} | {self.way} | {self.processor:.0f} | {self.clock:.0f} "
            f"| {self.ratio:.2f} | {self.different:.5f} |"
        )


def ways_of(
    model: Any, folders: Sequence[Path], changes: Mapping[str, Any]
) -> dict[str, VideoPredictor]:
    """A model as it is, compiled if ``changes`` of the settings say so, and exported."""
    settings = {**changes, "score_threshold": 0.0, "compile": False}
    ways = {"as it is": VideoPredictor(model, **settings)}
    if changes.get("compile"):
        ways["compiled"] = VideoPredictor(model, **settings | {"compile": True})
    for folder in folders:
        exported = load_exported(folder)
        ways[f"exported, {exported.manifest.format}"] = VideoPredictor(exported, **settings)
    return ways


def measure(
    ways: Mapping[str, VideoPredictor], *, num_objects: int, size: Size, num_frames: int
) -> list[Row]:
    """A row for each way of following objects that are given on the first frame.

    Args:
        ways: predictors by name.
        size: (H, W) of the frames.
        num_frames: that are timed, or more, so that they are whole periods of memory.
    """
    period = max(predictor.settings.memory_interval for predictor in ways.values())
    timed = -(-num_frames // period) * period
    laps: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    differences: dict[str, list[float]] = {name: [] for name in ways}
    masks = moving_rectangles(0, size, num_objects)[1]
    kinds = next(iter(ways.values())).encoder.model.reference_kinds
    prompts = {i: prompt(kinds, mask) for i, mask in enumerate(masks, start=1)}
    for number in range(WARM_UP + timed):
        frame, results = moving_rectangles(number, size, num_objects)[0], {}
        for name, predictor in ways.items():
            if not number:
                predictor.reset()
            start = _now()
            results[name] = predictor.step(frame, {} if number else prompts)
            laps[name].append({which: end - start[which] for which, end in _now().items()})
        first = next(iter(results.values())).label_map
        for name, result in results.items():
            differences[name].append(float(np.mean(result.label_map != first)))
    rows: list[Row] = []
    for name, found in laps.items():
        table = median_milliseconds(found[WARM_UP:], ("processor", "clock"), period)
        processor, clock = table["processor"], table["clock"]
        base = rows[0].processor if rows else processor
        different = statistics.mean(differences[name])
        rows.append(Row(num_objects, name, processor, clock, base / processor, different))
    return rows


def _now() -> dict[str, float]:
    return {"processor": time.process_time(), "clock": time.perf_counter()}
