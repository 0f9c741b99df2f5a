"""COCO-style files as labelling tools write them: what is read, and what is one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unified.data.catalog import load_records
from unified.data.check import check_dataset
from unified.data.samples import read_view
from unified.errors import InputError
from unified.label_maps import encode_mask

SIZE = (40, 60)
SQUARE = [10, 5, 30, 5, 30, 25, 10, 25]
AREA = 20 * 20


def annotation(number: int = 7, **changes: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": 1, "category_id": 3, "iscrowd": 0, "bbox": [10, 5, 20, 20]}
    return {**entry, "segmentation": [SQUARE], "expressions": ["the cat"], **changes}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image of own data, whose annotations ``write`` gives."""
    (tmp_path / "own/pets/images").mkdir(parents=True)
    picture = np.zeros((*SIZE, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "own/pets/images/a.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "own"


def write(own: Path, *annotations: dict[str, Any], task: str = "ris", **changes: Any) -> None:
    image = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    content = {"images": [image], "categories": [{"id": 3, "name": "cat"}], **changes}
    content["annotations"] = list(annotations)
    (own / "pets/a.json").write_text(json.dumps(content))
    (own / "pets.yaml").write_text(
        f"task: {task}\nsplit: train\nimages: pets/images\nannotations: pets/a.json\n"
    )


def mask() -> np.ndarray:
    result = np.zeros(SIZE, bool)
    result[5:25, 10:30] = True
    return result


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[10, 5, 30, 5], SQUARE], "polygon 1 of annotation 7 has 2 points: expected 3 or more"),
        ([SQUARE, [10, 5, 30, 5]], "polygon 2 of annotation 7 has 2 points"),
        ([[]], "polygon 1 of annotation 7 has 0 points"),
        ([[10, 5, 30, 5, 30, 25, 10]], "polygon 1 of annotation 7 has 7 numbers: expected pairs"),
        (SQUARE, "polygon 1 of annotation 7 is 10: expected a list of x, y"),
        ([[[10, 5], [30, 5], [30, 25]]], r"polygon 1 of annotation 7 is \[\[10, 5\], \[30, 5\]"),
        ([["a", "b"]], r"polygon 1 of annotation 7 is \['a', 'b'\]: expected a list"),
        ([[10, 5, 30, 5, 30, float("nan")]], "polygon 1 of annotation 7 is .*nan"),
        ([encode_mask(mask())], "polygon 1 of annotation 7 is a run-length code: write it without"),
        ([], "the segmentation of annotation 7 is empty, and a sentence means it"),
        ({}, "the segmentation of annotation 7 is no polygons and no run-length code: expected"),
        ("x", "the segmentation of annotation 7 is no polygons and no run-length code: expected"),
        ({"size": [4, 4], "counts": [16]}, "code of annotation 7 is not of 40 x 60 pixels"),
    ],
)
def test_a_segmentation_that_is_none_is_one_line_with_its_annotation(
    own: Path, segmentation: Any, message: str
) -> None:
    write(own, annotation(segmentation=segmentation))
    with pytest.raises(InputError, match=message) as caught:
        check_dataset("pets")
    assert "a.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "segmentation", [[SQUARE], encode_mask(mask()), {"size": list(SIZE), "counts": [5, 0, 2395]}]
)
def test_an_object_that_a_sentence_means_counts_also_as_a_crowd(
    own: Path, segmentation: Any
) -> None:
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        runs = np.flatnonzero(np.diff(mask().T.ravel(), prepend=False, append=False))
        segmentation["counts"] = np.diff([0, *runs, mask().size]).tolist()
    write(own, annotation(segmentation=segmentation, iscrowd=1))
    assert check_dataset("pets").num_records == 1
    (record,) = load_records("pets")
    masks = read_view(record)[0].masks
    assert len(masks) == 1 and np.array_equal(masks[0], mask())


def test_crowds_of_a_detection_set_are_not_learnt_and_the_check_says_so(own: Path) -> None:
    write(own, annotation(iscrowd=1), annotation(8), task="detection")
    (record,) = load_records("pets")
    assert len(read_view(record)[0].masks) == 1
    (remark,) = check_dataset("pets").remarks
    assert remark.startswith("1 of 2 objects are crowds (iscrowd 1)")


