"""Clips with sentences: Ref-YouTube-VOS, Ref-DAVIS17 and MeViS, one record per sentence."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified.data.formats.clips import read_clip, read_davis
from unified.data.formats.files import read_json, require
from unified.data.formats.records import ClipRecord
from unified.errors import InputError
from unified.files import subfolders
from unified.inference.image_io import image_size

REF_DAVIS_SETS = ("annot1", "annot1_full_video", "annot2", "annot2_full_video")


def read_meta_expressions(path: Path) -> dict[str, Any]:
    """clip -> entry with ``expressions`` and ``frames``, from a ``meta_expressions.json``."""
    videos = read_json(path, "sentences of every clip", ("videos",))["videos"]
    for name, video in videos.items():
        missing = [key for key in ("expressions", "frames") if key not in video]
        if missing:
            raise InputError(f"{path}: clip {name} has no {missing[0]!r}")
    return dict(videos)


def read_refytvos(root: Path, split: str) -> list[ClipRecord]:
    """Ref-YouTube-VOS; ``split`` is train or valid.

    Of the clips in the validation file those in ``meta_expressions/test`` are hidden and left out.
    Validation masks are optional: ``valid/Annotations/<clip>/<expression>/<frame>.png`` with one
    object, or indexed ``valid/Annotations/<clip>/<frame>.png`` with ``obj_id`` in the sentences.
    """
    expressions = root / "meta_expressions"
    path = expressions / split / "meta_expressions.json"
    videos = read_meta_expressions(path)
    hidden = expressions / "test/meta_expressions.json"
    if split != "train" and hidden.exists():
        for name in read_meta_expressions(hidden):
            videos.pop(name, None)
    records: list[ClipRecord] = []
    for name, video in sorted(videos.items()):
        records += read_clip_expressions(
            root / split / "JPEGImages" / name, root / split / "Annotations" / name, video
        )
    if split == "train" and any("target_ids" not in record for record in records):
        raise InputError(f"{path} has sentences without obj_id: expected the training file")
    return records


def read_clip_expressions(images: Path, masks: Path, video: Mapping[str, Any]) -> list[ClipRecord]:
    """The records of one clip: its frames as listed, its masks where there are any."""
    per_sentence = masks.exists() and bool(subfolders(masks))
    shared: ClipRecord | None = None
    records = []
    for number, entry in video["expressions"].items():
        folder = masks / number if per_sentence else masks
        if per_sentence or shared is None:
            clip = read_clip(
                images,
                folder if folder.exists() else None,
                clip_id=images.name,
                binary_masks=per_sentence,
            )
            shared = clip = _select_frames(clip, video["frames"])
        record: ClipRecord = {**shared, "expression": entry["exp"], "expression_id": number}
        if per_sentence:
            record["target_ids"] = [1]
        elif "obj_id" in entry:
            record["target_ids"] = [int(entry["obj_id"])]
        records.append(record)
    return records


def _select_frames(record: ClipRecord, frames: list[str]) -> ClipRecord:
    """The record with only the frames that the sentence file lists, in its order."""
    index = {name: position for position, name in enumerate(record["frame_names"])}
    missing = [name for name in frames if name not in index]
    if missing:
        folder = Path(record["file_names"][0]).parent
        raise InputError(f"{folder / missing[0]}.jpg is missing: the sentence file lists it")
    chosen = [index[name] for name in frames]
    result: ClipRecord = {
        **record,
        "frame_names": list(frames),
        "file_names": [record["file_names"][position] for position in chosen],
    }
    if "mask_files" in record:
        result["mask_files"] = [record["mask_files"][position] for position in chosen]
        result["all_masked"] = True  # the frames that have masks are listed
    return result


def read_refdavis(root: Path, davis: Path, number: int) -> list[ClipRecord]:
    """One of the four sentence sets of Ref-DAVIS17 on the validation sequences of DAVIS 2017.

    A line of ``davis_text_annotations/Davis17_*.txt`` is a sequence, an object id and a sentence.
    """
    path = root / f"davis_text_annotations/Davis17_{REF_DAVIS_SETS[number]}.txt"
    content = require(path, "lines of sequence, object id and sentence").read_bytes()
    text = content.removeprefix(BOM_UTF8).decode("latin-1")  # as released
    clips = {r["clip_id"]: r for r in read_davis(davis, 2017, "val", "Annotations_unsupervised")}
    records: list[ClipRecord] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = re.fullmatch(r"(\S+)\s+(\d+)\s+\"?(.*?)\"?", line)
        if match is None:
            raise InputError(f"{path} has the line {line!r}: expected 'bear 1 \"a brown bear\"'")
        clip = clips.get(match[1])
        if clip is not None:
            sentence = {"expression": match[3], "expression_id": match[2]}
            records.append({**clip, **sentence, "target_ids": [int(match[2])]})  # type: ignore[typeddict-item]
    missing = sorted(set(clips) - {record["clip_id"] for record in records})
    if missing:
        raise InputError(f"{path} has no sentence for the sequence {missing[0]}")
    return records


def read_mevis(root: Path, split: str) -> list[ClipRecord]:
    """MeViS; ``split`` is train, valid_u, or valid, which has no masks.

    Object ids are annotation ids. Tracks are read from ``mask_dict.json``, or from the folder
    ``mask_dict`` of one file per annotation where ``tools/data.py convert`` made it.
    """
    folder = root / split
    videos = read_meta_expressions(folder / "meta_expressions.json")
    masks = None if split == "valid" else _mevis_tracks(folder)
    records: list[ClipRecord] = []
    for name, video in sorted(videos.items()):
        frames = [str(folder / "JPEGImages" / name / f"{frame}.jpg") for frame in video["frames"]]
        clip: ClipRecord = {
            "clip_id": name,
            "file_names": frames,
            "frame_names": list(video["frames"]),
        }
        clip["height"], clip["width"] = image_size(Path(frames[0]))
        for number, entry in video["expressions"].items():
            record: ClipRecord = {**clip, "expression": entry["exp"], "expression_id": number}
            if masks is not None:
                record["target_ids"] = list(entry["anno_id"])
                record["tracks"] = {
                    anno_id: _mevis_track(masks, folder, anno_id) for anno_id in entry["anno_id"]
                }
            records.append(record)
    return records


def _mevis_tracks(folder: Path) -> dict[str, list[Any] | str]:
    split_up = folder / "mask_dict"
    if split_up.exists():
        return {path.stem: str(path) for path in split_up.glob("[!.]*.json")}
    content: dict[str, list[Any] | str] = read_json(
        folder / "mask_dict.json", "run-length codes of every annotation"
    )
    return content


def _mevis_track(
    masks: Mapping[str, list[Any] | str], folder: Path, anno_id: int
) -> list[Any] | str:
    if str(anno_id) not in masks:
        raise InputError(f"{folder / 'mask_dict.json'} has no masks of annotation {anno_id}")
    return masks[str(anno_id)]
