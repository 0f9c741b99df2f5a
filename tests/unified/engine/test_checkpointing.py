"""Checkpoints that survive a kill, and initial weights of another stage."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.toy.system import CONFIG
from unified.checkpoint import write_weights
from unified.engine.checkpointing import (
    load_initial_weights,
    read_last_checkpoint,
    remove_partial_files,
    save_checkpoint,
)
from unified.engine.config import load_config
from unified.engine.system import system
from unified.errors import CheckpointError

ROOT = Path(__file__).parents[3]

KILLED_WHILE_WRITING = """
import os, signal, sys, torch
from pathlib import Path
from unified.engine.checkpointing import save_checkpoint

state = {"iteration": 9, "optimizer": {}, "model": {"w": torch.ones(1000)}}
save_checkpoint(Path(sys.argv[1]), state)
write = torch.save

def half(content, path):
    write(content, path)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = half
save_checkpoint(Path(sys.argv[1]), {**state, "iteration": 19})
"""


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLED_WHILE_WRITING, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list(tmp_path.glob(".*partial*"))) == 1
    state = read_last_checkpoint(tmp_path)
    assert state is not None and state["iteration"] == 9
    assert torch.equal(state["model"]["w"], torch.ones(1000))
    remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last_checkpoint", "model_0000009.pth"}


def test_the_last_two_checkpoints_are_kept_and_newer_ones_are_not_touched(tmp_path: Path) -> None:
    for step in (90, 3, 5, 7):
        save_checkpoint(tmp_path, {"iteration": step, "optimizer": {}})
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"model_0000005.pth", "model_0000007.pth", "model_0000090.pth"}
    state = read_last_checkpoint(tmp_path)
    assert state is not None and state["iteration"] == 7


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert read_last_checkpoint(tmp_path) is None


def test_wrong_checkpoints_say_what_to_do(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, {"iteration": 4, "optimizer": {}})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="is damaged: write the name of an earlier"):
        read_last_checkpoint(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model_0000004\.pth, which is not there"):
        read_last_checkpoint(tmp_path)
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        read_last_checkpoint(tmp_path)


def test_weights_of_the_stage_before_fill_what_they_can(
    options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A detector of 7 classes starts a class-agnostic model with more parts."""
    detector = ["MODEL.TOY.NUM_CLASSES", "7", "MODEL.TOY.KINDS", "()"]
    first = system("Toy").build(load_config(CONFIG, [*options, *detector]))
    write_weights(tmp_path / "first.pth", first.state_dict())
    cfg = load_config(CONFIG, [*options, "MODEL.WEIGHTS", str(tmp_path / "first.pth")])
    second = system("Toy").build(cfg)
    fresh = {name: value.clone() for name, value in second.state_dict().items()}
    with caplog.at_level(logging.INFO):
        load_initial_weights(second, cfg)
    given = first.state_dict()
    for name, value in second.state_dict().items():
        known = name in given and "class_embed" not in name
        assert torch.equal(value, given[name] if known else fresh[name]), name
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "head.class_embed.weight" in warnings[0]
    assert "has no fusion. text_encoder. mask_encoder.: these parts start fresh" in caplog.text


def test_missing_weights_name_the_command(options: list[str]) -> None:
    cfg = load_config(CONFIG, [*options, "MODEL.WEIGHTS", "nowhere.pth"])
    with pytest.raises(CheckpointError, match=r"nowhere.pth does not exist.*download_weights"):
        load_initial_weights(system("Toy").build(cfg), cfg)