@pytest.mark.parametrize("name", ["images/a.png", "images\\a.png", "a.png", ".\\a.png"])
def test_files_are_found_as_exports_name_them(own: Path, name: str) -> None:
    image = {"id": 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
    write(own, annotation(), images=[image])
    assert check_dataset("pets").num_files == 1
    assert read_view(load_records("pets")[0])[0].masks.sum() == AREA


def twice(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry, entry]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": twice({"id": 1, "file_name": "a.png", "height": 40, "width": 60})}, "images"),
        ({"categories": twice({"id": 1, "name": "cat"})}, "categories"),
    ],
)
@pytest.mark.parametrize("task", ["ris", "detection"])
def test_ids_that_two_entries_have_are_errors(
    own: Path, changes: Any, message: str, task: str
) -> None:
    write(own, annotation(), task=task, **changes)
    with pytest.raises(InputError, match=rf"a\.json has two {message} with the id 1"):
        load_records("pets")
    write(own, annotation(), annotation(expressions=["the blue box"]), task=task)
    with pytest.raises(InputError, match=r"a\.json has two annotations with the id 7"):
        load_records("pets")


def test_what_an_annotation_refers_to_is_there(own: Path) -> None:
    write(own, annotation(category_id=5))
    with pytest.raises(InputError, match=r"annotation 7 is of category 5, which is not .*\(3\)"):
        load_records("pets")
    write(own, annotation(image_id=2))
    with pytest.raises(InputError, match="annotation 7 is on image 2, which is not in the file"):
        load_records("pets")


@pytest.mark.parametrize(
    ("image", "entry", "message"),
    [
        ({"file_name": None}, {}, "image 1 has the file_name None: expected the name of a file"),
        ({"height": "40"}, {}, r"image 1 has the height and width '40', 60: expected two numbers"),
        ({"width": 0}, {}, r"image 1 has the height and width 40, 0: expected two numbers above 0"),
        ({}, {"iscrowd": "0"}, "annotation 7 has iscrowd '0': expected 0 or 1"),
        ({}, {"expressions": "the box"}, "annotation 7 has the expressions 'the box': expected a"),
        ({"expressions": "the box"}, {}, "image 1 has the expressions 'the box': expected a list"),
    ],
)
def test_values_of_another_kind_are_named(own: Path, image: Any, entry: Any, message: str) -> None:
    """As text "0" is true, and a sentence is a list of letters."""
    plain = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    write(own, annotation(**entry), images=[plain | image])
    with pytest.raises(InputError, match=rf"a\.json: {message}"):
        load_records("pets")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([4, 4, float("nan"), 9], r"annotation 7 has the bbox \[4, 4, nan, 9\]: expected x, y,"),
        ([20, 20, -10, -10], r"has the bbox \[20, 20, -10, -10\]: expected x, y, width, height"),
        ([4, 4, 9], r"has the bbox \[4, 4, 9\]: expected x, y, width, height"),
    ],
)
def test_boxes_that_are_none_are_named(own: Path, box: list[float], message: str) -> None:
    write(own, annotation(segmentation=[], bbox=box), task="detection")
    with pytest.raises(InputError, match=message):
        load_records("pets")
    write(own, annotation(bbox=box))  # the mask says where the object is
    assert check_dataset("pets").num_records == 1


def test_boxes_that_end_outside_of_their_images_are_remarked_on(own: Path) -> None:
    """Those of x0, y0, x1, y1 are found by it; a few pixels are usual."""
    write(own, annotation(segmentation=[], bbox=[20, 10, 50, 30]), task="detection")
    (remark,) = check_dataset("pets").remarks
    assert remark.startswith("1 of 1 boxes end outside of their images: expected x, y, width, ")
    write(own, annotation(segmentation=[], bbox=[20, 10, 41, 30]), task="detection")
    assert check_dataset("pets").remarks == ()


def test_relative_coordinates_are_called_so(own: Path) -> None:
    write(own, annotation(segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.6]]))
    with pytest.raises(InputError, match=r"is empty: expected .* object, not shares of the image"):
        check_dataset("pets")


