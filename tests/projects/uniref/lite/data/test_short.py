"""Short sentences about annotated boxes, and the sets for the chooser that they are part of."""

from __future__ import annotations

import importlib.util
import json
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from projects.uniref.lite.data.short import short_sentences
from unified.data.catalog import load_records

ROOT = Path(__file__).parents[5]
CATEGORIES = [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "tv"}]


def boxes(*given: tuple[int, int, int, int, int], image: int = 1, crowd: int = 0) -> Any:
    """Square annotations of id, category, left, top and side."""
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "iscrowd": crowd,
            "bbox": [x, y, side, side],
            "area": side * side,
            "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
        }
        for number, category, x, y, side in given
    ]


def said(*annotations: Any, seed: int = 0) -> dict[str, list[int]]:
    """What is said of an image of 100 x 100."""
    images = [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}]
    coco = {"images": images, "annotations": [*chain(*annotations)], "categories": CATEGORIES}
    return {
        entry["sentence"]: entry["annotation_ids"] for entry in short_sentences(coco, {1}, seed)
    }


@pytest.mark.parametrize("seed", range(20))
def test_sentences_mean_what_they_say(seed: int) -> None:
    row = boxes((5, 1, 70, 40, 10), (6, 1, 10, 42, 20), (7, 1, 40, 41, 10))
    sentences = said(row, boxes((8, 2, 2, 60, 10)), seed=seed)
    meant = {
        "5": "right cup, rightmost cup, cup on the right, the cup on the far right, "
        "first cup from right",
        "6": "left cup, leftmost cup, cup on the left, the cup on the far left, "
        "first cup from left, biggest cup, largest cup, the big cup, closest cup",
        "7": "middle cup, cup in the middle, center cup, second cup from the left, "
        "second cup from left, second cup from the right, second cup from right",
        "8": "dog, the dog, dog on the left",
        "5 6 7": "all cups, the cups, all the cups, cups",
        "": "tv, a tv, the tv, television, a television, the television, screen, a screen, "
        "the screen",
    }
    for text, ids in sentences.items():
        assert text in meant[" ".join(map(str, ids))].split(", ")
    assert sorted(sentences.values()) == [[], [5], [5, 6, 7], [6], [6], [7], [7], [8], [8]]


def test_order_is_counted_from_both_sides() -> None:
    row = boxes(*((number, 1, 15 * number, 40, 10) for number in range(5)))
    counted: dict[str, int] = {}
    for seed in range(60):
        counted |= {
            text.replace("from the", "from"): ids[0]
            for text, ids in said(row, seed=seed).items()
            if text.startswith(("second", "third", "fourth"))
        }
    ordinals = {"second": 1, "third": 2, "fourth": 3}
    assert counted == {
        f"{ordinal} cup from {side}": place if side == "left" else 4 - place
        for ordinal, place in ordinals.items()
        for side in ("left", "right")
    }


def test_what_cannot_be_told_apart_is_not_named() -> None:
    stacked = boxes((5, 1, 40, 40, 10), (6, 1, 41, 41, 10))
    assert {tuple(ids) for ids in said(stacked).values()} == {(5, 6), ()}
    crowd = boxes((6, 1, 60, 40, 20), crowd=1)
    for more in (boxes((5, 1, 10, 40, 10)), boxes((5, 2, 10, 40, 10))):
        assert not any("cup" in text for text in said(more, crowd))


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("p", ROOT / "datasets/prepare_chooser.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sets_are_own_data_of_the_images_for_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expressions = ROOT / "datasets/expressions"
    train = json.loads((expressions / "train.json").read_text())["expressions"][0]
    held = json.loads((expressions / "split.json").read_text())["val"][0]
    images = [
        {"id": number, "file_name": file, "width": 100, "height": 100}
        for number, file in ((train["image_id"], train["file_name"]), (held, "b.jpg"))
    ]
    annotations = boxes((5, 2, 40, 40, 10), image=train["image_id"])
    annotations += boxes((6, 1, 40, 40, 10), image=held)
    (tmp_path / "images").mkdir()
    coco = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    objects = tmp_path / "objects.json"
    objects.write_text(json.dumps(coco))
    out = tmp_path / "sets"
    command = ["--coco", str(tmp_path / "images"), str(objects), "--out", str(out)]
    assert script().main(command) == 0
    assert "3 short sentences" in capsys.readouterr().out
    monkeypatch.setenv("DETECTRON2_DATASETS", str(out))
    records: Any = load_records("my_short")
    assert {record["image_id"] for record in records} == {train["image_id"]}
    assert [entry["id"] for record in records for entry in record["annotations"]] == [5]
    assert {path.stem for path in (out / "own").iterdir()} == {
        "my_written",
        "my_short",
        "my_choose",
    }
    assert script().main(command) == 2
    assert "exists: give another --out" in capsys.readouterr().err
    objects.write_text(json.dumps(coco | {"annotations": []}))
    assert script().main([*command[:-1], str(tmp_path / "none")]) == 2
    assert "has no objects in images of" in capsys.readouterr().err
