"""Sentences about images in a file of their own, beside a COCO-style file or label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified.data.formats.coco import meant, read_instances
from unified.data.formats.files import listed_file, read_json
from unified.data.formats.labelled import read_labelled_images
from unified.data.formats.records import Annotation, ImageRecord
from unified.errors import InputError

KEYS = {"image_id", "file_name", "annotation_ids", "sentence", "absent"}
ABSENT = ("thing", "detail")  # nothing of that name is there; something is, but not like this
KINDS = ("name", "colour", "place", "order", "part", "plural", "relation", "action", "long")
ABSENT_KINDS = ("absent", "nonsense")  # plausible; words that nobody understands


def read_expressions(path: Path, objects: Path, folder: Path) -> list[ImageRecord]:
    """One record per set of objects that sentences are about; absent things have no annotations.

    Args:
        path: JSON with a list ``expressions``, see datasets/expressions/README.md.
        objects: a COCO-style file, or a folder of label maps, with all images and annotations that
            ``path`` names.
        folder: where its images are.

    Raises:
        InputError: a file is missing, or an entry of ``path`` is wrong or does not fit to
            ``objects``; names the first one.
    """
    entries = read_json(path, "sentences about images", ["expressions"])["expressions"]
    check_sentences(entries, path)
    is_folder = objects.is_dir()
    found = (
        read_labelled_images(folder, objects)
        if is_folder
        else read_instances(objects, [folder, folder.parent])
    )
    images = {record["image_id"]: record for record in found}
    records: dict[tuple[int | str, frozenset[int]], ImageRecord] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: expression {number} ({entry['sentence']!r})"
        image = images.get(entry["image_id"])
        if image is None:
            raise InputError(f"{where} is about image {entry['image_id']}: not in {objects}")
        named = {listed_file(place, entry["file_name"]) for place in (folder, folder.parent)}
        if Path(image["file_name"]) not in named:
            raise InputError(
                f"{where} is about {entry['file_name']}: image {entry['image_id']} of {objects} "
                f"is {image['file_name']}"
            )
        chosen = _find(entry["annotation_ids"], image["annotations"], where)
        key = (entry["image_id"], frozenset(entry["annotation_ids"]))
        record = records.setdefault(key, meant({**image, "annotations": chosen, "expressions": []}))
        record["expressions"].append(entry["sentence"])
    return list(records.values())


def check_sentences(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Checks what can be known of the entries of a file without its images.

    Raises:
        InputError: names the first entry that lacks a key, is empty, says the same of its image as
            another one, or says of present objects that they are absent.
    """
    said: dict[tuple[int | str, str], tuple[int, list[int]]] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: expression {number}"
        if not isinstance(entry, dict) or set(entry) - {"kind"} != KEYS:
            raise InputError(
                f"{where} is {entry!r}: expected the keys {sorted(KEYS)} and, if known, 'kind'"
            )
        words = entry["sentence"].split() if isinstance(entry["sentence"], str) else []
        if not words:
            raise InputError(f"{where} has the sentence {entry['sentence']!r}: expected words")
        ids = entry["annotation_ids"]
        if bool(ids) != (entry["absent"] is None) or entry["absent"] not in (None, *ABSENT):
            raise InputError(
                f"{where} has absent {entry['absent']!r} and {len(ids)} annotations: expected null "
                f"with some, or one of {ABSENT} without any"
            )
        kinds = KINDS if ids else ABSENT_KINDS
        if "kind" in entry and entry["kind"] not in kinds:
            raise InputError(
                f"{where} has the kind {entry['kind']!r} and {len(ids)} annotations: expected one "
                f"of {kinds}"
            )
        key = (entry["image_id"], " ".join(words).casefold())
        if key in said:
            other, other_ids = said[key]
            fault = "twice" if set(other_ids) == set(ids) else f"of {other_ids} and of {ids}"
            raise InputError(
                f"{where} says {entry['sentence']!r} {fault} in image {entry['image_id']}, as "
                f"expression {other} does: a sentence tells its objects from all others"
            )
        said[key] = (number, ids)


def _find(ids: Sequence[int], annotations: Sequence[Annotation], where: str) -> list[Annotation]:
    """The annotations of an image with ``ids``."""
    known = {annotation["id"]: annotation for annotation in annotations}
    for number in ids:
        if number not in known:
            raise InputError(f"{where}: annotation {number} is not on that image")
        if ids.count(number) > 1:
            raise InputError(f"{where} names annotation {number} twice")
    return [known[number] for number in ids]