def test_boxes_alone_are_for_detection_and_for_all_objects_of_an_image(own: Path) -> None:
    box = annotation(segmentation=[])
    write(own, box, task="detection")
    assert check_dataset("pets").num_records == 1
    write(own, box, annotation(8), task="detection")
    with pytest.raises(InputError, match="annotation 7 has only a box, but others of its image"):
        check_dataset("pets")
    with pytest.raises(InputError, match=r"a\.png: annotation 7 has only a box"):
        read_view(load_records("pets")[0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_are_read_as_they_are_displayed(own: Path, orientation: int, suffix: str) -> None:
    """Annotations have the displayed size, as labelling tools export it."""
    shown = np.zeros((*SIZE, 3), np.uint8)
    shown[mask()] = 255
    stored = stored_as(shown, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if suffix == "tif" else {"exif": exif.tobytes()}
    Image.fromarray(stored).save(own / f"pets/images/b.{suffix}", **options)
    image = {"id": 1, "file_name": f"b.{suffix}", "height": SIZE[0], "width": SIZE[1]}
    write(own, annotation(), images=[image])
    check_dataset("pets")
    view = read_view(load_records("pets")[0])[0]
    inside = view.masks[0]
    assert view.image[inside].mean() > 250 and view.image[~inside].mean() < 5


def stored_as(shown: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels that a file of an EXIF orientation holds: where its row 0 and column 0 are shown.

    Source: EXIF 2.3, tag 274: 1 top left, 2 top right, 3 bottom right, 4 bottom left, 5 left top,
    6 right top, 7 right bottom, 8 left bottom.
    """
    if orientation > 4:
        shown = shown.transpose(1, 0, 2)
    if orientation in (2, 3, 7, 8):
        shown = shown[:, ::-1]
    if orientation in (3, 4, 6, 7):
        shown = shown[::-1]
    return np.ascontiguousarray(shown)


def test_a_size_from_before_turning_names_the_tag(own: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.zeros((*SIZE, 3), np.uint8))
    picture.save(own / "pets/images/a.png", exif=exif.tobytes())
    write(own, annotation())
    with pytest.raises(InputError, match=r"a\.png is 60 x 40 .*expected 40 x 60.*EXIF"):
        check_dataset("pets")
    with pytest.raises(InputError, match=r"a\.png is 60 x 40 .*expected 40 x 60.*EXIF"):
        read_view(load_records("pets")[0])


def test_captions_of_an_image_come_together(own: Path) -> None:
    said = [
        {"id": n, "image_id": 1, "caption": text} for n, text in enumerate(("A cat.\n", "Cats"))
    ]
    alone = {"id": 2, "file_name": "b.png", "height": 9, "width": 9}
    image = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    write(own, *said, task="caption", images=[image, alone])
    (record,) = load_records("pets")
    assert record["expressions"] == ["A cat.", "Cats"] and record["annotations"] == []
    assert record["task"] == "caption" and Path(record["file_name"]).name == "a.png"
    assert check_dataset("pets").num_files == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": " "}, "annotation 7 has the caption ' ': expected words about its image"),
        ({"caption": None}, "annotation 7 has the caption None: expected words about its image"),
        ({"image_id": 4}, "annotation 7 is on image 4, which is not in the file"),
        (None, "a.json has no captions: its list 'annotations' is empty"),
    ],
)
def test_captions_that_are_none_are_one_line(
    own: Path, changes: dict[str, Any] | None, message: str
) -> None:
    told = [] if changes is None else [{"id": 7, "image_id": 1, "caption": "A cat", **changes}]
    write(own, *told, task="caption")
    with pytest.raises(InputError, match=message) as caught:
        load_records("pets")
    assert "a.json" in str(caught.value) and "\n" not in str(caught.value)


def test_lists_of_captions_by_image_are_not_read(own: Path) -> None:
    write(own, task="caption")
    (own / "pets/a.json").write_text(json.dumps({"1": ["A cat"]}))
    with pytest.raises(InputError, match="no 'images' at its top level: expected COCO captions"):
        load_records("pets")
