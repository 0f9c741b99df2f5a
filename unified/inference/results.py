"""results.json, valid at any moment, and the folder that it lies in."""

from __future__ import annotations

import errno
import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from unified.errors import InputError, OtherRunError
from unified.files import atomic_path

RESULTS = "results.json"
DETECTIONS = "detections.json"
# What a run may leave besides results.json.
GENERATED = (
    "masks/**/*.png",
    "overlay/**/*.jpg",
    "overlay.mp4",
    "logits/*.npz",
    DETECTIONS,
)


def prepare_folder(folder: Path, inputs: Iterable[str] = ()) -> None:
    """Makes the folder ready for a new run; files of an earlier run in it are deleted.

    Args:
        folder: made if it does not exist.
        inputs: files, folders and patterns that the run reads; none may be among what is deleted.

    Raises:
        InputError: the folder holds masks or overlays without the results.json of a run, or an
            input lies among the files of the earlier run.
        OSError: it cannot be made or written.
    """
    old = [path for pattern in GENERATED for path in folder.glob(pattern)]
    if old and not (folder / RESULTS).exists():
        raise InputError(
            f"output folder {folder} holds {old[0].relative_to(folder)} but no {RESULTS} of a run "
            "that made it: give an empty or a new folder"
        )
    used = {Path(found).resolve() for name in inputs for found in glob.glob(name) or [name]}
    used.discard(folder.resolve())
    for path in old:
        inside = path.relative_to(folder).parents
        if used & {path.resolve(), *((folder / parent).resolve() for parent in inside)}:
            raise InputError(
                f"{path} would be read and replaced by the same run: give another output folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*old, folder / RESULTS]:
        path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises OSError if ``folder`` cannot be made or written; leaves nothing behind."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "is a file, expected a folder for the results", str(existing)
        )
    with TemporaryFile(dir=existing):
        pass


class ResultsFile:
    """results.json: a header, one row per frame or image, and whether the run came to its end.

    The file is complete JSON after every row, whatever happens next: a row is written over the
    closing brackets together with new ones, in one call to the operating system.

    Args:
        path: replaced if it exists.
        header: what holds for the whole run.
        rows: the key of the list of rows, such as "frames".
        earlier: rows to begin with.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Mapping[str, Any],
        rows: str,
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        opening = json.dumps({**header, rows: []}, indent=1, ensure_ascii=False)
        lines = ",".join(_row(row) for row in earlier)
        head = _encoded(opening.removesuffix("]\n}") + lines)
        with atomic_path(path) as temporary:
            temporary.write_bytes(head + _tail(complete=False))
        self._file = os.open(path, os.O_WRONLY)
        self._end = len(head)  # where the closing brackets begin
        self._num_rows = len(earlier)

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends one row; on a full disk the file keeps the rows before it."""
        line = _encoded("," * bool(self._num_rows) + _row(row))
        try:
            self._write(line + _tail(complete=False))
        except OSError:
            self._write(_tail(complete=False))
            raise
        self._end += len(line)
        self._num_rows += 1

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Closes the file; "complete" becomes true unless an error ended the run."""
        try:
            self._write(_tail(complete=kind is None))
        finally:
            os.close(self._file)

    def _write(self, data: bytes) -> None:
        written = os.pwrite(self._file, data, self._end)
        if written < len(data):
            # A second call says why there was no room, by raising.
            written += os.pwrite(self._file, data[written:], self._end + written)
        os.ftruncate(self._file, self._end + len(data))


def _row(row: Mapping[str, Any]) -> str:
    return f"\n  {json.dumps(row, ensure_ascii=False)}"


def _encoded(text: str) -> bytes:
    """As UTF-8; bytes of a file name that are none are written as JSON escapes."""
    return text.encode(errors="backslashreplace")


def _tail(*, complete: bool) -> bytes:
    # "true" is the shorter one, so that closing never needs more room.
    return b'\n ],\n "complete": ' + (b"true" if complete else b"false") + b"\n}\n"


MAY_DIFFER = frozenset({"input", "device", "versions"})  # between a run and the one that goes on


def earlier_results(folder: Path, header: Mapping[str, Any], rows: str) -> dict[str, Any] | None:
    """The results.json of an earlier run that was asked the same; None if there is none.

    Args:
        folder: of that run.
        header: of this run.
        rows: the key of the list of rows.

    Raises:
        OtherRunError: it was asked something else.
        InputError: the file is not one of ours.
    """
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}: run without --resume") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is no result of a run: run without --resume")
    asked = json.loads(json.dumps(header))
    other = [key for key in asked if key not in MAY_DIFFER and asked[key] != found.get(key)]
    if other or not isinstance(found.get(rows), list):
        raise OtherRunError(
            f"{path} is of a run with other {', '.join(other) or rows}, so it cannot be resumed: "
            "give the arguments of that run, another output folder, or leave out --resume"
        )
    return found
