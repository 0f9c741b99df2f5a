"""How many threads a command uses, that they sleep while they have nothing to do, and its memory.

Must be told to OpenMP before torch is imported.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 1 << 30  # bytes


def set_thread_defaults() -> None:
    """Says how OpenMP works in this process and its children, where the user has not.

    Threads that wait for work spin by default, which slows down every other process of the machine
    and, where there are more threads than processors, this one itself.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_processors()))
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Memory that one frame frees serves the next one.

    By default it goes back to the system, which clears every page before it lends it again.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            if hasattr(library, "mallopt"):  # of glibc, not of others
                library.mallopt(option, KEPT)


def usable_processors() -> int:
    """Those that this process may run on, by its affinity where the system tells it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
