"""Files as people have them: marks of encodings, litter, order, and what is not what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from unified.errors import InputError
from unified.files import (
    entries,
    files_below,
    foreign_content,
    is_litter,
    natural_key,
    read_text,
    subfolders,
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_without_the_mark_of_its_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_text("bär\nb\n", encoding=encoding)
    assert read_text(tmp_path / "list.txt") == "bär\nb\n"


def test_text_of_another_encoding_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("bär".encode("latin-1"))
    with pytest.raises(InputError, match=r"list\.txt is not text in UTF-8 \(byte 1 is 0xe4\)"):
        read_text(tmp_path / "list.txt")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_called_so(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_bytes("a/b.jpg\n".encode(encoding))
    with pytest.raises(
        InputError, match=r"list\.txt is no text, or UTF-16 without its mark: save it as UTF-8"
    ):
        read_text(tmp_path / "list.txt")


def test_numbers_in_names_are_ordered_as_numbers() -> None:
    names = ["10.png", "a2.png", "1.png", "2.png", "a10.png", "01.png"]
    ordered = sorted(map(Path, names), key=natural_key)
    assert [path.name for path in ordered] == [
        *("01.png", "1.png", "2.png", "10.png", "a2.png", "a10.png")
    ]


def test_litter_is_in_no_listing(tmp_path: Path) -> None:
    for folder in ("clip10", "clip2", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "#recycle"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "10.png").touch()
        (tmp_path / folder / "9.png").touch()
        (tmp_path / folder / "._9.png").touch()
    left = (".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", "._a.png", "Icon\r")
    for name in (*left, "ehthumbs.db", "@Recycle", "System Volume Information"):
        (tmp_path / name).touch()
        assert is_litter(name)
    assert [path.name for path in entries(tmp_path)] == ["clip2", "clip10"]
    assert subfolders(tmp_path) == ["clip10", "clip2"]
    assert [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path, ".png")] == [
        *("clip2/9.png", "clip2/10.png", "clip10/9.png", "clip10/10.png")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "a Git LFS pointer, not"),
        (b"\n <!DOCTYPE html><html>Quota exceeded</html>", "a web page, not weights"),
        (b"<HTML><body>Sign in", "a web page, not weights"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "a web page, not weights"),
        (b"", "is empty"),
    ],
)
def test_what_is_not_what_its_name_says_is_told(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert message in str(foreign_content(tmp_path / "w.pth", "weights"))


def test_nothing_is_told_of_other_content(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04 ...")
    assert foreign_content(tmp_path / "w.pth", "weights") is None
    assert foreign_content(tmp_path / "none.pth", "weights") is None
