"""Models that answer as recorded get the recorded numbers of the official programs.

The datasets are registered as other projects of this ecosystem register theirs.
"""

from __future__ import annotations

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
def test_label_maps(tmp_path: Path, protocol: str) -> None:
    archive = masks("semseg")
    for number, (truth, labels) in enumerate(zip(archive["gt"], archive["pred"], strict=True)):
        write_mask(tmp_path / f"gt/{number}.png", truth)
        write_mask(tmp_path / f"pred/{number}.png", labels)
    report = evaluate(protocol, Request(tmp_path / "gt", tmp_path / "pred", num_classes=6))
    expected = recorded("semseg")["plain" if protocol == "mmseg" else "reduce_zero_label"]
    assert report.scores.numbers["mIoU"] == pytest.approx(100 * expected["mIoU_nanmean"], abs=1e-9)
    assert report.scores.numbers["aAcc"] == pytest.approx(100 * expected["aAcc"], abs=1e-9)
    assert (report.card.num_samples, report.card.sample) == (number + 1, "image")
    write_mask(tmp_path / "pred/0.png", np.zeros((30, 40), np.uint8))
    with pytest.raises(InputError, match=r"0\.png is 40x30 pixels, its ground truth is 80x60"):
        evaluate(protocol, Request(tmp_path / "gt", tmp_path / "pred", num_classes=6))


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
    [("fss", "lavt"), ("coco", "youtube-vis"), ("rvos", "hsnet")],
)
def test_no_number_gets_the_name_of_another_protocol(
    tmp_path: Path, metadata: Any, kind: str, protocol: str
) -> None:
    metadata.set(evaluator_type=kind, protocols=(protocol,))
    with pytest.raises(ConfigError, match=f"asks for protocol '{protocol}', its evaluator_type"):
        build_evaluator(NAME, tmp_path)


def test_an_annotation_file_that_lacks_something_is_named(tmp_path: Path, metadata: Any) -> None:
    path = write_json(
        tmp_path / "gt.json", {"images": [{"id": 1}], "annotations": [], "categories": []}
    )
    metadata.set(evaluator_type="coco", json_file=str(path))
    with pytest.raises(InputError, match=r"gt\.json, images, entry 0 has no 'height'"):
        build_evaluator(NAME, tmp_path).score("coco-box")


def test_few_shot_without_episodes_is_one_error(tmp_path: Path, metadata: Any) -> None:
    metadata.set(evaluator_type="fss", protocols=("hsnet",))
    with pytest.raises(InputError, match="has no episode to score"):
        build_evaluator(NAME, tmp_path).score("hsnet")
