"""Checkpoints from which training goes on exactly, and the weights it starts from.

``OUTPUT_DIR`` holds ``model_0004999.pth`` (everything), ``last_checkpoint`` (its name, written
after it) and at the end ``model_final.pth`` (weights alone). All are renamed into place when they
are complete, so that a run that is killed at any moment leaves a checkpoint that can be used.
Random numbers need no state: every step seeds them by its number.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from unified.engine.models import load_checkpoint
from unified.errors import CheckpointError
from unified.files import atomic_path
from unified.weights import WEIGHTS, resolve

logger = logging.getLogger(__name__)

FINAL = "model_final.pth"
PENDING = "model_pending.pth"  # becomes the final one when it has been evaluated
POINTER = "last_checkpoint"


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> Path:
    """Writes the checkpoint after step ``state["iteration"]``, then points to it.

    The one before is kept in case the disk spoils this one; older ones are deleted.
    """
    path = folder / f"model_{state['iteration']:07d}.pth"
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)
    with atomic_path(folder / POINTER) as temporary:
        temporary.write_text(path.name, encoding="utf-8")
    older = sorted(old for old in folder.glob("model_[0-9]*.pth") if old.name < path.name)
    for old in older[:-1]:
        old.unlink()
    return path


def read_last_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The checkpoint that ``last_checkpoint`` names, on the CPU; None if there is none yet.

    Raises:
        CheckpointError: it is missing, damaged or was not written by this trainer.
    """
    pointer = folder / POINTER
    if not pointer.exists():
        return None
    path = folder / pointer.read_text(encoding="utf-8").strip()
    if not path.is_file():
        raise CheckpointError(
            f"{pointer} names {path.name}, which is not there: put it back, or write the name of "
            "another checkpoint of that folder into the file"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path} is damaged: write the name of an earlier checkpoint into {pointer}"
        ) from error
    if not isinstance(state, dict) or "iteration" not in state or "optimizer" not in state:
        raise CheckpointError(f"{path} is no training checkpoint: start without --resume")
    return state


def remove_partial_files(folder: Path) -> None:
    """Deletes what killed runs left half-written or not evaluated."""
    for path in (*folder.glob(".*.partial*"), folder / PENDING):
        path.unlink(missing_ok=True)


def find_weights(cfg: CfgNode) -> Path | None:
    """The file that ``MODEL.WEIGHTS`` names, by path or registry name; None if it is empty.

    Raises:
        CheckpointError: it is not on this machine; says where to get it.
    """
    wanted = cfg.MODEL.WEIGHTS
    if not wanted:
        return None
    if wanted in WEIGHTS or Path(wanted).is_file():
        return resolve(wanted)
    raise CheckpointError(
        f"MODEL.WEIGHTS {wanted} does not exist: give a file, a name that "
        "`python tools/download_weights.py --list` shows, or '' to start from the backbone"
    )


def load_initial_weights(model: nn.Module, cfg: CfgNode) -> None:
    """Loads ``MODEL.WEIGHTS`` and the parts that the config takes from elsewhere.

    Whole parts that the file does not hold keep their initial values, and class predictors of
    another label set too.

    Raises:
        CheckpointError: the weights are missing or belong to another model.
    """
    path = find_weights(cfg)
    report = load_checkpoint(model, cfg, path, to_train=True)
    if report is None:
        logger.info("no MODEL.WEIGHTS: only the parts that the config names are pre-trained")
        return
    if report.mismatched:
        logger.warning(
            "%s was trained on other classes: %s start from initial values",
            path,
            ", ".join(report.mismatched),
        )
    logger.info("%d entries loaded from %s", report.loaded, path)
