"""Submissions: the layout every server wants, as a zip that is checked before it is written.

Layouts: the upload instructions of the servers; they read pixel values, not colours.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from unified.errors import ConfigError, InputError
from unified.files import atomic_path, is_litter
from unified.label_maps import davis_palette

RESULTS = "results.json"
OLDEST = (1980, 1, 1, 0, 0, 0)  # the same files make the same zip, whenever it is written


@dataclass(frozen=True)
class Server:
    """What one server expects inside the zip.

    Attributes:
        content: "label_maps" are ``<video>/<frame>.png``, "expressions" and "objects" hold binary
            masks in ``<video>/<item>/<frame>.png``, "results" is one ``results.json``.
        top: folder around everything, or "".
        split: list of the videos inside the data set, where its folder holds others too.
    """

    content: Literal["label_maps", "expressions", "objects", "results"]
    top: str = ""
    split: str = ""

    @property
    def depth(self) -> int:
        """Number of folders and files from the top of a mask's path."""
        return 2 if self.content == "label_maps" else 3


SERVERS: dict[str, Server] = {
    "youtube-vos": Server("label_maps", top="Annotations"),
    "lvos": Server("label_maps", top="Annotations"),
    "davis17-testdev": Server("label_maps", split="ImageSets/2017/test-dev.txt"),
    "mose": Server("label_maps"),
    "ref-youtube-vos": Server("expressions", top="Annotations"),
    "mevis": Server("expressions"),
    "sav": Server("objects"),
    "youtube-vis": Server("results"),
    "ovis": Server("results"),
}


def find_server(name: str) -> Server:
    """The server of a name.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in SERVERS:
        raise ConfigError(f"no server {name!r}: choose from {', '.join(SERVERS)}")
    return SERVERS[name]


@dataclass(frozen=True)
class Files:
    """The files of a submission, in a folder, in a zip or one results file.

    Attributes:
        root: folder, zip or file.
        names: paths with forward slashes; for a folder without the server's top folder.
        empty_folders: likewise.
        prefix: what stands before each name inside the root.
        archive: the open zip, if it is one.
    """

    root: Path
    names: tuple[str, ...]
    empty_folders: tuple[str, ...] = ()
    prefix: str = ""
    archive: zipfile.ZipFile | None = None

    def read(self, name: str) -> bytes:
        """The content of a file."""
        if self.archive is not None:
            return self.archive.read(name)
        return (
            self.root / f"{self.prefix}{name}" if self.root.is_dir() else self.root
        ).read_bytes()


@contextmanager
def open_files(server: Server, path: Path) -> Iterator[Files]:
    """Lists a folder of predictions, a zip, or a results file.

    Raises:
        InputError: there is nothing, or the zip is damaged.
    """
    if path.is_file() and path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
                yield Files(path, tuple(sorted(names)), archive=archive)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path} is not a readable zip: {error}") from error
    elif path.is_file() and server.content == "results":
        yield Files(path, (RESULTS,))
    elif path.is_dir():
        yield _folder_files(server, path)
    else:
        raise InputError(f"{path} is no folder of predictions: check the path")


def _folder_files(server: Server, path: Path) -> Files:
    has_top = bool(server.top) and (path / server.top).is_dir()
    inside = path / server.top if has_top else path
    names, empty = [], []
    for found in sorted(inside.rglob("*")):
        name = found.relative_to(inside).as_posix()
        if found.is_file():
            names.append(name)
        elif not in_litter(name) and not any(found.iterdir()):
            empty.append(name)
    if not names:
        raise InputError(f"{path} is empty: expected predictions in it")
    return Files(path, tuple(names), tuple(empty), f"{server.top}/" if has_top else "")


def in_litter(name: str) -> bool:
    """Whether a file lies in litter or is litter itself."""
    return any(map(is_litter, name.split("/")))


def write_submission(server: Server, files: Files, path: Path) -> int:
    """Writes the zip of a checked submission; returns the number of files in it.

    Label maps without palette get the DAVIS one, masks of 0 and 1 become 0 and 255; every other
    file is copied byte by byte.
    """
    names = [name for name in files.names if not in_litter(name)]
    if path.suffix != ".zip":
        raise ConfigError(f"{path} must end in .zip")
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in _contents(server, files, names):
            inside = f"{server.top}/{name}" if server.top else name
            entry = zipfile.ZipInfo(inside, date_time=OLDEST)
            entry.external_attr = 0o644 << 16
            entry.compress_type = (
                zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
            )
            archive.writestr(entry, content)
    return len(names)


def _contents(server: Server, files: Files, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        content = files.read(name)
        if server.content == "label_maps":
            content = _with_palette(content)
        elif server.content != "results":
            content = _black_and_white(content)
        yield name, content


def _with_palette(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        if image.mode == "P":
            return content
        indexed = Image.fromarray(np.array(image, dtype=np.uint8))
    indexed.putpalette(davis_palette().tobytes())
    return _png(indexed)


def _black_and_white(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        values = np.array(image)
        if image.mode == "L" and values.max() in (0, 255):
            return content
    return _png(Image.fromarray((values > 0).astype(np.uint8) * 255))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
