"""Clips with masks: YouTube-VOS, MOSE, LVOS, DAVIS 2016 and 2017, and YouTube-VIS style JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unified.data.formats.files import (
    by_id,
    by_stem,
    image_files,
    listed_file,
    read_json,
    read_lines,
    require,
)
from unified.data.formats.records import ClipRecord, frame_labels
from unified.errors import InputError
from unified.files import subfolders
from unified.inference.image_io import image_size
from unified.mask_files import VOID


def read_clip(
    images: Path, masks: Path | None, *, clip_id: str, binary_masks: bool = False
) -> ClipRecord:
    """One clip from a folder of frames and a folder of label maps with the same names.

    Frames without a label map are kept. ``masks`` None means that the release has none.

    Raises:
        InputError: a folder is missing or empty, or a label map has no frame.
    """
    frames = list(by_stem(image_files(images, "the frames of a clip")).values())
    record: ClipRecord = {
        "clip_id": clip_id,
        "file_names": [str(path) for path in frames],
        "frame_names": [path.stem for path in frames],
    }
    record["height"], record["width"] = image_size(frames[0])
    if masks is not None:
        found = by_stem(image_files(masks, "label maps of a clip"))
        stray = [name for name in found if name not in record["frame_names"]]
        if stray:
            frame = images / f"{stray[0]}{frames[0].suffix}"
            raise InputError(f"{frame} is missing: expected the frame of {found[stray[0]]}")
        files = {name: str(path) for name, path in found.items()}
        record["mask_files"] = [files.get(name) for name in record["frame_names"]]
        record["binary_masks"] = binary_masks
    return record


def read_clip_folders(
    images: Path, masks: Path, names: Iterable[str] | None = None, *, binary_masks: bool = False
) -> list[ClipRecord]:
    """Every clip that has a folder of masks, or the clips named, in that order."""
    if names is None:
        require(masks, "one folder of label maps per clip")
        names = subfolders(masks)
    return [
        read_clip(images / name, masks / name, clip_id=name, binary_masks=binary_masks)
        for name in names
    ]


def with_first_frames(record: ClipRecord, frames: Iterable[int] | None = None) -> ClipRecord:
    """The record with the first appearance of every object, found by opening label maps.

    Args:
        frames: indices of the label maps to open; all if not given.
    """
    first: dict[int, int] = {}
    for index in range(len(record["mask_files"])) if frames is None else frames:
        labels = frame_labels(record, index)
        if labels is not None:
            for number in np.unique(labels).tolist():
                if number not in (0, VOID):
                    first.setdefault(number, index)
    if not first:
        raise InputError(f"clip {record['clip_id']} has no object: {record['mask_files'][0]}")
    return {**record, "first_frames": first}


def read_ytbvos(root: Path, split: str) -> list[ClipRecord]:
    """YouTube-VOS 2018 or 2019; ``split`` is train or valid.

    In ``valid`` a label map exists only where objects appear first. Categories that the training
    split's ``meta.json`` lacks count as unseen.
    """
    folder = root / split
    meta = read_json(folder / "meta.json", "the objects of every clip", ("videos",))["videos"]
    seen: set[str] | None = None
    if split != "train" and (root / "train/meta.json").exists():
        trained = read_json(root / "train/meta.json", "the objects of every clip", ("videos",))
        seen = {c for video in trained["videos"].values() for c in _categories(video).values()}
    names = sorted(meta)
    records = read_clip_folders(folder / "JPEGImages", folder / "Annotations", names)
    if split == "train":
        return [{**record, "all_masked": True} for record in records]
    result = []
    for record in records:
        video = meta[record["clip_id"]]
        for number, entry in video["objects"].items():
            if entry.get("frames"):
                _start(record, int(number), entry["frames"][0])
        record = with_first_frames(record)
        categories = _categories(video)
        if seen is not None:
            record["unseen_ids"] = [n for n, category in categories.items() if category not in seen]
        result.append(record)
    return result


def _categories(video: Mapping[str, Any]) -> dict[int, str]:
    return {int(number): entry.get("category", "") for number, entry in video["objects"].items()}


def read_mose(root: Path, split: str) -> list[ClipRecord]:
    """MOSE v1 or v2; ``valid`` has the label map of the first frame only."""
    folder = root / split
    records = read_clip_folders(folder / "JPEGImages", folder / "Annotations")
    if split == "train":
        return [{**record, "all_masked": True} for record in records]
    return [with_first_frames(record) for record in records]


def read_lvos(root: Path, split: str) -> list[ClipRecord]:
    """LVOS v1 or v2; every fifth frame has a label map, and the meta file says who starts where.

    The second split is found as ``valid`` or ``val``.
    """
    folder = root / split
    if split != "train" and not folder.exists():
        folder = root / "val"
    records = read_clip_folders(folder / "JPEGImages", folder / "Annotations")
    if split == "train":
        return records
    names = ("valid_meta.json", "val_meta.json")
    places = [place / name for place in (folder, root) for name in names]
    path = next((place for place in places if place.exists()), places[0])
    meta = read_json(path, "the frame range of every object", ("videos",))["videos"]
    unseen = root / "unseen_videos.txt"
    hidden = set(read_lines(unseen, "names of unseen clips")) if unseen.exists() else set()
    for record in records:
        if record["clip_id"] not in meta:
            raise InputError(f"{path} has no entry for the clip {record['clip_id']}")
        objects = meta[record["clip_id"]]["objects"]
        starts = {int(n): entry["frame_range"]["start"] for n, entry in objects.items()}
        record["first_frames"] = {n: _start(record, n, start) for n, start in starts.items()}
        record["unseen_ids"] = list(starts) if record["clip_id"] in hidden else []
        record["frame_ranges"] = {int(n): entry["frame_range"] for n, entry in objects.items()}
    return records


def _start(record: ClipRecord, number: int, name: str) -> int:
    """Index of the frame that the meta file names, whose label map starts an object."""
    frames, masks = record["frame_names"], record["mask_files"]
    if name in frames and masks[frames.index(name)] is not None:
        return frames.index(name)
    folder = Path(next(filter(None, masks))).parent
    raise InputError(f"{folder / name}.png is missing: object {number} starts on that frame")


def read_davis(
    root: Path, year: int, split: str, annotations: str = "Annotations"
) -> list[ClipRecord]:
    """DAVIS at 480p; all objects start in the first frame.

    The test splits, test-dev and test-challenge, have the label map of that frame only.

    Args:
        annotations: ``Annotations_unsupervised`` for the unsupervised task and Ref-DAVIS17.
    """
    path = root / f"ImageSets/{year}/{split}.txt"
    if not path.exists() and year == 2016:
        path = root / f"ImageSets/480p/{split}.txt"  # lines of "image mask", sorted by sequence
    lines = read_lines(path, "one sequence name per line")
    names = dict.fromkeys(Path(line.split()[0]).parent.name or line for line in lines)
    for name in names:
        require(root / "JPEGImages/480p" / name, f"the frames of a clip that {path} lists")
    records = read_clip_folders(
        root / "JPEGImages/480p", root / annotations / "480p", names, binary_masks=year == 2016
    )
    if not split.startswith("test"):
        records = [{**record, "all_masked": True} for record in records]
    return records if split == "train" else [with_first_frames(r, frames=[0]) for r in records]


def read_youtube_vis(path: Path, images: Path) -> list[ClipRecord]:
    """Clips of YouTube-VIS style JSON, such as OVIS: run-length codes per object and frame.

    Clips without objects are left out.
    """
    content = read_json(path, "YouTube-VIS style JSON", ("videos", "annotations"))
    tracks: dict[int, dict[int, list[Any] | str]] = {}
    for entry in by_id(content["annotations"], "annotations", path).values():
        tracks.setdefault(entry["video_id"], {})[entry["id"]] = entry["segmentations"]
    records: list[ClipRecord] = []
    for video in by_id(content["videos"], "videos", path).values():
        if video["id"] not in tracks:
            continue
        for number, codes in tracks[video["id"]].items():
            if len(codes) != len(video["file_names"]):
                raise InputError(
                    f"{path}: annotation {number} has {len(codes)} masks for the "
                    f"{len(video['file_names'])} frames of clip {video['id']}"
                )
        records.append(
            {
                "clip_id": str(Path(video["file_names"][0]).parent),
                "file_names": [str(listed_file(images, name)) for name in video["file_names"]],
                "frame_names": [Path(name).stem for name in video["file_names"]],
                "height": video["height"],
                "width": video["width"],
                "tracks": tracks[video["id"]],
            }
        )
    return records
