"""A chain of stages: weights handed on, classes re-initialised, going on where it stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.toy.system import CONFIG
from unified.checkpoint import read_weights
from unified.engine.stages import read_stages
from unified.errors import ConfigError

ROOT = Path(__file__).parents[3]


def load_tool() -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location("train_stages", ROOT / "tools/train_stages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write_chain(folder: Path) -> Path:
    """Detection with 80 classes and no references, then few-shot and video objects."""
    detector = {
        "DATASETS.TRAIN": ["coco_2017_train"],
        "MODEL.TOY.NUM_CLASSES": 80,
        "MODEL.TOY.KINDS": [],
        "SOLVER.MAX_ITER": 2,
    }
    stages = [
        {"NAME": "detection", "CONFIG": str(CONFIG), "OPTIONS": detector},
        {"NAME": "joint", "CONFIG": str(CONFIG), "OPTIONS": {"SOLVER.MAX_ITER": 3}},
    ]
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump({"OUTPUT_DIR": str(folder / "chain"), "STAGES": stages}))
    return path


def test_a_chain_hands_its_weights_on_and_goes_on_where_it_stopped(
    options: list[str], tmp_path: Path
) -> None:
    path = write_chain(tmp_path)
    main = load_tool()
    assert main(["--stages", str(path), "SOLVER.BASE_LR", "0.0"]) == 0
    chain = tmp_path / "chain"
    first = read_weights(chain / "detection/model_final.pth")
    second = read_weights(chain / "joint/model_final.pth")
    # Without a learning rate the weights of the second stage are those of the first.
    shared = [k for k in first if k in second and "class_embed" not in k]
    assert len(shared) > 20 and all(torch.equal(first[k], second[k]) for k in shared)
    assert first["head.class_embed.weight"].shape[0] == 80
    assert second["head.class_embed.weight"].shape[0] == 1
    assert "was trained on other classes" in (chain / "joint/log.txt").read_text()

    # As if it had been stopped after two steps of the second stage.
    (chain / "joint/model_final.pth").unlink()
    detection = (chain / "detection/log.txt").stat().st_mtime_ns
    assert main(["--stages", str(path), "SOLVER.BASE_LR", "0.0", "SOLVER.MAX_ITER", "5"]) == 0
    assert (chain / "detection/log.txt").stat().st_mtime_ns == detection
    assert "resumed at step 3" in (chain / "joint/log.txt").read_text()
    lines = (chain / "joint/metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
    ],
)
def test_a_stopped_chain_stops_its_training_which_saves_its_steps(
    options: list[str], tmp_path: Path, number: int, code: int
) -> None:
    stage = {"NAME": "only", "CONFIG": str(CONFIG), "OPTIONS": {"SOLVER.MAX_ITER": 100000}}
    chain = tmp_path / "stages.yaml"
    chain.write_text(yaml.safe_dump({"OUTPUT_DIR": str(tmp_path / "chain"), "STAGES": [stage]}))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/train_stages.py"), "--stages", str(chain)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Below a shell that runs in the background, Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = tmp_path / "chain/only/metrics.json"
    while not metrics.exists() and process.poll() is None:
        time.sleep(0.2)
    if number == signal.SIGINT:  # a terminal sends it to all
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, messages = process.communicate(timeout=240)
    assert process.returncode == code and "stopped: run the same command to go on" in messages
    steps = len(metrics.read_text().splitlines())
    saved = (tmp_path / "chain/only/last_checkpoint").read_text()
    assert saved == f"model_{steps - 1:07d}.pth"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("STAGES: [", "is no yaml"),
        ("OUTPUT_DIR: x\nSTAGES: []", "one or more entries as STAGES"),
        ("OUTPUT_DIR: x\nSTAGES: [{NAME: a}]", "a stage has NAME, CONFIG"),
        ("OUTPUT_DIR: x\nSTAGES: [{NAME: a, CONFIG: gone.yaml}]", "gone.yaml does not exist"),
    ],
)
def test_a_wrong_chain_is_refused_before_it_runs(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "stages.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_stages(tmp_path / "stages.yaml")
