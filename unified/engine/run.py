"""A whole run of one process: set up, train, evaluate."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from unified.devices import pick_device
from unified.engine.checkpointing import POINTER, find_weights
from unified.engine.hooks import default_hooks
from unified.engine.missing import check_all_there
from unified.engine.models import attach_chooser, load_checkpoint
from unified.engine.system import system
from unified.engine.testing import check_test_sets, evaluate
from unified.engine.train_loader import build_train_loader
from unified.engine.trainer import Trainer
from unified.errors import ConfigError
from unified.evaluation.report import counted
from unified.files import atomic_path, file_sha256

logger = logging.getLogger(__name__)


def run_process(cfg: CfgNode, resume: bool, eval_only: bool) -> None:
    """What every process of a run does."""
    with run_folder(cfg):
        if eval_only:
            evaluate_weights(cfg)
        else:
            train(cfg, resume=resume)


@contextmanager
def run_folder(cfg: CfgNode) -> Iterator[None]:
    """Within the block, logs go to the terminal and to ``OUTPUT_DIR/log.txt``.

    The configuration is kept beside it. Processes other than the first have a log of their own.
    """
    folder, rank = Path(cfg.OUTPUT_DIR), comm.get_rank()
    folder.mkdir(parents=True, exist_ok=True)
    name = "log.txt" if rank == 0 else f"log.txt.rank{rank}"
    handlers: list[logging.Handler] = [logging.FileHandler(folder / name, encoding="utf-8")]
    if rank == 0:
        handlers.append(_Terminal())
        with atomic_path(folder / "config.yaml") as path:
            path.write_text(cfg.dump(), encoding="utf-8")
    loggers = [logging.getLogger(name) for name in ("unified", "projects")]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%m/%d %H:%M:%S"))
        for each in loggers:
            each.addHandler(handler)
            each.setLevel(logging.INFO)
    try:
        logger.info("%s, output in %s", counted(comm.get_world_size(), "process"), folder)
        yield
    finally:
        for handler in handlers:
            for each in loggers:
                each.removeHandler(handler)
            handler.close()


class _Terminal(logging.Handler):
    """Writes to what is the standard output at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(self.format(record) + "\n")
        sys.stdout.flush()


def train(cfg: CfgNode, *, resume: bool) -> Trainer:
    """Trains to ``SOLVER.MAX_ITER``; with ``resume`` from the last checkpoint, if there is one.

    Raises:
        UnifiedError: something is missing or wrong; the message says what to do.
    """
    started = (Path(cfg.OUTPUT_DIR) / POINTER).exists()
    if started and not resume:
        raise ConfigError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a training run: continue it with --resume, or "
            "choose another folder"
        )
    check_all_there(cfg, resume=started)
    check_test_sets(cfg)
    trainer = Trainer(cfg, build_train_loader(cfg), resume=resume)
    if started:
        logger.info("resumed at step %d", trainer.start_iter)
    elif resume:
        logger.info("%s holds no checkpoint yet: training starts at step 0", cfg.OUTPUT_DIR)
    if trainer.is_done:
        logger.info("nothing is left to do: the final weights are there")
        return trainer
    score = partial(evaluate, cfg, trainer.segmenter) if cfg.DATASETS.TEST else None
    trainer.register_hooks(default_hooks(cfg, trainer.start_iter, score))
    trainer.train()
    return trainer


def evaluate_weights(cfg: CfgNode) -> dict[str, float]:
    """Evaluates ``MODEL.WEIGHTS`` on the sets of ``DATASETS.TEST``; nothing may be missing in them.

    Raises:
        UnifiedError: weights or sets are missing or wrong; the message says what to do.
    """
    path = find_weights(cfg)
    if path is None:
        raise ConfigError("--eval-only needs trained weights: add MODEL.WEIGHTS FILE")
    if not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only needs test sets: add DATASETS.TEST \"('NAME',)\"")
    check_test_sets(cfg)
    model = system(cfg.MODEL.META_ARCHITECTURE).build(cfg)
    load_checkpoint(model, cfg, path)
    model.to(pick_device(cfg.MODEL.DEVICE)).eval()
    attach_chooser(model, cfg, file_sha256(path))
    return evaluate(cfg, model, path)
