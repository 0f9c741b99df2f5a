"""A process that fails takes those on other machines along, with its message."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy.system import CONFIG, PATH
from unified.data.synthetic.releases import RELEASES

# Two machines of one process each; {body} is what a process does after it joined.
SCRIPT = """
import sys
from argparse import Namespace
from detectron2.utils import comm
import torch.distributed as dist
from unified.commands import run_command
from unified.engine.launch import launch
from unified.errors import InputError

def work():
{body}

if __name__ == "__main__":
    machine, url = int(sys.argv[1]), sys.argv[2]
    args = Namespace(num_gpus=1, num_machines=2, machine_rank=machine, dist_url=url)
    sys.exit(run_command(lambda: launch(work, args, "cpu")))
"""
BROKEN_SAMPLE = """
    if comm.get_rank() == {rank}:
        raise InputError("frame 7 of clip 3 is unreadable")
    dist.barrier()
"""
UNEXPECTED = """
    if comm.get_rank() == 1:
        raise RuntimeError("out of memory")
    dist.barrier()
"""
GONE = """
    import os, signal
    dist.barrier()  # both have begun
    if comm.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
"""
STOPPED = """
    import os, signal, time
    from unified.engine.interruption import ended_in_order
    with ended_in_order():
        if comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10_000)
"""
OWN_STORE = """
    from torch.distributed import TCPStore
    from unified.engine.failures import FailureWatch
    watch = FailureWatch(rank=comm.get_rank(), world=2, local_world=1)
    store = watch.store
    while not isinstance(store, TCPStore):
        store = store.underlying_store
    print(store.port == int(sys.argv[2].split(":")[-1]))
"""
# What a whole group of processes does when it gets SIGTERM; the workers are two of a data loader.
GROUP = """
import sys, time
from torch.utils.data import DataLoader
from unified.commands import run_command
from unified.engine.interruption import ended_in_order

def work():
    stream = iter(DataLoader(range(100000), num_workers=2))
    next(stream)
    with ended_in_order():
        try:
            print("ready", flush=True)
            time.sleep(10_000)
        finally:
            end = time.monotonic() + 2
            while time.monotonic() < end:
                time.sleep(0.1)
            print("written at the end")

if __name__ == "__main__":
    sys.exit(run_command(work))
"""
WELL = """
    import time
    time.sleep(comm.get_rank())
    print("done", comm.get_rank())
"""
NOT_A_NUMBER = """
    import torch
    from detectron2.engine import HookBase
    from unified.engine.config import load_config
    from unified.engine.train_loader import build_train_loader
    from unified.engine.trainer import Trainer

    class Spoil(HookBase):
        def before_step(self):
            if self.trainer.iter == 2 and comm.get_rank() == 1:
                with torch.no_grad():
                    next(self.trainer.segmenter.head.parameters()).fill_(float("nan"))

    options = ["OUTPUT_DIR", {folder!r}, "SOLVER.MAX_ITER", "100000"]
    cfg = load_config({config!r}, options)
    trainer = Trainer(cfg, build_train_loader(cfg))
    trainer.register_hooks([Spoil()])
    trainer.train()
"""


def run_two(body: str, folder: Path, *, torchrun: bool = False) -> tuple[list[int], list[str]]:
    """Exit codes and what was printed by both, which end long before a barrier gives up.

    With ``torchrun`` the environment says who they are, as that program does it.
    """
    script = folder / "work.py"
    script.write_text(SCRIPT.format(body=body))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"
    environment = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    environment["DETECTRON2_DATASETS"] = str(folder)
    ranks: list[dict[str, str]] = [{}, {}]
    if torchrun:
        job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [{**job, "RANK": str(rank)} for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(machine), url],
            env=environment | ranks[machine],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for machine in range(2)
    ]
    try:
        printed = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], printed


@pytest.mark.parametrize("rank", [0, 1])
def test_an_unreadable_sample_ends_all_machines(rank: int, tmp_path: Path) -> None:
    codes, printed = run_two(BROKEN_SAMPLE.format(rank=rank), tmp_path)
    assert codes == [2, 2]
    message = f"error: process {rank}: frame 7 of clip 3 is unreadable\n"
    assert [text.count(message) for text in printed] == [1, 1], printed


def test_a_loss_that_is_no_number_ends_all_machines(tmp_path: Path) -> None:
    for release in ("fss1000", "ytbvos19", "coco"):
        RELEASES[release](tmp_path, 4, 0)
    body = NOT_A_NUMBER.format(folder=str(tmp_path / "out"), config=str(CONFIG))
    codes, printed = run_two(body, tmp_path)
    assert codes == [2, 2]
    for text in printed:
        assert "error: process 1: step 2: total_loss" in text and "--resume" in text, text


def test_an_unexpected_error_ends_all_machines(tmp_path: Path) -> None:
    codes, printed = run_two(UNEXPECTED, tmp_path)
    assert codes == [1, 1]
    assert "error: process 1: RuntimeError: out of memory" in printed[0]
    assert "Traceback" in printed[1] and "out of memory" in printed[1]


def test_without_the_first_process_the_others_end(tmp_path: Path) -> None:
    codes, printed = run_two(GONE, tmp_path)
    assert codes[1] == 1
    assert "error: process 0 was lost: continue with --resume" in printed[1]


def test_a_process_that_is_stopped_ends_all_machines(tmp_path: Path) -> None:
    codes, printed = run_two(STOPPED, tmp_path, torchrun=True)
    assert codes == [1, 128 + signal.SIGTERM]
    assert printed[0] == "error: process 1: it was stopped: continue with --resume\n"
    assert "Traceback" not in printed[1]


def test_word_goes_round_by_the_port_that_the_processes_met_at(tmp_path: Path) -> None:
    codes, printed = run_two(OWN_STORE, tmp_path)
    assert codes == [0, 0]
    assert printed == ["True\n", "True\n"]


def test_what_is_written_at_the_end_survives_sigterm_to_the_whole_group(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(GROUP)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script)],
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGTERM)
        printed = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert printed == ("written at the end\n", "stopped\n")


def test_processes_that_end_well_wait_for_each_other(tmp_path: Path) -> None:
    codes, printed = run_two(WELL, tmp_path)
    assert codes == [0, 0]
    assert printed == ["done 0\n", "done 1\n"]
