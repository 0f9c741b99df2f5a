"""FSS-1000, PASCAL-5i and COCO-20i: one record per image and class, with supports of the class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from unified.data.formats.files import by_stem, image_files, read_lines, require
from unified.data.formats.records import Annotation, ImageRecord
from unified.data.formats.refer import read_pickle
from unified.errors import InputError
from unified.files import subfolders
from unified.inference.image_io import image_size

MAX_SUPPORTS = 10  # kept per record; protocols use 1 or 5
NUM_EPISODES = 1000
NUM_FOLDS = 4
FSS_SPLIT_FILES = {"train": "trn", "val": "val", "test": "test"}
FSS_FIRST_CLASS = {"train": 0, "val": 520, "test": 760}  # of the 1000 classes


def read_fss1000(root: Path, split: str) -> list[ImageRecord]:
    """The images of the classes listed in ``splits/<split>.txt``, ten per class.

    Class ids follow the lists: from 0 in train, 520 in val and 760 in test. The release itself
    has no split; everyone uses the lists that come with hsnet.
    """
    lists = root / "splits" / f"{FSS_SPLIT_FILES[split]}.txt"
    names = read_lines(lists, "one class name per line, from the published split")
    records: list[ImageRecord] = []
    for class_id, name in enumerate(names, start=FSS_FIRST_CLASS[split]):
        records += read_class_folder(root / "images" / name, class_id)
    return records


def read_class_folders(root: Path) -> list[ImageRecord]:
    """A folder of class folders, as FSS-1000's, with all classes in alphabetical order."""
    require(root, "a folder with one folder per class")
    records: list[ImageRecord] = []
    for class_id, name in enumerate(subfolders(root)):
        records += read_class_folder(root / name, class_id)
    return records


def read_class_folder(folder: Path, class_id: int) -> list[ImageRecord]:
    """Images ``<number>.jpg`` with masks ``<number>.png`` of one class, in order of the numbers."""
    found = image_files(folder, "images of one class")
    pictures = by_stem(path for path in found if not _is_mask(path))
    masks = by_stem(path for path in found if _is_mask(path))
    stray = [path for name, path in masks.items() if name not in pictures]
    if stray:
        raise InputError(f"{stray[0].with_suffix('.jpg')} is missing: expected the image of a mask")
    members: list[ImageRecord] = []
    for name, picture in pictures.items():
        mask = masks.get(name, picture.with_suffix(".png"))
        require(mask, f"the mask of {picture.name}")
        members.append(_record(picture, {"mask_file": str(mask)}, class_id, folder.name))
    return _with_supports({class_id: members})


