"""Average precision against COCO's own command on random images with crowds, empty classes."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from unified.evaluation.detections import coco_entries
from unified.metrics.detection import average_precision

NUM_IMAGES, NUM_CATEGORIES = 6, 4


def random_data(seed: int) -> tuple[dict, list[dict]]:
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, NUM_IMAGES + 1):
        for _ in range(rng.integers(0, 7)):
            x, y = rng.integers(0, 150, 2)
            w, h = rng.integers(4, 140, 2)
            box = [float(v) for v in (x, y, w, h)]
            entry = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": int(rng.integers(1, NUM_CATEGORIES)),  # the last one stays empty
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(rng.random() < 0.15),
            }
            annotations.append(entry)
            for _ in range(rng.integers(0, 4)):
                shift = rng.integers(-12, 13, 4)
                results.append(
                    {
                        "image_id": image,
                        "category_id": entry["category_id"],
                        "bbox": [float(max(v + s, 1)) for v, s in zip(box, shift, strict=True)],
                        "score": float(np.round(rng.random(), 1)),  # ties on purpose
                    }
                )
    truth = {
        "info": {},
        "images": [{"id": i + 1, "height": 300, "width": 300} for i in range(NUM_IMAGES)],
        "categories": [{"id": i + 1, "name": str(i)} for i in range(NUM_CATEGORIES)],
        "annotations": annotations,
    }
    return truth, results


@pytest.mark.parametrize("seed", range(8))
def test_boxes_agree_with_pycocotools(seed: int) -> None:
    truth, results = random_data(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        evaluator = COCOeval(reference, reference.loadRes([dict(r) for r in results]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    ours = average_precision(coco_entries(truth, results, boxes=True))
    assert list(ours.summary.values()) == pytest.approx(evaluator.stats.tolist(), abs=1e-12)


def test_without_any_truth_every_number_is_minus_one() -> None:
    truth, results = random_data(0)
    truth["annotations"] = []
    found = average_precision(coco_entries(truth, results, boxes=True))
    assert {*found.summary.values(), *found.per_category} == {-1.0}
