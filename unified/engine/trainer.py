"""One training step, and the loop around it that can be stopped anywhere and goes on exactly.

What a step computes follows from the weights, the position in the stream of batches and the number
of the step: all random generators are seeded by that number before every forward pass, and by the
share of the batch that it sees. So a run that is resumed, or divided over other processes, draws
the same numbers.
"""

from __future__ import annotations

import logging
import random
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unified.checkpoint import write_weights
from unified.data.loader import TrainLoader
from unified.data.samples import Sample
from unified.devices import pick_device
from unified.engine.checkpointing import (
    FINAL,
    PENDING,
    load_initial_weights,
    read_last_checkpoint,
    remove_partial_files,
    save_checkpoint,
)
from unified.engine.interruption import Interruption
from unified.engine.meta_arch import SegmenterShell
from unified.engine.optimizer import (
    average_weights,
    build_optimizer,
    build_scheduler,
    check_clipping,
    clip_gradients,
    drop_zero_gradients,
    holding,
)
from unified.engine.system import system
from unified.errors import ConfigError, UnifiedError

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingError(UnifiedError):
    """Training cannot go on: a loss is not a number."""


class Trainer(TrainerBase):
    """Trains the model of a configuration; what happens around a step is in its hooks.

    Attributes:
        model: the shell, wrapped for distributed training where there are several processes.
        batch: samples of the latest step of this process.
        interruption: what Ctrl-C and SIGTERM ask for.
    """

    def __init__(self, cfg: CfgNode, loader: TrainLoader, *, resume: bool = False) -> None:
        """Builds everything; weights come from ``MODEL.WEIGHTS``.

        Args:
            resume: go on from the last checkpoint of ``OUTPUT_DIR`` instead, if there is one.

        Raises:
            ConfigError: a value does not fit, or the checkpoint belongs to other datasets, another
                seed or another model.
            CheckpointError: the weights are missing, damaged or do not fit.
        """
        super().__init__()
        check_clipping(cfg)
        if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE not in DTYPES:
            raise ConfigError(
                f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE!r}: choose one of {sorted(DTYPES)}"
            )
        self.cfg = cfg
        self.loader = loader
        self.folder = Path(cfg.OUTPUT_DIR)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.device = pick_device(cfg.MODEL.DEVICE)
        seed_everything(cfg.SEED)
        builder = system(cfg.MODEL.META_ARCHITECTURE)
        self._segmenter: nn.Module = builder.build(cfg)
        state = read_last_checkpoint(self.folder) if resume else None
        if state is None:
            load_initial_weights(self._segmenter, cfg)
        else:  # it holds the weights, but for example no vocabulary
            builder.load_parts(self._segmenter, cfg, state["model"])
        self.shell = SegmenterShell(self._segmenter, builder.supervision(cfg))
        self.shell.to(self.device).train()
        self.model = distribute(self.shell)
        self.optimizer = build_optimizer(cfg, self.segmenter, builder.parameter_group)
        self.scheduler = build_scheduler(cfg, self.optimizer)
        half = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        decay = cfg.SOLVER.EMA_DECAY
        self.average = average_weights(self.segmenter, decay) if decay else None
        self.batch: Sequence[Sample] = ()
        self.interruption = Interruption(decides=comm.is_main_process())
        self._stream: Iterator[list[Sample]] = iter(())
        if state is not None:
            self._restore(state)

    @property
    def segmenter(self) -> nn.Module:
        """The model itself; its keys are those of checkpoints."""
        return self._segmenter

    def _restore(self, state: dict[str, Any]) -> None:
        """Puts everything where ``checkpoint`` took it from."""
        try:
            self.segmenter.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"the checkpoint in {self.folder} is of another model or optimiser: resume with "
                "the configuration it was started with, or choose another OUTPUT_DIR"
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(state.get("average", state["model"]))
            self.average.n_averaged.fill_(state["iteration"] + 1)
        self.loader.load_state_dict(state["loader"])
        self.start_iter = self.iter = state["iteration"] + 1

    @property
    def is_done(self) -> bool:
        """Whether no step is left and the final weights are there, evaluated."""
        return self.start_iter >= self.max_iter and (self.folder / FINAL).exists()

    def is_due(self, period: int) -> bool:
        """True after every ``period`` steps and after the last one."""
        done = self.iter + 1
        return bool(period > 0 and done % period == 0) or done == self.max_iter

    def checkpoint(self) -> dict[str, Any]:
        """Everything that the following steps depend on."""
        state = {
            "model": self.segmenter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "iteration": self.iter,
        }
        if self.average is not None:
            state["average"] = self.average.module.state_dict()
        return state

    def save(self) -> None:
        """Writes a checkpoint; only the first process does."""
        if not comm.is_main_process():
            return
        if self.iter + 1 == self.max_iter:
            (self.folder / FINAL).unlink(missing_ok=True)  # of a shorter run
        save_checkpoint(self.folder, self.checkpoint())

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Context in which the model holds the averaged weights, if there are any."""
        if self.average is None:
            return nullcontext()
        return holding(self.segmenter, self.average.module.state_dict())

    def save_pending(self) -> Path:
        """Writes the weights that become ``model_final.pth``, and returns where.

        They get that name only after they have been evaluated, so that a run that is killed while
        it evaluates is not taken for done.
        """
        path = self.folder / PENDING
        if comm.is_main_process():
            with self.evaluated_weights():
                write_weights(path, self.segmenter.state_dict())
        return path

    def train(self) -> None:
        """Runs the remaining steps, evaluates, then names the weights ``model_final.pth``.

        After Ctrl-C or SIGTERM the last whole step is saved.

        Raises:
            TrainingError: a loss became NaN or infinite.
            InputError: too many samples are broken.
        """
        if comm.is_main_process():
            remove_partial_files(self.folder)
        self.iter = self.start_iter
        self._stream = iter(self.loader)
        stop = self.interruption
        with stop.heeded(), EventStorage(self.start_iter) as self.storage:
            self.before_train()
            try:
                for number in range(self.start_iter, self.max_iter):
                    stop.begin_step()
                    self.iter = number
                    self.before_step()
                    self.run_step()
                    self.after_step()  # a hook ends the step
            except KeyboardInterrupt:
                if not stop.in_step:
                    self.save()
                    logger.info("stopped: %d steps are done and saved", self.iter + 1)
                raise
            finally:
                self.after_train()  # the curves are of use after an error too
        if comm.is_main_process():
            pending = self.folder / PENDING
            if not pending.exists():  # nothing was evaluated
                self.save_pending()
            pending.replace(self.folder / FINAL)

    def run_step(self) -> None:
        """One optimiser step on the next batch, in ``ACCUMULATE`` parts."""
        start = time.perf_counter()
        self.batch = next(self._stream)
        waited = time.perf_counter() - start
        parts = split(self.batch, self.cfg.SOLVER.ACCUMULATE)
        terms: dict[str, float] = {}
        for number, part in enumerate(parts):
            seed_everything(self.cfg.SEED, self.iter, comm.get_rank() * len(parts) + number)
            last = number == len(parts) - 1
            with nullcontext() if last else self._without_exchange():
                with self._autocast():
                    losses = self.model(part)
                total = torch.stack([loss.float() for loss in losses.values()]).sum()
                for name, value in self._finite(losses, total, part).items():
                    terms[name] = terms.get(name, 0.0) + value / len(parts)
                if last:
                    total = total + self._nothing()
                self.scaler.scale(total / len(parts)).backward()
        self.scaler.unscale_(self.optimizer)
        drop_zero_gradients(self.segmenter)
        clip_gradients(self.cfg, self.segmenter)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        terms["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        with warnings.catch_warnings():
            # The scaler may skip the very first step, which is no mistake; the schedule goes on.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.segmenter)
        self._record(terms, waited, time.perf_counter() - start)

    def _nothing(self) -> Tensor | float:
        """A zero that every trainable parameter is part of, in distributed training.

        A batch without a sentence does not touch the text encoder, but processes exchange the
        gradients of all parameters.
        """
        if not isinstance(self.model, DistributedDataParallel):
            return 0.0
        parameters = [p for p in self.segmenter.parameters() if p.requires_grad]
        return torch.stack([p.flatten()[0] for p in parameters]).sum() * 0

    def _finite(
        self, losses: dict[str, Tensor], total: Tensor, part: Sequence[Sample]
    ) -> dict[str, float]:
        """The losses as numbers, summed over layers.

        Raises:
            TrainingError: one is not finite.
        """
        values = torch.stack([total, *(loss.float() for loss in losses.values())]).detach().cpu()
        named = dict(zip(("total_loss", *losses), values.tolist(), strict=True))
        if not torch.isfinite(values).all():
            bad = [name for name, value in named.items() if not np.isfinite(value)]
            samples = ", ".join(str(sample["name"]) for sample in part)
            raise TrainingError(
                f"step {self.iter}: {', '.join(bad[:4])} became NaN or infinite on {samples}. Look "
                "at these samples, or lower SOLVER.BASE_LR, and continue with --resume"
            )
        terms: dict[str, float] = {}
        for name, value in named.items():
            curve = re.sub(r"_\d+$", "", name)  # layers of a decoder make one curve
            terms[curve] = terms.get(curve, 0.0) + value
        return terms

    def _record(self, terms: dict[str, float], waited: float, seconds: float) -> None:
        """Means over all processes into the event storage; which of them are to stop goes along."""
        terms[f"total_loss/{self.batch[0]['dataset']}"] = terms["total_loss"]
        own = terms | {"samples": float(len(self.batch))}
        gathered = comm.gather((own, self.interruption.asked))
        if not comm.is_main_process():
            return
        shares = [share for share, _ in gathered]
        for asked in (asked for _, asked in gathered if asked is not None):
            self.interruption.ask(self.interruption.asked or asked)
        for name in dict.fromkeys(name for share in shares for name in share if name != "samples"):
            values = [share[name] for share in shares if name in share]
            self.storage.put_scalar(name, sum(values) / len(values), smoothing_hint=False)
        self.storage.put_scalar("time", seconds, smoothing_hint=False)
        self.storage.put_scalar("data_time", waited, smoothing_hint=False)
        self.storage.put_scalar(
            "samples", sum(share["samples"] for share in shares), smoothing_hint=False
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        amp = self.cfg.SOLVER.AMP
        if not amp.ENABLED:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[amp.DTYPE])

    def _without_exchange(self) -> AbstractContextManager[Any]:
        """Gradients of all but the last part of a batch stay in this process."""
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()


def split(batch: Sequence[Sample], num: int) -> list[Sequence[Sample]]:
    """The batch in ``num`` equal parts, in order.

    Raises:
        ConfigError: it cannot be divided.
    """
    size, rest = divmod(len(batch), num)
    if rest or not size:
        raise ConfigError(
            f"the batch of a process has {len(batch)} samples of {batch[0]['dataset']}: "
            f"SOLVER.ACCUMULATE {num} does not divide it"
        )
    return [batch[index * size : (index + 1) * size] for index in range(num)]


def distribute(shell: nn.Module) -> nn.Module:
    """The shell with its gradients averaged over processes, if there are several."""
    if comm.get_world_size() == 1:
        return shell
    device = next(shell.parameters()).device
    return DistributedDataParallel(
        shell, device_ids=None if device.type == "cpu" else [device.index], broadcast_buffers=True
    )


def seed_everything(*numbers: int) -> None:
    """Seeds the generators of torch (all devices), numpy and Python with a mix of numbers."""
    seeds = np.random.SeedSequence(numbers).generate_state(3)
    torch.manual_seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    random.seed(int(seeds[2]))
