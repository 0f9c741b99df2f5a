"""Where the time of a run goes, and how much memory it takes."""

from __future__ import annotations

import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch

# The verbs of a model, in the order of a frame's life, and the stage that their time counts for; a
# system adds parts of its own (its ``stages``). What a method spends in another one of them counts
# for that one's stage only.
VERB_STAGES = {
    "preprocess": "backbone",
    "encode_image": "backbone",
    "encode_text": "references",
    "encode_mask": "references",
    "segment": "masks",
}


def stage_names(stages: Mapping[str, str]) -> tuple[str, ...]:
    """Stages of a frame in the order of its life; "merge" is the predictor around the model.

    Args:
        stages: what the system adds; these are parts of "segment", so they come before its rest.
    """
    *before, last = dict.fromkeys(VERB_STAGES.values())
    return tuple(dict.fromkeys(("decode", *before, *stages.values(), last, "merge", "write")))


class StageTimer:
    """Splits wall time among named stages; a stage inside another one pauses the outer one.

    Args:
        synchronize: waits until the device has done what it was asked to; called at every change.
    """

    def __init__(self, synchronize: Callable[[], object] = lambda: None) -> None:
        self._synchronize = synchronize
        self._seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what happens inside for ``name``."""
        self._credit()
        self._open.append(name)
        try:
            yield
        finally:
            self._credit()
            self._open.pop()

    @contextmanager
    def watch(self, model: object, stages: Mapping[str, str]) -> Iterator[None]:
        """Counts the verbs of ``model``, and other methods by their stages, while inside."""
        watched = []
        for path, stage in {**VERB_STAGES, **stages}.items():
            parent, _, method = path.rpartition(".")
            try:
                owner = attrgetter(parent)(model) if parent else model
                original = getattr(owner, method)
            except AttributeError:
                continue  # another kind of model: counts for the stage around it
            # Shadows the method of the class on this one instance.
            object.__setattr__(owner, method, self._timed(original, stage))
            watched.append((owner, method))
        try:
            yield
        finally:
            for owner, method in watched:
                object.__delattr__(owner, method)

    def lap(self) -> dict[str, float]:
        """Seconds per stage since the last lap."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds

    def _timed(self, method: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*args: object, **options: object) -> object:
            with self.stage(stage):
                return method(*args, **options)

        return timed

    def _credit(self) -> None:
        self._synchronize()
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now


def median_milliseconds(
    laps: Sequence[Mapping[str, float]], names: Sequence[str], period: int = 1
) -> dict[str, float]:
    """Median ms of every stage, and of the whole frame under "total"; stages need not add up.

    Args:
        period: frames after which the same work comes again; what is told is the mean of the
            medians of each of these frames, so that work which is done once in a period counts.
    """
    rows = [{**lap, "total": sum(lap.values())} for lap in laps]
    kinds = [rows[first::period] for first in range(min(period, len(rows)))]
    return {
        name: round(1000 * statistics.fmean(_median(kind, name) for kind in kinds), 2)
        for name in (*names, "total")
    }


def _median(laps: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.median(lap.get(name, 0.0) for lap in laps)


def memory(which: Literal["VmHWM", "VmRSS"]) -> float:
    """Resident memory of this process in MB (2**20 bytes): its peak or now. Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == which:
            return int(value.split()[0]) / 1024
    raise KeyError(which)


def forget_peak() -> None:
    """Lets the peak of ``memory`` start again from what is resident now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def environment(device: torch.device) -> dict[str, str | int]:
    """What timings depend on besides the code."""
    if device.type == "cpu":
        name = _cpu_name()
    else:
        name = torch.get_device_module(device).get_device_name(device)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines: Iterable[str] = info.read_text().splitlines() if info.exists() else ()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()
