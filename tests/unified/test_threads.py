"""How many threads a command uses, and what they do while they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STOPPED_AT_TORCH = """
import os, runpy, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("OMP_NUM_THREADS"), flush=True)
            os._exit(0)

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.meta_path.insert(0, Finder())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def told(tool: str, **given: str) -> list[str]:
    """What OpenMP is told when torch is about to be imported, on one processor."""
    free = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_AT_TORCH, str(ROOT / "tools" / f"{tool}.py")],
        env={**free, **given},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


@pytest.mark.parametrize("tool", ["infer_image", "infer_video", "benchmark", "calibrate"])
def test_threads_sleep_and_are_as_many_as_the_process_may_use(tool: str) -> None:
    number = "1" if hasattr(os, "sched_setaffinity") else str(os.cpu_count())
    assert told(tool) == ["PASSIVE", number]


def test_what_the_user_says_counts() -> None:
    given = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}
    assert told("infer_image", **given) == ["ACTIVE", "7"]
