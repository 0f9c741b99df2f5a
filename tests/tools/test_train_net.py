"""Training from the command line: killed, resumed, in two processes, with a dead process."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unified.data.synthetic.releases import RELEASES
from unified.engine.interruption import Interruption
from unified.files import file_sha256

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests/data/tiny_training.yaml"
TOOL = [sys.executable, "-W", "ignore", str(ROOT / "tools/train_net.py")]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of the tool, with made sets in it."""
    root = tmp_path_factory.mktemp("training_sets")
    for release in ("fss1000", "ytbvos19", "coco", "coco_captions", "davis17"):
        RELEASES[release](root, 4, 0)
    return {**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"}


def command(folder: Path, *options: str, flags: tuple[str, ...] = ()) -> list[str]:
    return [*TOOL, "--config-file", str(CONFIG), *flags, "OUTPUT_DIR", str(folder), *options]


def run(
    arguments: list[str], environment: dict[str, str], *, code: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def losses(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "time" not in k} for line in lines]


def wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.02)


@pytest.mark.timeout(600)  # it trains 120 steps
def test_a_killed_run_goes_on_to_the_last_bit(environment: dict[str, str], tmp_path: Path) -> None:
    """The workers of the loader are ahead of the training when the run is killed."""
    options = ("SOLVER.MAX_ITER", "64", "SOLVER.EMA_DECAY", "0.99", "DATALOADER.NUM_WORKERS", "1")
    run(command(tmp_path / "whole", *options), environment)
    folder, more = tmp_path / "killed", (*options, "SOLVER.CHECKPOINT_PERIOD", "2")
    process = subprocess.Popen(
        command(folder, *more), env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    pointer = folder / "last_checkpoint"
    wait_for(lambda: pointer.exists() and pointer.read_text() >= "model_0000007.pth", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run(command(folder, *more, flags=("--resume",)), environment)
    start = int(re.findall(r"resumed at step (\d+)", (folder / "log.txt").read_text())[-1])
    assert 6 <= start <= 14, "fifty steps follow"
    assert losses(folder) == losses(tmp_path / "whole")


def test_two_processes_are_one_with_the_doubled_batch(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal with dropout too: what a process draws follows from its share of the batch.

    The losses are normalised per process, as in the reference, so the one process takes its batch
    in two halves.
    """
    options = ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "8")
    halves = tmp_path / "halves"
    monkeypatch.setenv("DETECTRON2_DATASETS", environment["DETECTRON2_DATASETS"])
    assert load_tool().main(command(halves, *options, "SOLVER.ACCUMULATE", "2")[4:]) == 0
    run(command(tmp_path / "two", *options, flags=("--num-gpus", "2")), environment)
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
    torchrun += ["--standalone", "--nproc-per-node", "2"]
    run([*torchrun, *command(tmp_path / "torchrun", *options)[3:]], environment)
    expected = [line["total_loss"] for line in losses(halves)]
    assert len(expected) == 8
    for name in ("two", "torchrun"):
        found = [line["total_loss"] for line in losses(tmp_path / name)]
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_dead_process_ends_the_job_with_a_message(
    environment: dict[str, str], tmp_path: Path
) -> None:
    process = start_two(tmp_path, environment)
    try:
        wait_for(lambda: (tmp_path / "metrics.json").exists() and losses(tmp_path), process)
        os.kill(second_process(process.pid), signal.SIGKILL)
        _, messages = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    text = messages.decode()
    assert re.search(r"error: training process 1 \(pid \d+\) was ended by SIGKILL", text), text
    assert "continue with --resume" in text


def test_processes_end_with_the_one_that_started_them(
    environment: dict[str, str], tmp_path: Path
) -> None:
    process = start_two(tmp_path, environment)
    try:
        wait_for(lambda: (tmp_path / "metrics.json").exists() and losses(tmp_path), process)
        second = second_process(process.pid)
        process.kill()
        process.communicate(timeout=240)
        deadline = time.monotonic() + 60
        while alive(second):
            assert time.monotonic() < deadline, "it trains on unseen"
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def start_two(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Two processes that train for long."""
    options = ("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "100000")
    return subprocess.Popen(
        command(folder, *options, flags=("--num-gpus", "2")),
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def second_process(parent: int) -> int:
    """The training process of rank 1: the youngest that multiprocessing spawned."""
    found = []
    for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{number}/cmdline").read_text().split("\0")
        if any("spawn_main" in word for word in words):
            found.append(int(number))
    assert len(found) == 2
    return max(found)


def test_training_evaluates_and_eval_only_repeats_it(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_sets = ("DATASETS.TEST", "('fss-1000-test', 'davis17-val')")
    options = (*test_sets, "TEST.EVAL_PERIOD", "2", "SOLVER.MAX_ITER", "2")
    monkeypatch.setenv("DETECTRON2_DATASETS", environment["DETECTRON2_DATASETS"])
    assert load_tool().main(command(tmp_path / "train", *options)[4:]) == 0
    final = tmp_path / "train/model_final.pth"
    card = json.loads((tmp_path / "train/inference/fss-1000-test/hsnet/summary.json").read_text())
    assert card["card"]["checkpoint_sha256"] == file_sha256(final)
    weights = ("MODEL.WEIGHTS", str(final))
    flags = ("--eval-only", "--num-gpus", "2")
    done = run(command(tmp_path / "eval", *test_sets, *weights, flags=flags), environment)
    assert "FB-IoU" in done.stdout and "J&F-Mean" in done.stdout
    (line,) = (tmp_path / "train/evaluation.json").read_text().splitlines()
    numbers = json.loads(line)
    for name, protocol in (("fss-1000-test", "hsnet"), ("davis17-val", "davis17-semi")):
        path = tmp_path / f"eval/inference/{name}/{protocol}/summary.json"
        for key, value in json.loads(path.read_text())["numbers"].items():
            if value is not None:
                assert numbers[f"{name}/{protocol}/{key}"] == pytest.approx(value, abs=1e-6)
    masks = list((tmp_path / "eval/inference/davis17-val/predictions").rglob("*.png"))
    assert len(masks) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("DATASETS.TRAIN", "('refcoco-unc-train',)"), "tools/data.py check refcoco-unc-train"),
        (("MODEL.WEIGHTS", "uniref_objects365_r50"), "'uniref_objects365_r50' are not on this"),
        (("MODEL.WEIGHTS", "gone.pth"), "MODEL.WEIGHTS gone.pth does not exist"),
        (("SOLVER.NO_SUCH", "1"), "NO_SUCH"),
        (("DATASETS.TRAIN", "('fss-1000-test',)"), "fss-1000-test, which is a test set"),
        (
            ("DATASETS.TRAIN", "('coco-captions-train',)"),
            "coco-captions-train, which has no masks, and",
        ),
        (("DATALOADER.RATIOS", "{'mose-train': 2.0}"), "mose-train"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    options: tuple[str, ...],
    message: str,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", environment["DETECTRON2_DATASETS"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load_tool().main(command(tmp_path / "out", *options)[4:]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "tools/train_net.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)  # processes that start others, on a machine that may be busy
@pytest.mark.parametrize(
    ("number", "told", "flags"),
    [
        (signal.SIGINT, "all", ()),
        (signal.SIGINT, "all", ("--num-gpus", "2")),
        (signal.SIGTERM, "all", ("--num-gpus", "2")),
        (signal.SIGTERM, "the one that was started", ("--num-gpus", "2")),
        (signal.SIGTERM, "the second process", ("--num-gpus", "2")),
    ],
)
def test_a_stopped_run_saves_its_steps_and_prints_the_command_that_goes_on(
    number: signal.Signals,
    told: str,
    flags: tuple[str, ...],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """A terminal and many queueing systems send signals to the workers of the loader too."""
    folder = tmp_path / "run"
    options = ("SOLVER.MAX_ITER", "5000", "DATALOADER.NUM_WORKERS", "1", "SEED", "1")
    process = subprocess.Popen(
        command(folder, *options, "SOLVER.IMS_PER_BATCH", "2", flags=flags),
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = folder / "metrics.json"
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 1, process)
    if told == "all":
        os.killpg(process.pid, number)
    else:
        second = told == "the second process"
        os.kill(second_process(process.pid) if second else process.pid, number)
    lines = process.communicate(timeout=300)[1].splitlines()
    assert process.returncode == 128 + number
    (go_on,) = (line for line in lines if line.startswith("stopped: "))
    data = environment["DETECTRON2_DATASETS"]
    assert go_on.startswith(
        f"stopped: go on with DETECTRON2_DATASETS={data} python {TOOL[-1]} --resume "
        f"--config-file {CONFIG}"
    )
    assert go_on.endswith("SOLVER.IMS_PER_BATCH 2")
    assert not any("Traceback" in line for line in lines), "\n".join(lines)
    steps = [line["iteration"] for line in losses(folder)]
    assert steps == list(range(len(steps)))
    assert (folder / "last_checkpoint").read_text() == f"model_{steps[-1]:07d}.pth"
    assert (folder / f"model_{steps[-1]:07d}.pth").exists()


def test_a_second_ctrl_c_does_not_save_half_a_step() -> None:
    stop = Interruption(decides=True)
    with stop.heeded(), pytest.raises(KeyboardInterrupt):
        stop.begin_step()
        signal.raise_signal(signal.SIGINT)
        assert stop.in_step, "the first one waits"
        signal.raise_signal(signal.SIGINT)
    assert stop.in_step
    with stop.heeded(), pytest.raises(KeyboardInterrupt):
        stop.end_step()
    assert not stop.in_step
