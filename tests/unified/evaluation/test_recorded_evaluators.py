"""Models that answer as recorded get the recorded numbers of the official programs.

The datasets are registered as other projects of this ecosystem register theirs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from torch import nn

from unified.data.formats.files import segmentation_mask
from unified.errors import ConfigError, InputError
from unified.evaluation.evaluators import build_evaluator
from unified.evaluation.protocols import evaluate
from unified.evaluation.report import Request

sys.path.insert(0, str(Path(__file__).parent))
from golden_folders import masks, recorded, write_json, write_mask

NAME = "recorded_answers_of_this_test"


@pytest.fixture
def metadata() -> Iterator[Any]:
    yield MetadataCatalog.get(NAME)
    MetadataCatalog.remove(NAME)
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)


class Replay(nn.Module):
    """A model that answers what is recorded for its input."""

    def __init__(self, answers: dict[Any, Any], key: str) -> None:
        super().__init__()
        self.answers, self.key = answers, key

    def forward(self, inputs: list[dict[str, Any]]) -> list[Any]:
        return [self.answers[sample[self.key]] for sample in inputs]


def run(folder: Path, samples: list[dict[str, Any]], answers: dict[Any, Any], key: str) -> Any:
    """Numbers of Detectron2's own loop over a loader of batches of one."""
    evaluator = build_evaluator(NAME, folder)
    return inference_on_dataset(Replay(answers, key), [[s] for s in samples], evaluator)


@pytest.mark.parametrize("protocol", ["mmseg", "mmseg-reduce-zero"])
def test_semantic_segmentation(tmp_path: Path, metadata: Any, protocol: str) -> None:
    classes = tuple("abcdef")
    metadata.set(evaluator_type="sem_seg", stuff_classes=classes)
    if protocol != "mmseg":  # the one that counts unless something else is asked for
        metadata.set(protocols=(protocol,))
    archive = masks("semseg")
    samples, answers = [], {}
    for number, (truth, labels) in enumerate(zip(archive["gt"], archive["pred"], strict=True)):
        path = tmp_path / "gt" / f"{number}.png"
        write_mask(path, truth)
        samples.append({"sem_seg_file_name": str(path)})
        scores = np.eye(len(classes))[labels].transpose(2, 0, 1)  # (C, H, W)
        answers[str(path)] = {"sem_seg": torch.from_numpy(scores)}
    DatasetCatalog.register(NAME, lambda: samples)
    numbers = run(tmp_path, samples, answers, "sem_seg_file_name")[protocol]
    expected = recorded("semseg")["plain" if protocol == "mmseg" else "reduce_zero_label"]
    assert numbers["mIoU"] == pytest.approx(100 * expected["mIoU_nanmean"], abs=1e-9)
    assert numbers["aAcc"] == pytest.approx(100 * expected["aAcc"], abs=1e-9)
    written = Request(tmp_path / "gt", tmp_path / NAME / "predictions", num_classes=len(classes))
    report = evaluate(protocol, written)
    assert dict(report.scores.numbers) == numbers
    assert (report.card.num_samples, report.card.sample) == (len(samples), "image")
    answers[samples[0]["sem_seg_file_name"]] = {"sem_seg": torch.zeros(6, 30, 40)}
    with pytest.raises(InputError, match=r"0\.png is 40x30 pixels, its ground truth is 80x60"):
        run(tmp_path, samples, answers, "sem_seg_file_name")


def test_label_maps_of_one_name_in_two_folders(tmp_path: Path, metadata: Any) -> None:
    """And a label of the metadata that is ignored."""
    metadata.set(evaluator_type="sem_seg", stuff_classes=("a", "b"), ignore_label=7)
    truth = np.zeros((4, 6), np.uint8)
    truth[:, 3:], truth[0] = 1, 7
    samples, answers = [], {}
    for city, labels in (("bonn", truth), ("ulm", 1 - truth)):
        path = tmp_path / "gt" / city / "0.png"
        write_mask(path, truth)
        samples.append({"sem_seg_file_name": str(path)})
        answers[str(path)] = {"sem_seg": torch.from_numpy(np.eye(2)[labels % 2]).permute(2, 0, 1)}
    DatasetCatalog.register(NAME, lambda: samples)
    numbers = run(tmp_path, samples, answers, "sem_seg_file_name")["mmseg"]
    assert numbers["aAcc"] == pytest.approx(50)
    written = sorted((tmp_path / NAME / "predictions").rglob("*.png"))
    assert [path.parent.name for path in written] == ["bonn", "ulm"]
    card = json.loads((tmp_path / NAME / "mmseg" / "summary.json").read_text())["card"]
    assert card["notes"] == ["label 7 ignored, not 255"]
    MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).set(evaluator_type="sem_seg", stuff_classes=["x"] * 300)
    with pytest.raises(ConfigError, match="has 300 classes: label maps of 8 bits hold 256"):
        run(tmp_path, samples, answers, "sem_seg_file_name")


def youtube_vis(tmp_path: Path, metadata: Any, truth: dict[str, Any]) -> dict[str, Any]:
    """Registers the recorded clips with classes counted from 0; returns the recording."""
    content = recorded("youtubevis")
    categories = content["ground_truth"]["categories"]
    metadata.set(
        evaluator_type="ytvis",
        json_file=str(write_json(tmp_path / "instances.json", truth)),
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
    )
    answers: dict[int, Any] = {
        video["id"]: {"pred_scores": [], "pred_labels": [], "pred_masks": []}
        for video in content["ground_truth"]["videos"]
    }
    for entry in content["results"]:
        answer = answers[entry["video_id"]]
        answer["pred_scores"].append(entry["score"])
        answer["pred_labels"].append(entry["category_id"] - 1)
        empty = np.zeros((60, 80), bool)
        frames = [
            empty if c is None else segmentation_mask(c, 60, 80) for c in entry["segmentations"]
        ]
        answer["pred_masks"].append(torch.from_numpy(np.stack(frames)))
    return answers


