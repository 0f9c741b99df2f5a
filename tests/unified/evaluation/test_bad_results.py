"""Every fault of results in JSON: one error that names file and entry, or a note on the card."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
from pycocotools import mask as coco_mask

from unified.data.formats.files import segmentation_mask
from unified.errors import InputError
from unified.evaluation.protocols import evaluate
from unified.evaluation.report import Request

sys.path.insert(0, str(Path(__file__).parent))
from golden_folders import recorded, write_json


@pytest.mark.parametrize(
    ("protocol", "truth", "results", "message"),
    [
        ("youtube-vis", {"videos": [], "annotations": [], "categories": []}, {}, "holds a dict"),
        ("youtube-vis", {"images": []}, [], "has no 'videos'"),
        ("coco-mask", {"videos": []}, [], "has no 'images'"),
        (
            "coco-mask",
            {"images": [], "annotations": [], "categories": []},
            [{"video_id": 1, "segmentations": []}],
            "entry 0 has no 'image_id', .* another benchmark",
        ),
        (
            "grefcoco-box",
            {"images": [{"id": 1}], "annotations": [], "categories": []},
            [1],
            "is no object of image id",
        ),
    ],
)
def test_json_of_another_benchmark(
    tmp_path: Path, protocol: str, truth: object, results: object, message: str
) -> None:
    request = Request(
        write_json(tmp_path / "gt.json", truth), write_json(tmp_path / "r.json", results)
    )
    with pytest.raises(InputError, match=message) as caught:
        evaluate(protocol, request)
    assert str(tmp_path) in str(caught.value)


COCO_TRUTH = {
    "images": [{"id": 1, "height": 8, "width": 9}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16}],
    "categories": [{"id": 1}],
}


COCO_RESULT = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("side", "change", "message"),
    [
        ("pred", {"score": None}, r"pred\.json, entry 0: score is None, expected a number"),
        ("pred", {"score": float("nan")}, r"entry 0: score is nan, expected a number"),
        ("pred", {"bbox": [1, 2]}, r"entry 0: bbox is \[1, 2\], expected 4 numbers"),
        ("pred", {"bbox": [5, 5, -4, 4]}, r"entry 0: bbox is \[5, 5, -4, 4\], expected 4 .* width"),
        ("pred", {"image_id": "1"}, "a result has image_id '1', which the ground truth does not"),
        ("pred", {"image_id": [1]}, r"entry 0: image_id is \[1\], expected a number or text"),
        ("pred", {"image_id": 7}, r"pred\.json against .*gt\.json: a result has image_id 7"),
        ("pred", {"category_id": 7}, r"entry 0 has category_id 7, which .*gt\.json does not"),
        ("annotations", {"area": "x"}, r"gt\.json, annotations, entry 0: area is 'x'"),
        ("images", {"height": 0}, r"gt\.json, images, entry 0: height is 0"),
    ],
)
def test_values_that_cannot_be_scored(
    tmp_path: Path, side: str, change: dict[str, object], message: str
) -> None:
    truth, results = copy.deepcopy(COCO_TRUTH), [dict(COCO_RESULT)]
    request = Request(tmp_path / "gt.json", tmp_path / "pred.json")
    write_json(request.truth, truth)
    write_json(request.prediction, results)
    assert evaluate("coco-box", request).scores.numbers["AP"] == pytest.approx(100)
    (results if side == "pred" else truth[side])[0].update(change)
    write_json(request.truth, truth)
    write_json(request.prediction, results)
    with pytest.raises(InputError, match=message):
        evaluate("coco-box", request)


def test_images_without_a_result_are_on_the_card(tmp_path: Path) -> None:
    """Finding nothing is no fault, unless the results are not all there."""
    images = [{"id": i, "height": 8, "width": 9} for i in (1, 2, 3)]
    truth = write_json(tmp_path / "gt.json", {**COCO_TRUTH, "images": images})
    request = Request(truth, tmp_path / "pred.json")
    notes = []
    for results in ([], [COCO_RESULT], [{**COCO_RESULT, "image_id": i} for i in (1, 2, 3)]):
        write_json(request.prediction, results)
        notes.append(evaluate("coco-box", request).card.notes)
    assert notes == [("3 images without a result",), ("2 images without a result",), ()]


def test_boxes_of_an_image_that_is_not_there(tmp_path: Path) -> None:
    request = Request(tmp_path / "gt.json", tmp_path / "pred.json", allow_missing=True)
    write_json(request.truth, COCO_TRUTH)
    write_json(request.prediction, [COCO_RESULT, {**COCO_RESULT, "image_id": 8}])
    with pytest.raises(InputError, match=r"pred\.json has image 8, which the ground truth"):
        evaluate("uniref-box", request)


def test_a_folder_is_no_annotation_file(tmp_path: Path) -> None:
    write_json(tmp_path / "pred.json", [COCO_RESULT])
    with pytest.raises(InputError, match="is a folder, not a JSON file: expected COCO instances"):
        evaluate("coco-box", Request(tmp_path, tmp_path / "pred.json"))


def test_masks_of_another_size(tmp_path: Path) -> None:
    content = recorded("youtubevis")
    code = next(c for c in content["results"][0]["segmentations"] if c)
    code["size"] = [30, 40]
    truth = write_json(tmp_path / "gt.json", content["ground_truth"])
    results = write_json(tmp_path / "pred.json", content["results"])
    with pytest.raises(InputError, match=r"pred\.json against .* 40x30 pixels, its image is 80x60"):
        evaluate("youtube-vis", Request(truth, results))


def test_boxes_that_have_no_score(tmp_path: Path) -> None:
    truth = {**COCO_TRUTH, "images": [{"id": 1}]}
    boxes = [[1, 1, 5, 5], [1, 1, 2, 2]]
    found = {"1": {"scores": [0.9], "boxes_xyxy": boxes}}
    request = Request(
        write_json(tmp_path / "gt.json", truth), write_json(tmp_path / "pred.json", found)
    )
    with pytest.raises(InputError, match=r"pred\.json, image 1, entry 1: score is None"):
        evaluate("grefcoco-box", request)
    write_json(request.prediction, {"1": {"scores": [0.9, 0.8, 0.7], "boxes_xyxy": boxes}})
    with pytest.raises(InputError, match=r"entry 2: box_xyxy is None, .* x and y of two corners"):
        evaluate("grefcoco-box", request)
    write_json(request.prediction, {"1": {"scores": [], "boxes_xyxy": []}, "2": {}})
    with pytest.raises(InputError, match=r"pred\.json has image '2', which the ground truth"):
        evaluate("grefcoco-box", request)
    write_json(request.prediction, [])
    with pytest.raises(InputError, match=r"pred\.json is no object of image id"):
        evaluate("grefcoco-box", request)
    write_json(request.prediction, {})
    write_json(request.truth, {**truth, "images": []})
    with pytest.raises(InputError, match=r"gt\.json, annotation 0 is of image 1, which is not"):
        evaluate("grefcoco-box", request)


RUNS = [10, 5, 57]  # of 8 x 9 pixels


CODE = coco_mask.frPyObjects({"size": [8, 9], "counts": RUNS}, 8, 9)["counts"].decode()


def test_runs_of_a_list_and_of_a_text_are_scored_alike(tmp_path: Path) -> None:
    for counts in (RUNS, CODE):
        assert coco_masks(tmp_path, counts) == pytest.approx(100)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([10, 60000], r"pred\.json against .*: the run-length code of .* is not of 8 x 9 pixels"),
        ([10, 5, 56], "run-length code of .* is not of 8 x 9 pixels"),
        ([-10, 82], "run-length code of .* is not of 8 x 9 pixels"),
        ([10.5, 61.5], "run-length code of .* is not of 8 x 9 pixels"),
        (CODE[:-2], "run-length code of .* is not of 8 x 9 pixels"),
        (CODE + "1", "run-length code of .* is not of 8 x 9 pixels"),
        (CODE + "P", "cut off or damaged"),
        (CODE + " ", "cut off or damaged"),
        ("", "cut off or damaged"),
        ("P" * 20 + "1", "more than 35 bits"),
    ],
)
def test_runs_that_do_not_fill_the_picture_are_refused(
    tmp_path: Path, counts: object, message: str
) -> None:
    """By results files and by the readers of datasets; pycocotools would write out of bounds."""
    with pytest.raises(InputError, match=message):
        coco_masks(tmp_path, counts)
    with pytest.raises(InputError, match=message.rpartition(": ")[2]):
        segmentation_mask({"size": [8, 9], "counts": counts}, 8, 9)


def coco_masks(folder: Path, counts: object) -> float:
    """AP of one result with these runs against the right ones."""
    truth = copy.deepcopy(COCO_TRUTH)
    truth["annotations"][0] |= {"segmentation": {"size": [8, 9], "counts": RUNS}, "area": 5}
    result = {**COCO_RESULT, "segmentation": {"size": [8, 9], "counts": counts}}
    request = Request(
        write_json(folder / "gt.json", truth), write_json(folder / "pred.json", [result])
    )
    return evaluate("coco-mask", request).scores.numbers["AP"]
