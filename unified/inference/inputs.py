"""What ``--input`` names: pictures, or clips, in files, folders, patterns and lists of them."""

from __future__ import annotations

import glob
import mimetypes
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from unified.errors import InputError
from unified.files import is_litter, natural_key, read_text
from unified.inference.image_io import IMAGE_SUFFIXES, is_image
from unified.inference.results import GENERATED, RESULTS

LIST_SUFFIX = ".txt"
# What cameras and phones write and not every table of file types knows.
PICTURE_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".dng", ".cr2", ".nef", ".arw"})
VIDEO_SUFFIXES = frozenset(
    {".gif", ".mkv", ".webm", ".m4v", ".mts", ".ts", ".flv", ".wmv", ".3gp", ".ogv"}
)


class Picture(NamedTuple):
    """An image file and the name, with sub-folders, of what is made of it."""

    path: Path
    name: str


class Pictures(NamedTuple):
    """Those that were found, in natural order, and the files beside them that are no pictures."""

    found: tuple[Picture, ...]
    skipped: tuple[Path, ...]


class Clip(NamedTuple):
    """What ``FrameReader`` reads as one clip, and the sub-folder of its results."""

    sources: tuple[str, ...]
    folder: str


def find_pictures(inputs: Sequence[str]) -> Pictures:
    """The images that files, folders with their sub-folders, patterns and lists name.

    Raises:
        InputError: one does not exist or holds no image, or two would get one name.
    """
    found: dict[Path, Picture] = {}
    others: set[Path] = set()
    for source in expand_lists(inputs):
        path = Path(source)
        root = path if path.is_dir() else None
        files = _files_below(path) if root else _matching(source)
        pictures = [file for file in files if file == path or _is_picture(file)]
        if not pictures:
            suffixes = " ".join(sorted(IMAGE_SUFFIXES))
            raise InputError(
                f"input {source} holds no image, expected files that end in {suffixes}"
            )
        for file in pictures:
            name = (file.relative_to(root) if root else Path(file.name)).with_suffix("")
            found.setdefault(file, Picture(file, name.as_posix()))
        others.update(file for file in files if file.is_file())
    ordered = sorted(found.values(), key=lambda picture: _natural(picture.path))
    _check_unique([(picture.name, picture.path) for picture in ordered], "masks and overlays")
    return Pictures(tuple(ordered), tuple(sorted(others - found.keys(), key=_natural)))


def find_clips(inputs: Sequence[str]) -> list[Clip]:
    """The clips that videos, camera numbers, folders, patterns and lists name.

    A folder with images is a clip; one with videos, or with such folders, is several. Images that
    are given one by one or by a pattern are one clip together. A clip that is all that is named has
    the folder "", others that of their file or folder.

    Raises:
        InputError: a folder or pattern holds no clip, or two clips would get one folder.
    """
    sources, clips, images = expand_lists(inputs), [], []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            clips += _clips_below(path)
            continue
        matches = _matching(source) if glob.has_magic(source) and not path.exists() else [path]
        matches = [match for match in matches if match.is_dir() or _is_video(match)] or matches
        if any(is_image(match) for match in matches):
            images.append(source)
            continue
        for match in matches:  # a file, the number of a camera, or nothing, as its reader will say
            single = Clip((os.fspath(match),), match.stem)
            clips += _clips_below(match) if match.is_dir() else [single]
    if images:
        clips.append(Clip(tuple(images), Path(images[0]).absolute().parent.name))
    if len(clips) == 1 and clips[0].sources == tuple(sources):
        return [clips[0]._replace(folder="")]
    _check_unique([(clip.folder, clip.sources[0]) for clip in clips], "results")
    return clips


