"""Whether an image can be answered in the memory that is free, asked before anything is made."""

from __future__ import annotations

import math
from pathlib import Path

from unified.errors import InputError
from unified.structures import Size

# Of the image: itself and its copies, masks and probabilities at its size, the overlay. The least
# that was measured, see docs/inputs.md: what may fit is tried.
BYTES_PER_PIXEL = 23
SYSTEM = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")


def free_memory() -> float:
    """Bytes that this process can still get, as Linux and its container say; elsewhere infinite."""
    free = math.inf
    if SYSTEM.exists():
        free = 1024 * _number(SYSTEM, "MemAvailable:")
    limit = CONTAINER / "memory.max"
    if limit.exists() and (written := limit.read_text().strip()) != "max":
        free = min(free, int(written) - _number(CONTAINER / "memory.stat", "anon"))
    return max(free, 0)


def _number(file: Path, name: str) -> int:
    return next(
        int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[0] == name
    )


def check_room(size: Size) -> None:
    """Raises InputError if an image of (H, W) needs more memory than is free."""
    free, (height, width) = free_memory(), size
    needed = BYTES_PER_PIXEL * height * width
    if needed <= free:
        return
    scale = math.sqrt(free / needed)
    raise InputError(
        f"an image of {width} x {height} pixels needs about {needed / 1e9:.1f} GB of memory and "
        f"{free / 1e9:.1f} GB are free: scale it down to {int(width * scale)} x "
        f"{int(height * scale)} or less, or free memory"
    )