def _is_mask(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def read_pascal5i(root: Path, split: str, fold: int) -> list[ImageRecord]:
    """One fold of PASCAL-5i; classes 5 * fold .. 5 * fold + 4 of 20 are the held-out ones.

    ``splits/{trn,val}/fold<fold>.txt`` lists ``<image>__<class from 1>``. Without it the pairs are
    found by opening every mask of ``ImageSets/Segmentation/<split>.txt``.
    """
    lists = root / "splits" / FSS_SPLIT_FILES[split] / f"fold{fold}.txt"
    if lists.exists():
        pairs = [_pascal_pair(lists, line) for line in read_lines(lists, "images of a fold")]
    else:
        pairs = _pascal_pairs(root, split, fold)
    members: dict[int, list[ImageRecord]] = {}
    for name, class_id in pairs:
        picture = root / "JPEGImages" / f"{name}.jpg"
        mask = root / "SegmentationClassAug" / f"{name}.png"
        record = _record(picture, _class_annotation(mask, class_id), class_id, str(class_id))
        members.setdefault(class_id, []).append(record)
    found = {(r["image_id"], r["class_id"]): r for r in _with_supports(members)}
    return [found[pair] for pair in pairs]  # in the order of the list


def _pascal_pair(path: Path, line: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+)__(\d+)", line)
    if match is None:
        raise InputError(
            f"{path} has the line {line!r}: expected <image>__<class>, 2007_000032__01"
        )
    return match[1], int(match[2]) - 1


def _pascal_pairs(root: Path, split: str, fold: int) -> list[tuple[str, int]]:
    from unified.mask_files import read_ids

    lists = root / "ImageSets/Segmentation"
    choices = ("trainaug.txt", "train.txt") if split == "train" else ("val.txt",)
    path = next((lists / name for name in choices if (lists / name).exists()), lists / choices[-1])
    pairs = []
    for name in read_lines(path, "one image name per line, or fold lists in splits/"):
        values = np.unique(read_ids(root / "SegmentationClassAug" / f"{name}.png"))
        for class_id in (values[(values > 0) & (values < 255)].astype(int) - 1).tolist():
            if (class_id // 5 == fold) == (split != "train"):
                pairs.append((name, class_id))
    return pairs


def read_coco20i(root: Path, split: str, fold: int) -> list[ImageRecord]:
    """One fold of COCO-20i; classes whose id leaves the remainder ``fold`` by 4 are held out.

    ``splits/{trn,val}/fold<fold>.pkl`` is a pickle of class id -> image names.
    """
    path = root / "splits" / FSS_SPLIT_FILES[split] / f"fold{fold}.pkl"
    listed = read_pickle(require(path, "a pickle of class id -> image names of a fold"))
    if not isinstance(listed, dict):
        raise InputError(f"{path} holds a {type(listed).__name__}: expected a dictionary")
    members: dict[int, list[ImageRecord]] = {}
    for class_id, names in sorted(listed.items()):
        for name in names:
            mask = (root / "annotations" / name).with_suffix(".png")
            annotation = _class_annotation(mask, class_id)
            record = _record(root / name, annotation, class_id, str(class_id))
            members.setdefault(class_id, []).append(record)
    return _with_supports(members)


def pascal_episodes(records: Sequence[ImageRecord], seed: int = 0) -> list[ImageRecord]:
    """1,000 test episodes: every record in turn as query, supports drawn from its whole class.

    A support is never the query, but may come twice. With one support these are the episodes of
    hsnet for this seed, whose test takes 0; further ones come from a stream of their own.

    Source: hsnet 5ccb58d ``DatasetPASCAL.sample_episode`` and its test loop.
    """
    draw = _SupportDraw(records, seed)
    return [draw.episode(records[i % len(records)]) for i in range(NUM_EPISODES)]


def coco_episodes(records: Sequence[ImageRecord], seed: int = 0) -> list[ImageRecord]:
    """1,000 test episodes: a class, a query of it and its supports, all drawn at random.

    As ``pascal_episodes`` otherwise. Source: hsnet 5ccb58d ``DatasetCOCO.load_frame``.
    """
    draw = _SupportDraw(records, seed)
    classes = sorted(draw.members)
    chosen = []
    for _ in range(NUM_EPISODES):
        members = draw.members[classes[_choice(draw.random, len(classes))]]
        chosen.append(draw.episode(members[_choice(draw.random, len(members))]))
    return chosen


class _SupportDraw:
    """Draws supports in the order in which hsnet uses numpy's random numbers."""

    def __init__(self, records: Sequence[ImageRecord], seed: int) -> None:
        self.random = np.random.RandomState(seed)
        self._more = np.random.RandomState([seed, 1])
        self.members: dict[int, list[ImageRecord]] = {}
        for record in records:
            alone: Any = {key: value for key, value in record.items() if key != "supports"}
            self.members.setdefault(record["class_id"], []).append(alone)

    def episode(self, query: ImageRecord) -> ImageRecord:
        """The query with ``MAX_SUPPORTS`` supports."""
        members = self.members[query["class_id"]]
        supports: list[ImageRecord] = []
        while len(supports) < MAX_SUPPORTS:
            random = self._more if supports else self.random
            support = members[_choice(random, len(members))]
            if support["image_id"] != query["image_id"]:
                supports.append(support)
        return {**query, "supports": supports}


def _choice(random: np.random.RandomState, num: int) -> int:
    """A number below ``num``, as numpy draws one without replacement."""
    return int(random.choice(num, 1, replace=False)[0])


def _class_annotation(mask: Path, class_id: int) -> Annotation:
    return {"mask_file": str(mask), "mask_value": class_id + 1}


def _record(picture: Path, annotation: Annotation, class_id: int, name: str) -> ImageRecord:
    height, width = _size(picture)
    return {
        "file_name": str(picture),
        "image_id": picture.stem,
        "height": height,
        "width": width,
        "annotations": [{**annotation, "category_id": 0, "iscrowd": 0}],
        "class_id": class_id,
        "class_name": name,
    }


@lru_cache(maxsize=200_000)
def _size(picture: Path) -> tuple[int, int]:
    return image_size(picture)


def _with_supports(members: Mapping[int, Sequence[ImageRecord]]) -> list[ImageRecord]:
    """All records, each with the next ones of its class, in a circle, as its supports."""
    result: list[ImageRecord] = []
    for class_id, records in members.items():
        if len(records) < 2:
            raise InputError(
                f"class {records[0]['class_name']} (id {class_id}) has the only image "
                f"{records[0]['file_name']}: a support image needs at least two"
            )
        for index, record in enumerate(records):
            others = [*records[index + 1 :], *records[:index]][:MAX_SUPPORTS]
            result.append({**record, "supports": list(others)})
    return result
