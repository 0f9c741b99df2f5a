"""A whole run of one process: set up, train, evaluate."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from unified.engine.checkpointing import POINTER
from unified.engine.hooks import default_hooks
from unified.engine.sources import build_train_loader
from unified.engine.trainer import Trainer
from unified.errors import ConfigError
from unified.files import atomic_path

logger = logging.getLogger(__name__)


def set_up(cfg: CfgNode) -> None:
    """Logs go to the terminal and to ``OUTPUT_DIR/log.txt``; the configuration is kept beside."""
    folder = Path(cfg.OUTPUT_DIR)
    for name in ("unified", "projects", "fvcore"):
        setup_logger(str(folder), distributed_rank=comm.get_rank(), name=name, color=False)
    if comm.is_main_process():
        with atomic_path(folder / "config.yaml") as path:
            path.write_text(cfg.dump(), encoding="utf-8")
    logger.info("%d processes, output in %s", comm.get_world_size(), folder)


def train(cfg: CfgNode, *, resume: bool) -> Trainer:
    """Trains to ``SOLVER.MAX_ITER``; with ``resume`` from the last checkpoint, if there is one.

    Raises:
        UnifiedError: something is missing or wrong; the message says what to do.
    """
    if not resume and (Path(cfg.OUTPUT_DIR) / POINTER).exists():
        raise ConfigError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a training run: continue it with --resume, or "
            "choose another folder"
        )
    loader = build_train_loader(cfg)
    trainer = Trainer(cfg, loader)
    if resume and trainer.resume():
        logger.info("resumed at step %d", trainer.start_iter)
    trainer.register_hooks(default_hooks(cfg, trainer.start_iter, None))
    trainer.train()
    return trainer
