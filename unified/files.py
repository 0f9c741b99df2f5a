"""Files as people have them, and writing so that nothing half-written is seen under the final name.

Text with any mark of its encoding, folders with what file managers leave in them, names in natural
order, and files that are not what their name says.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from unified.errors import InputError

# What operating systems and network disks leave beside files, whatever the case of its letters.
LITTER = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "lost+found", "$recycle.bin"}
    | {"system volume information", "@eadir", "#recycle", "@recycle", "@recently-snapshot"}
)
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
HEAD = 1024  # bytes that show what a file is


def is_litter(path: str | PurePath) -> bool:
    """Whether a file or folder is hidden, or was left by an operating system."""
    name = PurePath(path).name
    return name.startswith(".") or name.casefold() in LITTER


def natural_key(path: PurePath) -> tuple[list[tuple[int, str]], str]:
    """What to sort paths by, so that 2 comes before 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], str(path)


def entries(folder: Path) -> list[Path]:
    """Files and folders directly inside ``folder``, in natural order, without litter."""
    return sorted((path for path in folder.iterdir() if not is_litter(path)), key=natural_key)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders inside, without litter, sorted as text: clips and classes."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_litter(path))


def files_below(folder: Path, suffix: str) -> list[Path]:
    """The files with a suffix in ``folder`` and its folders, in natural order, without litter."""
    found = []
    for path in entries(folder):
        if path.is_dir():
            found += files_below(path, suffix)
        elif path.suffix.lower() == suffix:
            found.append(path)
    return found


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file in UTF-8, or in UTF-16 with its mark, without the mark.

    Raises:
        InputError: it is in another encoding.
    """
    content = Path(path).read_bytes()
    marked = content.startswith(UTF_16)
    if not marked and b"\0" in content:
        raise InputError(f"{path} is no text, or UTF-16 without its mark: save it as UTF-8")
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not text in UTF-8 (byte {error.start} is {content[error.start]:#04x}): "
            "save it as UTF-8"
        ) from error


def foreign_content(path: str | os.PathLike[str], wanted: str) -> str | None:
    """What a file is that is not what its name says, and what to do; None if nothing tells.

    Args:
        wanted: what it should be, such as "an image".
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD).lstrip().lower()
    except OSError:
        return None
    if not head:
        return f"{path} is empty: copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not {wanted}: fetch the file with `git lfs pull`"
    is_page = head.startswith((b"<!doctype html", b"<html")) or b"<html" in head
    if is_page or (head.startswith(b"<?xml") and b"<error" in head):
        return (
            f"{path} is a web page, not {wanted}: the server answered the download with a page "
            "(a login, a quota); open the address in a browser"
        )
    return None


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that becomes ``path`` when the block succeeds.

    The suffix is kept, so that writers which look at it choose the same format. Parent folders
    are made. When the block raises, the temporary file is deleted and ``path`` stays as it was.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.partial{final.suffix}")
    try:
        yield temporary
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