def expand_lists(inputs: Sequence[str]) -> list[str]:
    """The inputs with every list, a file that ends in .txt, replaced by its lines.

    Lines are inputs as on the command line, relative to the working folder or to that of the list,
    also in quotes; empty ones, and those that begin with #, are left out.

    Raises:
        InputError: a list cannot be read, is empty, or names what does not exist.
    """
    sources: list[str] = []
    for source in inputs:
        _check_path(source)
        path = Path(source)
        if path.suffix.lower() != LIST_SUFFIX or not path.is_file():
            sources.append(source)
            continue
        lines = [line.strip() for line in read_text(path).splitlines()]
        names = [line for line in lines if line and not line.startswith("#")]
        if not names:
            raise InputError(f"list {source} is empty: write one input per line")
        sources += [_beside(name, path) for name in names]
    return sources


def _check_path(source: str) -> None:
    """Raises InputError for what cannot be meant as a path."""
    if not source.strip():
        raise InputError("an --input is empty: an unset variable? Give a file or a folder")
    scheme, separator, _ = source.partition("://")
    if separator and scheme.isalnum():
        hint = "give the path alone" if scheme == "file" else "download it first"
        raise InputError(f"input {source} is an address: {hint}")


def _beside(name: str, listing: Path) -> str:
    quoted = len(name) > 1 and name[0] == name[-1] and name[0] in "\"'"
    plain = name[1:-1] if quoted else name
    for candidate in (
        place for text in (name, plain) for place in (text, os.fspath(listing.parent / text))
    ):
        if Path(candidate).exists() or (glob.has_magic(candidate) and glob.glob(candidate)):
            return candidate
    raise InputError(
        f"list {listing} names {name}, which does not exist: check the path"
        + ", and write remarks on lines of their own" * ("#" in name)
    )


def _matching(source: str) -> list[Path]:
    """A file, or what a pattern finds."""
    path = Path(source)
    if path.exists():
        return [path]
    if not glob.has_magic(source):
        raise InputError(f"input {source} does not exist: give a file, a folder or a pattern")
    found = [Path(name) for name in glob.glob(source, recursive=True)]
    if not found:
        raise InputError(f"input {source} matches no file: check the pattern")
    return sorted((path for path in found if not is_litter(path)), key=_natural)


def _files_below(folder: Path) -> list[Path]:
    """Visible files in a folder and its sub-folders, but for what runs of the tools made there."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        made = {path.split("/")[0] for path in GENERATED} if RESULTS in files else set()
        folders[:] = [name for name in folders if not (name in made or is_litter(name))]
        found += [Path(place, name) for name in files if name not in made | {RESULTS}]
    return [path for path in found if not is_litter(path)]


def _clips_below(folder: Path) -> list[Clip]:
    """The folder itself if it holds images, else videos and folders of images below it."""
    files = sorted(_files_below(folder), key=_natural)
    if any(is_image(file) and file.parent == folder for file in files):
        return [Clip((os.fspath(folder),), folder.name)]
    clips: dict[Path, Clip] = {}
    for file in files:
        place = file.parent if is_image(file) else file if _is_video(file) else None
        if place is None or place in clips:
            continue
        inside = place.relative_to(folder)
        name = inside.with_suffix("") if place == file else inside
        clips[place] = Clip((os.fspath(place),), name.as_posix())
    if not clips:
        raise InputError(f"input {folder} holds no image and no video, also in its sub-folders")
    return list(clips.values())


def _is_picture(path: Path) -> bool:
    """By its name; whether it can be read is known when it is."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    return is_image(path) or kind.startswith("image/") or path.suffix.lower() in PICTURE_SUFFIXES


def _is_video(path: Path) -> bool:
    kind = mimetypes.guess_type(path.name)[0] or ""
    return kind.startswith("video/") or path.suffix.lower() in VIDEO_SUFFIXES


def _natural(path: Path) -> list[object]:
    return [natural_key(Path(part)) for part in path.parts]


def _check_unique(named: Iterable[tuple[str, Path | str]], what: str) -> None:
    """Raises InputError if two inputs would write the same files."""
    first: dict[str, Path | str] = {}
    for name, source in named:
        if name in first:
            raise InputError(
                f"the {what} of {first[name]} and {source} would both be called {name}: rename one"
            )
        first[name] = source
