"""Sentences in a file of their own: what is read, what is refused, and those of this repository."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unified.data.formats.expressions import (
    ABSENT_KINDS,
    KINDS,
    check_sentences,
    read_expressions,
)
from unified.data.formats.records import annotation_mask
from unified.data.synthetic.writing import save_jpeg
from unified.errors import InputError
from unified.label_maps import write_label_map

FOLDER = Path(__file__).parents[4] / "datasets/expressions"
FILES = sorted(path for path in FOLDER.glob("*.json") if path.name != "split.json")


def entry(sentence: str, ids: list[int], image: int | str = 1, **changes: Any) -> dict[str, Any]:
    absent = None if ids else "thing"
    return {
        "image_id": image,
        "file_name": f"{image}.jpg",
        "annotation_ids": ids,
        "sentence": sentence,
        "absent": absent,
        **changes,
    }


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """Two objects on image 1, one on image 2."""
    path = tmp_path / "instances.json"
    box = {"category_id": 7, "iscrowd": 0, "bbox": [1, 1, 4, 4]}
    square = {"segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]], **box}
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 8, "width": 8} for n in (1, 2)],
        "categories": [{"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 10 * image + n, "image_id": image, **square}
            for image, n in ((1, 0), (1, 1), (2, 0))
        ],
    }
    path.write_text(json.dumps(content))
    return path


def read(instances: Path, *entries: dict[str, Any]) -> list[Any]:
    path = instances.with_name("said.json")
    path.write_text(json.dumps({"expressions": entries}))
    return read_expressions(path, instances, instances.parent)


def test_sentences_about_the_same_objects_are_one_record(instances: Path) -> None:
    records = read(
        instances,
        entry("left dog", [10]),
        entry("both dogs", [10, 11]),
        entry("the first", [10]),
        entry("two dogs", [11, 10]),
        entry("a cat", [], kind="absent"),
        entry("left dog", [20], image=2, kind="place"),
    )
    found = [
        (r["image_id"], [a["id"] for a in r["annotations"]], r["expressions"]) for r in records
    ]
    assert found == [
        (1, [10], ["left dog", "the first"]),
        (1, [10, 11], ["both dogs", "two dogs"]),
        (1, [], ["a cat"]),
        (2, [20], ["left dog"]),
    ]
    assert records[0]["file_name"] == str(instances.with_name("1.jpg"))
    assert records[0]["annotations"][0]["segmentation"] == [[1, 1, 5, 1, 5, 5, 1, 5]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([entry("dog", [10], image=3)], "about image 3: not in"),
        ([entry("dog", [10], file_name="2.jpg")], r"is about 2\.jpg: image 1"),
        ([entry("dog", [20])], "annotation 20 is not on that image"),
        ([entry("dogs", [10, 10])], "names annotation 10 twice"),
        ([entry("  ", [10])], "expected words"),
        ([entry(None, [10])], "expected words"),  # type: ignore[arg-type]
        ([entry("dog", [10]), entry(" Dog", [10])], "twice in image 1"),
        ([entry("dog", [10]), entry("dog", [11])], r"of \[10\] and of \[11\] in image 1"),
        ([entry("dog", [10]), entry("dog", [])], r"of \[10\] and of \[\] in image 1"),
        ([entry("dog", [10], absent="thing")], "absent 'thing' and 1 annotations"),
        ([entry("dog", [], absent=None)], "absent None and 0 annotations"),
        ([entry("dog", [], absent="maybe")], "absent 'maybe'"),
        ([{"sentence": "dog"}], "expected the keys"),
        ([entry("dog", [10], kinds="name")], "expected the keys"),
        ([entry("dog", [10], kind="shape")], "kind 'shape' and 1 annotations: expected one of"),
        ([entry("dog", [10], kind="absent")], "kind 'absent' and 1 annotations"),
        ([entry("cow", [], kind="name")], "kind 'name' and 0 annotations"),
    ],
)
def test_wrong_entries_are_named(
    wrong: list[dict[str, Any]], message: str, instances: Path
) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(instances, *wrong)
    assert f"said.json: expression {len(wrong) - 1}" in str(error.value)


def test_objects_may_be_values_of_label_maps(tmp_path: Path) -> None:
    labels = np.zeros((8, 12), np.uint8)
    labels[2:4, :5], labels[4:, 6:], labels[0] = 7, 9, 255
    write_label_map(tmp_path / "masks/a.png", labels)
    save_jpeg(tmp_path / "images/a.jpg", np.zeros((8, 12, 3), np.uint8))
    path = tmp_path / "said.json"
    entries = [
        entry("red shoes", [7], image="a"),
        entry("the woman", [9, 7], image="a"),
        entry("hat", [], image="a"),
    ]
    path.write_text(json.dumps({"expressions": entries}))
    records = read_expressions(path, tmp_path / "masks", tmp_path / "images")
    masks = [
        [annotation_mask(a, r["height"], r["width"]) for a in r["annotations"]] for r in records
    ]
    assert [r["expressions"] for r in records] == [["red shoes"], ["the woman"], ["hat"]]
    assert [len(found) for found in masks] == [1, 2, 0]
    assert (masks[0][0] == (labels == 7)).all()
    assert (np.any(masks[1], axis=0) == np.isin(labels, (7, 9))).all()
    entries.append(entry("the sky", [255], image="a"))
    path.write_text(json.dumps({"expressions": entries}))
    with pytest.raises(InputError, match="annotation 255 is not on that image"):
        read_expressions(path, tmp_path / "masks", tmp_path / "images")
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(InputError, match=r"masks/a\.png is missing"):
        read_expressions(path, tmp_path / "masks", tmp_path / "images")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sentences_of_the_repository_keep_to_their_part(path: Path) -> None:
    entries = json.loads(path.read_text(encoding="utf-8"))["expressions"]
    check_sentences(entries, path)
    split = json.loads((FOLDER / "split.json").read_text())
    assert len(split["val"]) == 60 and len(split["choose"]) == 40
    held = set(split["val"]) | set(split["choose"])
    assert len(held) == 100
    images = {entry["image_id"] for entry in entries}
    assert images <= set(split[path.stem]) if path.stem in split else not images & held


def test_all_parts_of_the_repository_are_there() -> None:
    assert {path.stem for path in FILES} >= {"train", "choose", "val"}


@pytest.mark.parametrize("part", ["choose", "val"])
def test_every_kind_of_sentence_is_in_what_is_measured(part: str) -> None:
    entries = json.loads((FOLDER / f"{part}.json").read_text(encoding="utf-8"))["expressions"]
    counts = Counter(entry["kind"] for entry in entries)
    assert set(counts) == {*KINDS, *ABSENT_KINDS}
    assert min(counts.values()) >= 20
    long = [entry["sentence"] for entry in entries if entry["kind"] == "long"]
    assert all(len(sentence.split()) >= 8 for sentence in long)
    several = [entry for entry in entries if entry["kind"] == "plural"]
    assert all(len(entry["annotation_ids"]) > 1 for entry in several)
