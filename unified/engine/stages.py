"""Several training runs in a row, each from the weights of the one before."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.commands import Terminated
from unified.engine.checkpointing import FINAL, POINTER
from unified.engine.config import check_pairs, load_config, read_runs
from unified.errors import ConfigError
from unified.layout import ROOT

logger = logging.getLogger(__name__)

TRAIN = ROOT / "tools" / "train_net.py"
KEYS = {"OUTPUT_DIR", "STAGES"}
STAGE_KEYS = {"NAME", "CONFIG", "OPTIONS"}


@dataclass(frozen=True)
class Stage:
    """One run of a chain.

    Attributes:
        name: of its folder.
        config: yaml file.
        options: ``KEY VALUE`` pairs that come last, after those that the chain sets.
        folder: its ``OUTPUT_DIR``.
    """

    name: str
    config: Path
    options: tuple[str, ...]
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether its weights are there to be handed on."""
        return (self.folder / FINAL).exists()


def read_stages(path: str | Path, options: Sequence[str] = ()) -> list[Stage]:
    """The chain that a yaml file describes, checked before anything runs.

    Args:
        path: ``OUTPUT_DIR`` and ``STAGES``, a list of ``NAME``, ``CONFIG`` (relative to the file)
            and optionally ``OPTIONS``, a map of config keys to values.
        options: ``KEY VALUE`` pairs for all stages; ``OUTPUT_DIR`` is that of the chain.

    Raises:
        ConfigError: the file is missing or wrong, or the config of a stage is.
    """
    path, content = read_runs(path, "stages", KEYS, "STAGES")
    check_pairs(options)
    pairs = dict(zip(options[::2], options[1::2], strict=True))
    root = Path(pairs.pop("OUTPUT_DIR", content["OUTPUT_DIR"]))
    stages = [_stage(path, root, entry, pairs) for entry in content["STAGES"]]
    if len({stage.name for stage in stages}) < len(stages):
        raise ConfigError(f"{path}: two stages have the same NAME")
    for stage in stages:
        load_config(stage.config, stage.options)
    return stages


def _stage(path: Path, root: Path, entry: Any, pairs: dict[str, str]) -> Stage:
    if not isinstance(entry, dict) or not {"NAME", "CONFIG"} <= set(entry) <= STAGE_KEYS:
        raise ConfigError(f"{path}: a stage has NAME, CONFIG and perhaps OPTIONS, not {entry}")
    own = {key: str(value) for key, value in (entry.get("OPTIONS") or {}).items()}
    merged = {**own, **pairs}
    return Stage(
        name=entry["NAME"],
        config=path.parent / entry["CONFIG"],
        options=tuple(part for pair in merged.items() for part in pair),
        folder=root / entry["NAME"],
    )


def run_stages(stages: Sequence[Stage], arguments: Sequence[str] = ()) -> int:
    """Runs what is not done yet, each stage in processes of its own; returns the exit code.

    A stage that was stopped goes on from its last checkpoint. The first stage starts from the
    weights that its config names.

    Args:
        arguments: for ``tools/train_net.py``, such as ``--num-gpus 8``.
    """
    weights: Path | None = None
    for number, stage in enumerate(stages, 1):
        label = f"stage {number}/{len(stages)} {stage.name}"
        if stage.is_done:
            logger.info("%s: done, weights in %s", label, stage.folder / FINAL)
            weights = stage.folder / FINAL
            continue
        resumes = (stage.folder / POINTER).exists()
        logger.info("%s: %s", label, "goes on" if resumes else f"starts from {weights or 'config'}")
        code = run_training(_command(stage, weights, arguments))
        if code:
            logger.error("%s ended with code %d: run the same command to go on", label, code)
            return code
        weights = stage.folder / FINAL
    return 0


def run_training(command: Sequence[str]) -> int:
    """The exit code of a command that trains; it ends its step when this process is to stop.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the command has ended.
    """
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):  # Ctrl-C reached it too
            process.terminate()
        process.wait()
        raise


def _command(stage: Stage, weights: Path | None, arguments: Sequence[str]) -> list[str]:
    command = [sys.executable, str(TRAIN), "--config-file", str(stage.config), "--resume"]
    command += [*arguments, "OUTPUT_DIR", str(stage.folder)]
    if weights is not None:
        command += ["MODEL.WEIGHTS", str(weights)]
    return [*command, *stage.options]
