"""The REFER layout of RefCOCO, RefCOCO+, RefCOCOg and RefCLEF, and gRefCOCO beside it.

A folder holds ``instances.json`` (COCO style) and ``refs(<split_by>).p``, a pickled list of
dictionaries, or ``grefs(<split_by>).json`` with several targets or none per sentence.

Source: lichengunc/refer and henghuiding/gRefCOCO; file contents, not code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unified.data.formats.files import by_id, polygon_parts, read_json, require
from unified.errors import InputError
from unified.unpickle import load_restricted

NO_TARGET = -1  # what gRefCOCO writes for the annotation of a sentence that refers to nothing


@dataclass(frozen=True)
class Ref:
    """One referred object, group of objects or nothing, with the sentences that refer to it.

    Attributes:
        ann_ids: annotations that are referred to; empty for a no-target reference.
        sentences: the cleaned sentences (``sent``), in the order of the file.
        sentence_ids: one id per sentence.
    """

    ref_id: int
    image_id: int
    ann_ids: tuple[int, ...]
    split: str
    sentences: tuple[str, ...]
    sentence_ids: tuple[int, ...]


@dataclass(frozen=True)
class ReferData:
    """One REFER folder: references by id, images and annotations by COCO id."""

    refs: Mapping[int, Ref]
    images: Mapping[int, Mapping[str, Any]]
    annotations: Mapping[int, Mapping[str, Any]]
    categories: Mapping[int, str]

    def select(self, split: str | None = None) -> tuple[Ref, ...]:
        """The references of a split, in file order; all of them for None."""
        refs = self.refs.values()
        return tuple(ref for ref in refs if split is None or in_split(ref.split, split))

    def parts(self, ref: Ref) -> list[Mapping[str, Any]]:
        """The annotations that ``ref`` refers to."""
        return [self.annotations[ann_id] for ann_id in ref.ann_ids]

    def mask(self, ref: Ref, *, parts: Literal["union", "sum"] = "union") -> np.ndarray:
        """(H, W) uint8 mask of the referred objects, zero for a no-target reference.

        With ``sum``, overlapping polygons of ONE object count twice, as the official REFER reader
        returns them; programs that keep only pixels equal to 1 then lose the overlap.
        """
        image = self.images[ref.image_id]
        merged = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        for annotation in self.parts(ref):
            owner = f"annotation {annotation['id']}"
            height, width = merged.shape
            layers = polygon_parts(annotation["segmentation"], height, width, owner)
            pixels = layers.any(axis=2) if parts == "union" else layers.sum(axis=2)
            merged = np.maximum(merged, pixels.astype(np.uint8))
        return merged

    def box(self, ref: Ref) -> tuple[float, float, float, float] | None:
        """(x, y, w, h) in pixels of a reference to one object; None for several or nothing."""
        if len(ref.ann_ids) != 1:
            return None
        x, y, w, h = self.annotations[ref.ann_ids[0]]["bbox"]
        return x, y, w, h


def in_split(written: str, wanted: str) -> bool:
    """Whether a reference whose file says ``written`` belongs to the split ``wanted``.

    The rule of the official reader: "testA" means every split with the letter A ("testAB" is in
    both testA and testB), and "test" means every split that contains the word.
    """
    if wanted in ("testA", "testB", "testC"):
        return wanted[-1] in written
    if wanted == "test":
        return "test" in written
    return written == wanted


def read_refer(folder: Path | str, split_by: str) -> ReferData:
    """All references of ``refs(<split_by>).p`` or ``grefs(<split_by>).json`` with their objects.

    Raises:
        InputError: a file is missing, damaged, asks to run code, or refers to an absent id.
    """
    folder = Path(folder)
    generalized = folder / f"grefs({split_by}).json"
    path = generalized if generalized.exists() else folder / f"refs({split_by}).p"
    if path.suffix == ".json":
        entries = read_json(path, "the gRefCOCO list of references")
    else:
        entries = read_pickle(require(path, "the pickled list of references of REFER"))
    objects = folder / "instances.json"
    instances = read_json(objects, "COCO instances", keys=("images", "annotations", "categories"))
    refs: dict[int, Ref] = {}
    for ref in _refs(path, entries):
        if refs.setdefault(ref.ref_id, ref) is not ref:
            raise InputError(f"{path} has two references with the ref_id {ref.ref_id}")
    data = ReferData(
        refs=refs,
        images=by_id(instances["images"], "images", objects),
        annotations=by_id(instances["annotations"], "annotations", objects),
        categories={
            number: category["name"]
            for number, category in by_id(instances["categories"], "categories", objects).items()
        },
    )
    _check_ids(path, data)
    return data


def read_pickle(path: Path) -> Any:
    """The lists, dictionaries, strings and numbers of a pickle; nothing in it can run code.

    Raises:
        InputError: the file is damaged or names a class or function.
    """
    try:
        with path.open("rb") as file:
            return load_restricted(file, allowed={})
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(
            f"{path} is not a readable pickle of lists, dictionaries, text and numbers: "
            f"{error}: get the file again from a source you trust"
        ) from error


def _refs(path: Path, entries: Any) -> Iterable[Ref]:
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} holds no references: expected a non-empty list")
    for position, entry in enumerate(entries):
        try:
            yield _ref(entry)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}, entry {position} is not a reference: {error!r}") from error


def _ref(entry: Mapping[str, Any]) -> Ref:
    ann_ids = entry["ann_id"] if isinstance(entry["ann_id"], list) else [entry["ann_id"]]
    return Ref(
        ref_id=entry["ref_id"],
        image_id=entry["image_id"],
        ann_ids=tuple(ann_id for ann_id in ann_ids if ann_id != NO_TARGET),
        split=entry["split"],
        sentences=tuple(sentence["sent"] for sentence in entry["sentences"]),
        sentence_ids=tuple(sentence["sent_id"] for sentence in entry["sentences"]),
    )


def _check_ids(path: Path, data: ReferData) -> None:
    for ref in data.refs.values():
        absent = [ann_id for ann_id in ref.ann_ids if ann_id not in data.annotations]
        if absent or ref.image_id not in data.images:
            what = f"annotation {absent[0]}" if absent else f"image {ref.image_id}"
            raise InputError(
                f"{path}, reference {ref.ref_id} names {what}, which instances.json beside it does "
                "not have: the two files are from different releases"
            )
