"""How many threads a command uses, and that they sleep while they have nothing to do.

Must be told to OpenMP before torch is imported.
"""

from __future__ import annotations

import os


def set_thread_defaults() -> None:
    """Says how OpenMP works in this process and its children, where the user has not.

    Threads that wait for work spin by default, which slows down every other process of the machine
    and, where there are more threads than processors, this one itself.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_processors()))


def usable_processors() -> int:
    """Those that this process may run on, by its affinity where the system tells it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