def test_youtube_vis(tmp_path: Path, metadata: Any) -> None:
    content = recorded("youtubevis")
    assert [c["id"] for c in content["ground_truth"]["categories"]] == [1, 2]
    answers = youtube_vis(tmp_path, metadata, content["ground_truth"])
    samples = [{"video_id": i} for i in answers]
    numbers = run(tmp_path, samples, answers, "video_id")["youtube-vis"]
    for name, value in zip(content["stats_order"], content["stats"], strict=True):
        if value < 0:
            assert np.isnan(numbers[name])
        else:
            assert numbers[name] == pytest.approx(100 * value, abs=1e-9)
    report = evaluate(
        "youtube-vis", Request(tmp_path / "instances.json", tmp_path / NAME / "predictions")
    )
    assert report.scores.numbers == pytest.approx(numbers, nan_ok=True)
    assert report.card.num_samples == len(samples)


def test_a_video_model_may_answer_for_its_only_clip(tmp_path: Path, metadata: Any) -> None:
    """Without annotations, as in the public validation sets, the results are only written."""
    truth = {k: v for k, v in recorded("youtubevis")["ground_truth"].items() if k != "annotations"}
    answers = youtube_vis(tmp_path, metadata, truth)
    evaluator = build_evaluator(NAME, tmp_path)
    evaluator.reset()
    for video, answer in answers.items():
        evaluator.process([{"video_id": video}], answer)
    assert evaluator.evaluate() == {}

    written = tmp_path / NAME / "predictions" / "results.json"
    assert written.is_file()
    write_json(tmp_path / "instances.json", recorded("youtubevis")["ground_truth"])
    report = evaluate("youtube-vis", Request(tmp_path / "instances.json", written))
    expected = recorded("youtubevis")["stats"][0]
    assert report.scores.numbers["AP"] == pytest.approx(100 * expected, abs=1e-9)


def test_boxes_of_generalised_referring(tmp_path: Path, metadata: Any) -> None:
    content = recorded("grec_boxes")
    truth = content["ground_truth"]
    metadata.set(evaluator_type="gris", protocols=("grefcoco-box",))
    records, samples, answers = [], [], {}
    for image in truth["images"]:
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        found = content["predictions"][str(image["id"])]
        name = {"image_id": image["id"], "expression_id": 0}
        records.append({**name, "annotations": [a for a in mine if a["category_id"] != -1]})
        samples.append({**name, "target": np.zeros((60, 80), bool)})
        instances = Instances((60, 80))
        boxes = torch.tensor(found["boxes_xyxy"], dtype=torch.float64).reshape(-1, 4)
        instances.pred_boxes = Boxes(boxes)
        instances.pred_boxes.tensor = boxes  # 64 bits, as recorded
        instances.scores = torch.tensor(found["scores"], dtype=torch.float64)
        instances.pred_masks = torch.zeros(len(boxes), 60, 80, dtype=torch.bool)
        answers[image["id"]] = {"instances": instances}
    DatasetCatalog.register(NAME, lambda: records)
    numbers = run(tmp_path, samples, answers, "image_id")["grefcoco-box"]
    for key in ("F1_score", "T_acc", "N_acc"):
        assert numbers[key] == pytest.approx(100 * content[key], abs=1e-9)
    folder = tmp_path / NAME
    report = evaluate(
        "grefcoco-box", Request(folder / "ground_truth/instances.json", folder / "predictions")
    )
    assert dict(report.scores.numbers) == numbers


def test_a_dataset_must_say_how_it_counts(tmp_path: Path, metadata: Any) -> None:
    metadata.set(evaluator_type="fss")
    with pytest.raises(ConfigError, match="has no protocols: set them in its metadata"):
        build_evaluator(NAME, tmp_path)


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [("fss", "lavt"), ("coco", "youtube-vis"), ("sem_seg", "coco-mask"), ("rvos", "hsnet")],
)
def test_no_number_gets_the_name_of_another_protocol(
    tmp_path: Path, metadata: Any, kind: str, protocol: str
) -> None:
    metadata.set(evaluator_type=kind, protocols=(protocol,))
    with pytest.raises(ConfigError, match=f"asks for protocol '{protocol}', its evaluator_type"):
        build_evaluator(NAME, tmp_path)


@pytest.mark.parametrize(
    ("kind", "protocol", "truth"),
    [
        ("coco", "coco-box", {"images": [{"id": 1}], "annotations": [], "categories": []}),
        ("ytvis", "youtube-vis", {"videos": [{"id": 1}], "annotations": [1], "categories": []}),
    ],
)
def test_an_annotation_file_that_lacks_something_is_named(
    tmp_path: Path, metadata: Any, kind: str, protocol: str, truth: dict[str, Any]
) -> None:
    path = write_json(tmp_path / "gt.json", truth)
    metadata.set(evaluator_type=kind, json_file=str(path))
    with pytest.raises(InputError, match=r"gt\.json, (images|videos), entry 0 has no 'height'"):
        build_evaluator(NAME, tmp_path).score(protocol)
    if kind == "ytvis":
        with pytest.raises(InputError, match=r"gt\.json, videos, entry 0 has no 'height'"):
            build_evaluator(NAME, tmp_path).can_score()


def test_few_shot_without_episodes_is_one_error(tmp_path: Path, metadata: Any) -> None:
    metadata.set(evaluator_type="fss", protocols=("hsnet",))
    with pytest.raises(InputError, match="has no episode to score"):
        build_evaluator(NAME, tmp_path).score("hsnet")
