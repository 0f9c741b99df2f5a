"""COCO-style instances and captions, and the RefCOCO family as records from either layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from unified.data.formats.files import by_id, listed_file, read_json
from unified.data.formats.records import XYWH_ABS, Annotation, ImageRecord
from unified.data.formats.refer import ReferData, read_refer
from unified.errors import InputError

INSTANCE_KEYS = ("images", "annotations", "categories")
CAPTION_KEYS = ("images", "annotations")


def read_instances(path: Path, folders: Sequence[Path]) -> list[ImageRecord]:
    """Every image of a COCO-style file with its objects; classes are numbered from 0.

    Images without objects are kept. Sentences in ``expressions`` of an image entry are kept too,
    which makes the file one of UniRef's RefCOCO layout: an entry per referred object.

    Args:
        folders: where ``file_name`` is looked for; the first that has the first image is used.
    """
    return _instances(read_json(path, "COCO instances", INSTANCE_KEYS), path, folders)


def _instances(
    content: Mapping[str, Any], path: Path, folders: Sequence[Path]
) -> list[ImageRecord]:
    names = category_names(content, path)
    classes = {number: index for index, number in enumerate(names)}
    images = by_id(content["images"], "images", path)
    for image in images.values():
        _check_image(image, path)
    objects: dict[int, list[Annotation]] = {image: [] for image in images}
    for number, entry in by_id(content["annotations"], "annotations", path).items():
        _check_listed(entry, images, path)
        if entry["category_id"] not in names:
            raise InputError(
                f"{path}: annotation {number} is of category {entry['category_id']}, which is not "
                f"among the categories of the file ({', '.join(map(str, names))})"
            )
        _check_annotation(entry, path)
        annotation = _annotation(entry, classes)
        annotation["category_name"] = names[entry["category_id"]]
        objects[entry["image_id"]].append(annotation)
    folder = _image_folder(content["images"], folders)
    return [_image(image, folder, objects[number]) for number, image in images.items()]


def read_captions(path: Path, folders: Sequence[Path]) -> list[ImageRecord]:
    """One record per image of a file of COCO captions: all it is called, and no objects.

    Images without a caption are left out.

    Args:
        folders: as for ``read_instances``.
    """
    content = read_json(path, "COCO captions", CAPTION_KEYS)
    images = by_id(content["images"], "images", path)
    captions: dict[int, list[str]] = {image: [] for image in images}
    for number, entry in by_id(content["annotations"], "annotations", path).items():
        _check_listed(entry, images, path)
        text = entry.get("caption")
        if not isinstance(text, str) or not text.strip():
            raise InputError(
                f"{path}: annotation {number} has the caption {text!r}: expected words about its "
                "image, as in captions_train2017.json"
            )
        captions[entry["image_id"]].append(text.strip())
    if not content["annotations"]:
        raise InputError(f"{path} has no captions: its list 'annotations' is empty")
    folder = _image_folder(content["images"], folders)
    described = [image for number, image in images.items() if captions[number]]
    for image in described:
        _check_image(image, path)
    return [{**_image(i, folder, []), "expressions": captions[i["id"]]} for i in described]


def _check_listed(entry: Mapping[str, Any], images: Mapping[int, Any], path: Path) -> None:
    """Raises InputError unless the image of an annotation is in the file."""
    if entry["image_id"] not in images:
        raise InputError(
            f"{path}: annotation {entry['id']} is on image {entry['image_id']}, which is not in "
            "the file"
        )


def _check_image(image: Mapping[str, Any], path: Path) -> None:
    """Raises InputError unless an image entry has a name and a size that can be meant."""
    name, size = image["file_name"], (image["height"], image["width"])
    if not isinstance(name, str) or not name:
        raise InputError(
            f"{path}: image {image['id']} has the file_name {name!r}: expected the name of a file"
        )
    if not all(isinstance(side, (int, float)) and side > 0 for side in size):
        raise InputError(
            f"{path}: image {image['id']} has the height and width {size[0]!r}, {size[1]!r}: "
            "expected two numbers above 0"
        )
    _check_expressions(image, f"{path}: image {image['id']}")


def _check_annotation(entry: Mapping[str, Any], path: Path) -> None:
    """Raises InputError unless crowd, sentences and, where it counts, box can be meant."""
    owner = f"{path}: annotation {entry['id']}"
    if entry.get("iscrowd") not in (None, 0, 1):
        raise InputError(f"{owner} has iscrowd {entry['iscrowd']!r}: expected 0 or 1")
    _check_expressions(entry, owner)
    if entry.get("segmentation") not in (None, []):
        return
    box = entry["bbox"]
    numbers = len(box) == 4 and all(isinstance(side, (int, float)) for side in box)
    if not numbers or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        raise InputError(f"{owner} has the bbox {box}: expected x, y, width, height in pixels")


def _check_expressions(entry: Mapping[str, Any], owner: str) -> None:
    sentences = entry.get("expressions")
    if sentences is not None and not isinstance(sentences, list):
        raise InputError(f"{owner} has the expressions {sentences!r}: expected a list of sentences")


def read_described_objects(path: Path, folders: Sequence[Path]) -> list[ImageRecord]:
    """One record per object of a COCO-style file that has sentences.

    Sentences are a list ``expressions`` of an annotation, or of an image entry with the objects
    they refer to.

    Args:
        folders: as for ``read_instances``.
    """
    content = read_json(path, "COCO instances", INSTANCE_KEYS)
    records = _instances(content, path, folders)
    texts = {
        entry["id"]: entry["expressions"]
        for entry in content["annotations"]
        if entry.get("expressions")
    }
    result = [record for record in records if "expressions" in record]
    for record in records:
        for annotation in record["annotations"]:
            if sentences := texts.get(annotation["id"]):
                only: ImageRecord = {**record, "annotations": [annotation]}
                result.append(meant({**only, "expressions": list(sentences)}))
    if not result:
        raise InputError(f"{path} has no sentences: expected a list 'expressions' per annotation")
    given = {entry["id"]: entry.get("segmentation", 0) for entry in content["annotations"]}
    for annotation in (a for record in result for a in record["annotations"]):
        if given[annotation["id"]] in ([], None):
            raise InputError(
                f"{path}: the segmentation of annotation {annotation['id']} is empty, and a "
                "sentence means it: give its polygons or its run-length code"
            )
    return result


def meant(record: ImageRecord) -> ImageRecord:
    """The record of a sentence: what it means counts, also where a labelling tool calls it a crowd.

    CVAT writes every mask that was painted, not outlined, with ``iscrowd`` 1.
    """
    return {**record, "annotations": [{**entry, "iscrowd": 0} for entry in record["annotations"]]}


def category_names(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    """category id -> name, in rising order of the ids; content of the COCO-style file ``path``."""
    categories = by_id(content["categories"], "categories", path)
    return {number: categories[number]["name"] for number in sorted(categories, key=int)}


def read_referred(folder: Path, split_by: str, split: str, image_folder: Path) -> list[ImageRecord]:
    """One record per reference of a split of a REFER folder; the category is 0, "object"."""
    data = read_refer(folder, split_by)
    return [_referred(data, ref, image_folder) for ref in data.select(split)]


def read_mixed(
    folders: Mapping[Path, str], image_folder: Path, *, held_out: Iterable[str]
) -> list[ImageRecord]:
    """The training references of several REFER folders (folder -> split_by) together.

    Images that any of them uses in a split of ``held_out`` are left out of all, because the
    datasets share images and their splits differ.
    """
    sources = [read_refer(folder, split_by) for folder, split_by in folders.items()]
    held = {ref.image_id for data in sources for split in held_out for ref in data.select(split)}
    return [
        _referred(data, ref, image_folder)
        for data in sources
        for ref in data.select("train")
        if ref.image_id not in held
    ]


def one_record_per_sentence(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """Evaluation counts every sentence: records with n sentences become n records.

    ``expression_id`` numbers the sentences of one image from 0.
    """
    result: list[ImageRecord] = []
    by_image = groupby(sorted(records, key=_image_key), key=_image_key)
    for _, group in by_image:
        sentences = ((record, text) for record in group for text in record["expressions"])
        for number, (record, text) in enumerate(sentences):
            result.append({**record, "expressions": [text], "expression_id": number})
    return result


def _image_key(record: ImageRecord) -> str:
    return record["file_name"]


def _referred(data: ReferData, ref: Any, image_folder: Path) -> ImageRecord:
    image = data.images[ref.image_id]
    annotations = [_annotation(entry, None) for entry in data.parts(ref)]
    record = _image(image, image_folder, annotations)
    record["expressions"] = list(ref.sentences)
    return meant(record)


def _annotation(entry: Mapping[str, Any], classes: Mapping[int, int] | None) -> Annotation:
    annotation: Annotation = {
        "id": entry["id"],
        "bbox": entry["bbox"],
        "bbox_mode": XYWH_ABS,
        "category_id": classes[entry["category_id"]] if classes else 0,
        "iscrowd": entry.get("iscrowd", 0),
    }
    if entry.get("segmentation") not in (None, []):  # else only the box is known
        annotation["segmentation"] = entry["segmentation"]
    return annotation


def _image(image: Mapping[str, Any], folder: Path, annotations: list[Annotation]) -> ImageRecord:
    record: ImageRecord = {
        "file_name": str(listed_file(folder, image["file_name"])),
        "image_id": image.get("original_id", image["id"]),
        "height": image["height"],
        "width": image["width"],
        "annotations": annotations,
    }
    if "expressions" in image:
        return meant({**record, "expressions": list(image["expressions"])})
    return record


def _image_folder(images: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> Path:
    for folder in folders:
        if images and listed_file(folder, images[0]["file_name"]).exists():
            return folder
    return folders[0]
