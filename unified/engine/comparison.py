"""The same training once for every value of a configuration key, and one table of results."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unified.engine.checkpointing import FINAL
from unified.engine.config import check_pairs, load_config, read_runs
from unified.engine.hooks import EVALUATIONS
from unified.engine.stages import TRAIN, run_training
from unified.errors import ConfigError
from unified.files import read_text

logger = logging.getLogger(__name__)

KEYS = {"OUTPUT_DIR", "CONFIG", "KEY", "VALUES", "OPTIONS", "METRICS"}


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in one key.

    Attributes:
        config: yaml file of all runs.
        key, values: what differs.
        options: ``KEY VALUE`` pairs of all runs, the budget among them.
        metrics: title of a column -> ``dataset/protocol/metric``.
        folder: each run writes below it, in a folder named by its value.
    """

    config: Path
    key: str
    values: tuple[str, ...]
    options: tuple[str, ...]
    metrics: Mapping[str, str]
    folder: Path

    def command(self, value: str) -> list[str]:
        """How the run with this value is trained; it goes on where it was stopped."""
        command = [sys.executable, str(TRAIN), "--config-file", str(self.config), "--resume"]
        return [*command, *self.options, self.key, value, "OUTPUT_DIR", str(self.folder / value)]

    def numbers(self, value: str) -> list[float]:
        """The last numbers of the run with this value, in the order of ``metrics``.

        Raises:
            ConfigError: the run did not compute one of them.
        """
        lines = read_text(self.folder / value / EVALUATIONS).splitlines()
        found = json.loads(lines[-1])
        missing = [metric for metric in self.metrics.values() if metric not in found]
        if missing:
            raise ConfigError(f"METRICS: {missing[0]} is not among the results {sorted(found)}")
        return [found[metric] for metric in self.metrics.values()]


def read_comparison(path: str | Path, options: Sequence[str] = ()) -> Comparison:
    """The comparison that a yaml file describes, all its runs checked before any of them starts.

    Args:
        path: holds ``OUTPUT_DIR``, ``CONFIG`` (relative to the file), ``KEY``, ``VALUES``,
            ``OPTIONS`` (a map of config keys to values) and ``METRICS`` (title ->
            ``dataset/protocol/metric``).
        options: ``KEY VALUE`` pairs for all runs; ``OUTPUT_DIR`` is that of the comparison.

    Raises:
        ConfigError: the file is missing or wrong, or the configuration of a run is.
    """
    path, content = read_runs(path, "comparison", KEYS, "VALUES")
    for key in ("OPTIONS", "METRICS"):
        if not isinstance(content[key], dict) or not content[key]:
            raise ConfigError(f"{path}: expected keys and values as {key}")
    if len(set(map(str, content["VALUES"]))) < len(content["VALUES"]):
        raise ConfigError(f"{path}: two VALUES are the same")
    check_pairs(options)
    pairs = content["OPTIONS"] | dict(zip(options[::2], options[1::2], strict=True))
    folder = Path(pairs.pop("OUTPUT_DIR", content["OUTPUT_DIR"]))
    comparison = Comparison(
        config=path.parent / content["CONFIG"],
        key=content["KEY"],
        values=tuple(map(str, content["VALUES"])),
        options=tuple(str(part) for pair in pairs.items() for part in pair),
        metrics=content["METRICS"],
        folder=folder,
    )
    for value in comparison.values:
        cfg = load_config(comparison.config, [*comparison.options, comparison.key, value])
        _check_metrics(comparison.metrics, cfg.DATASETS.TEST)
    return comparison


def _check_metrics(metrics: Mapping[str, str], datasets: Sequence[str]) -> None:
    for metric in metrics.values():
        if metric.partition("/")[0] not in datasets:
            raise ConfigError(
                f"METRICS: {metric} is of no dataset of DATASETS.TEST, which has "
                f"{', '.join(datasets) or 'none'}: give dataset/protocol/metric of one of them"
            )


def run_comparison(comparison: Comparison) -> int:
    """Trains what is not trained yet, one run after the other; returns the exit code."""
    for number, value in enumerate(comparison.values, 1):
        label = f"run {number}/{len(comparison.values)} {value}"
        if (comparison.folder / value / FINAL).exists():
            logger.info("%s: done", label)
            continue
        logger.info("%s: starts", label)
        code = run_training(comparison.command(value))
        if code:
            logger.error("%s ended with code %d: run the same command to go on", label, code)
            return code
    return 0


def table(comparison: Comparison) -> Iterator[str]:
    """Lines of a table in Markdown, the run with the best first number first."""
    yield f"| {' | '.join(('', *comparison.metrics))} |"
    yield "|---" * (1 + len(comparison.metrics)) + "|"
    rows = {value: comparison.numbers(value) for value in comparison.values}
    for value, numbers in sorted(rows.items(), key=lambda item: item[1], reverse=True):
        yield f"| `{value}` | {' | '.join(f'{number:.1f}' for number in numbers)} |"
