"""What a data set on disk says about the videos of a submission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.data.formats.files import image_files, read_json
from unified.errors import InputError
from unified.evaluation.reading import annotation_root, mask_names, read_names
from unified.evaluation.submission import Server
from unified.files import subfolders
from unified.inference.image_io import image_size
from unified.mask_files import read_ids
from unified.metrics.davis import VOID, present_ids

EXPRESSIONS = "meta_expressions.json"
IMAGE_ROOTS = ("JPEGImages/480p", "JPEGImages_24fps", "JPEGImages")


@dataclass(frozen=True)
class Video:
    """What the data set says about one video; None where it says nothing.

    Attributes:
        frames: names that must be there.
        size: (h, w).
        items: expressions or objects.
        ids: object ids that may occur in label maps.
    """

    frames: tuple[str, ...]
    size: tuple[int, int]
    items: tuple[str, ...] | None = None
    ids: frozenset[int] | None = None


def read_videos(
    server: Server, data: Path, meta: Path | None = None, names: Sequence[str] | None = None
) -> dict[str, Video]:
    """Frames, sizes, ids and expressions of a data set on disk.

    Args:
        server: decides whether items are expressions or object folders.
        data: folder with ``JPEGImages`` and, if given, ``Annotations`` of the first frames; or the
            one above it with ``valid``.
        meta: ``meta_expressions.json``; default: that of the data set, without the hidden videos.
        names: videos of the split; default: those of the server's list or else all.

    Raises:
        InputError: the folder is no such data set.
    """
    data = data / "valid" if (data / "valid").is_dir() else data
    root = next((data / inside for inside in IMAGE_ROOTS if (data / inside).is_dir()), None)
    if root is None:
        raise InputError(f"{data} has no JPEGImages: give the folder of the data set")
    expressions = _expressions(data, meta) if server.content == "expressions" else None
    known = subfolders(root) if expressions is None else list(expressions)
    if names is None:
        has_list = bool(server.split) and (data / server.split).is_file()
        names = read_names(data / server.split) if has_list else known
    if unknown := sorted(set(names) - set(known)):
        raise InputError(f"{data} has no video {unknown[0]}: is the split of this data set?")
    annotations = annotation_root(data)
    videos = {}
    for name in names:
        images = image_files(root / name, "the frames of a video")
        drawn = annotations / name
        items: tuple[str, ...] | None = None
        ids: frozenset[int] | None = None
        if expressions is not None:
            items = tuple(expressions[name]["expressions"])
        elif annotations != data and drawn.is_dir():
            if server.content == "objects":
                items = tuple(subfolders(drawn))
            else:
                maps = [
                    present_ids(read_ids(drawn / f"{frame}.png")) for frame in mask_names(drawn)
                ]
                ids = frozenset(i for present in maps for i in present) - {0, VOID}
        frames = tuple(path.stem for path in images)
        videos[name] = Video(frames, image_size(images[0]), items, ids)
    return videos


def _expressions(data: Path, meta: Path | None) -> Mapping[str, Any]:
    released = data.parent / "meta_expressions"  # Ref-YouTube-VOS has them beside the splits
    hidden: Mapping[str, Any] = {}
    if meta is None and (released / "test" / EXPRESSIONS).is_file():
        hidden = _meta_videos(released / "test" / EXPRESSIONS)
    if meta is None:
        inside = data / EXPRESSIONS
        meta = inside if inside.is_file() else released / data.name / EXPRESSIONS
    return {name: video for name, video in _meta_videos(meta).items() if name not in hidden}


def _meta_videos(path: Path) -> Mapping[str, Any]:
    videos: Mapping[str, Any] = read_json(path, "the expressions (--meta)", ("videos",))["videos"]
    return videos
