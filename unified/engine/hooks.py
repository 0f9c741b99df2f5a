"""What happens around training steps: logs, checkpoints, evaluation, pictures, curves."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter, TensorboardXWriter, get_event_storage

from unified.dependencies import require
from unified.engine.sample_pictures import SamplePictures
from unified.engine.trainer import Trainer
from unified.files import atomic_path

logger = logging.getLogger(__name__)

METRICS, EVALUATIONS = "metrics.json", "evaluation.json"


Evaluate = Callable[[Path | None], Mapping[str, float]]


def default_hooks(cfg: CfgNode, start: int, evaluate: Evaluate | None) -> list[HookBase]:
    """The hooks of a run; all processes checkpoint and evaluate, the first one writes.

    Args:
        start: the first step, to forget what a killed run logged after its last checkpoint.
        evaluate: runs on all processes and returns numbers by name; takes the file of the weights,
            where there is one.
    """
    folder, period = Path(cfg.OUTPUT_DIR), cfg.TEST.EVAL_PERIOD
    hooks: list[HookBase] = []
    if comm.is_main_process():
        # Before the checkpoint, so that no step before it is missing in the file after a resume.
        hooks.append(Writers([MetricsFile(folder / METRICS, start)], 1))
        hooks.append(Writers([ProgressLine(start, cfg.SOLVER.MAX_ITER)], cfg.SOLVER.LOG_PERIOD))
    hooks.append(Checkpoints(cfg.SOLVER.CHECKPOINT_PERIOD))
    if evaluate is not None:
        hooks.append(Evaluation(period, evaluate))
    if comm.is_main_process():
        boards: list[EventWriter] = [
            TensorboardXWriter(str(folder), window_size=1, purge_step=start)
        ]
        if cfg.SOLVER.WANDB:
            boards.append(WandbWriter(cfg))
        hooks.append(Writers(boards, cfg.SOLVER.LOG_PERIOD))
        if period:
            hooks.append(SamplePictures(period, folder / "samples"))
        hooks.append(Curves(folder))
    return hooks


class Writers(HookBase):
    """Lets writers read the event storage every ``period`` steps."""

    trainer: Trainer

    def __init__(self, writers: Sequence[EventWriter], period: int) -> None:
        self.writers, self.period = writers, period

    def after_step(self) -> None:
        if self.trainer.is_due(self.period):
            for writer in self.writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self.writers:
            writer.close()


class MetricsFile(EventWriter):
    """One line of JSON per step; what is there from ``start`` on is dropped first."""

    def __init__(self, path: Path, start: int) -> None:
        kept = [line for line in read_metrics(path) if line["iteration"] < start]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")

    def write(self) -> None:
        storage = get_event_storage()
        self.append(storage.iter, _latest(storage))

    def append(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds the line of a step."""
        self.file.write(json.dumps({**numbers, "iteration": step}, sort_keys=True) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _latest(storage: EventStorage) -> dict[str, float]:
    """The scalars of this very step."""
    return {name: value for name, (value, step) in storage.latest().items() if step == storage.iter}


class ProgressLine(EventWriter):
    """Logs one line: step, losses, rate, samples per second, share of waiting for data, ETA."""

    def __init__(self, start: int, max_iter: int) -> None:
        self.last, self.max_iter = start, max_iter

    def write(self) -> None:
        storage = get_event_storage()
        done = storage.iter + 1
        steps, self.last = done - self.last, done
        mean = {
            name: storage.history(name).avg(steps)
            for name in ("total_loss", "time", "data_time", "samples")
        }
        eta = timedelta(seconds=int(mean["time"] * (self.max_iter - done)))
        logger.info(
            "step %d/%d  loss %.4g  lr %.2e  %.2f samples/s  %.1f%% waiting for data  eta %s",
            done,
            self.max_iter,
            mean["total_loss"],
            storage.history("lr").latest(),
            mean["samples"] / mean["time"],
            100 * mean["data_time"] / mean["time"],
            eta,
        )


class WandbWriter(EventWriter):
    """The scalars of each written step to Weights & Biases."""

    def __init__(self, cfg: CfgNode) -> None:
        self.run = require("wandb").init(
            project=cfg.SOLVER.WANDB, dir=cfg.OUTPUT_DIR, name=Path(cfg.OUTPUT_DIR).name, config=cfg
        )

    def write(self) -> None:
        storage = get_event_storage()
        self.run.log(_latest(storage), step=storage.iter)

    def close(self) -> None:
        self.run.finish()


class Checkpoints(HookBase):
    """Saves every ``period`` steps and at the end; what is logged before it is of whole steps."""

    trainer: Trainer

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        self.trainer.interruption.end_step()
        if self.trainer.is_due(self.period):
            self.trainer.save()


class Evaluation(HookBase):
    """Evaluates every ``period`` steps and at the end, with the averaged weights if there are.

    The numbers go to ``evaluation.json``, one line each time, and to the boards. At the end their
    cards name the weights that become ``model_final.pth``.
    """

    trainer: Trainer

    def __init__(self, period: int, evaluate: Evaluate) -> None:
        self.period, self.evaluate = period, evaluate
        self.file: MetricsFile | None = None

    def before_train(self) -> None:
        trainer = self.trainer
        last = trainer.max_iter - 1
        if comm.is_main_process():
            path = trainer.folder / EVALUATIONS
            self.file = MetricsFile(path, min(trainer.start_iter, last))
        if trainer.start_iter > last:  # the run was killed while it evaluated
            self._evaluate(last)

    def after_step(self) -> None:
        if self.trainer.is_due(self.period):
            self._evaluate(self.trainer.iter)

    def _evaluate(self, step: int) -> None:
        trainer = self.trainer
        weights = trainer.save_pending() if step + 1 == trainer.max_iter else None
        with trainer.evaluated_weights():
            numbers = self.evaluate(weights)
        trainer.shell.train()
        if self.file is not None:
            self.file.append(step, numbers)
            trainer.storage.put_scalars(**numbers, smoothing_hint=False)
        comm.synchronize()

    def after_train(self) -> None:
        if self.file is not None:
            self.file.close()


class Curves(HookBase):
    """Draws the losses and the learning rate at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_train(self) -> None:
        lines = read_metrics(self.folder / METRICS)
        if lines:
            plot_curves(lines, self.folder / "curves.png")


def plot_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Losses per dataset, losses by kind and learning rate over the steps, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    names = sorted({name for line in lines for name in line})
    groups = {
        "total loss by dataset": [n for n in names if n.startswith("total_loss/")],
        "losses": [n for n in names if n.startswith("loss_")],
        "learning rate": ["lr"],
    }
    figure = Figure(figsize=(9, 10), layout="constrained")
    for axes, (title, members) in zip(figure.subplots(len(groups), 1), groups.items(), strict=True):
        for name in members:
            points = [(line["iteration"], line[name]) for line in lines if name in line]
            steps, values = np.array(points, dtype=float).T
            label = name.removeprefix("total_loss/")
            marker = "o" if len(points) == 1 else None  # a line needs two
            axes.plot(steps, _smooth(values), label=label, linewidth=1, marker=marker)
        axes.set(title=title, xlabel="step", yscale="log")
        axes.grid(alpha=0.3, which="both")
        if members and title != "learning rate":
            plain = FuncFormatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_major_formatter(plain)
            axes.yaxis.set_minor_formatter(
                plain if _is_narrow(axes.get_ylim()) else NullFormatter()
            )
        if title != "learning rate" and members:
            axes.legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _is_narrow(limits: tuple[float, float]) -> bool:
    """Whether a logarithmic axis shows too few powers of ten to be read by them alone."""
    return limits[1] < 30 * limits[0]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a hundredth of the curve; as long as the curve."""
    width = max(math.ceil(len(values) / 100), 1)
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    smoothed: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return smoothed
