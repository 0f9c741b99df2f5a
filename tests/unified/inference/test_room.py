"""Images that do not fit into memory are refused before anything of their size is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.toy.clips import image
from tests.toy.model import make_toy
from unified.errors import InputError
from unified.inference import room


def picture(height: int, width: int) -> np.ndarray:
    """Of one pixel in memory."""
    return np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With 2 GB free, outside of a container."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 1953125 kB\n")
    monkeypatch.setattr(room, "SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(room, "CONTAINER", tmp_path)
    return tmp_path


def test_the_error_says_what_came_what_fits_and_what_to_do(machine: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"an image of 16000 x 10000 pixels needs about 3\.7 GB of memory and 2\.0 GB are "
        "free: scale it down to 11795 x 7372 or less, or free memory",
    ):
        image(make_toy()).set_image(picture(10000, 16000))
    room.check_room((5000, 8000))


def test_frames_of_one_size_are_asked_about_once(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(room, "free_memory", lambda: asked.append(1) or 2e9)
    encoder = image(make_toy()).encoder
    asked.clear()
    for size in ((40, 60), (40, 60), (60, 40), (60, 40)):
        encoder.image(np.zeros((*size, 3), np.uint8))
    assert len(asked) == 2


def test_the_limit_of_a_container_counts(machine: Path) -> None:
    (machine / "memory.max").write_text("max\n")
    assert room.free_memory() == 2e9
    (machine / "memory.max").write_text("3000000000\n")
    (machine / "memory.stat").write_text("anon 2500000000\nfile 400000000\n")
    assert room.free_memory() == 5e8


def test_where_nothing_is_known_everything_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SYSTEM", tmp_path / "none")
    monkeypatch.setattr(room, "CONTAINER", tmp_path)
    room.check_room((10**6, 10**6))
