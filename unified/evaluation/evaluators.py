"""Detectron2 evaluators: thin adapters from models to the scoring that folders go through too.

Here are those of images, and which evaluator a dataset has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils import comm
from numpy.typing import NDArray

from unified.data.formats.files import write_json
from unified.errors import ConfigError, InputError
from unified.evaluation import images, results
from unified.evaluation.images import Episode, Overlap, measure
from unified.evaluation.protocol_evaluator import (
    GROUND_TRUTH,
    PREDICTIONS,
    ProtocolEvaluator,
    Sample,
)
from unified.evaluation.records import coco_truth
from unified.evaluation.report import Origin, Problems, Scores
from unified.evaluation.results import BoxSample
from unified.evaluation.video_evaluators import VideoEvaluator
from unified.label_maps import encode_mask, write_label_map, write_mask
from unified.metrics import few_shot, iou
from unified.metrics.davis import VOID


@dataclass(frozen=True)
class Referred:
    """A judged sentence: pixels, whether the model refused, its best box, and all its boxes."""

    overlap: Overlap
    refused: bool
    box: tuple[float, ...]  # x, y, width, height
    scores: NDArray  # (N,)
    corners: NDArray  # (N, 4) xyxy


class ReferringEvaluator(ProtocolEvaluator):
    """RIS and generalised RIS: the best scored instance of every sentence.

    A model refuses a sentence by an empty mask, no instance, or a score below the dataset's
    threshold.
    """

    known_protocols: ClassVar[tuple[str, ...]] = (
        *("lavt", "cris", "uniref", "uniref-box", "grefcoco", "grefcoco-box"),
    )

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Any]) -> None:
        """``inputs`` have target (H, W) bool, image_id, expression_id; ``outputs`` instances."""
        for sample, output in zip(inputs, outputs, strict=True):
            truth = np.asarray(sample["target"])
            found = output["instances"]
            mask, score, box = best_instance(found, truth.shape)
            refused = not mask.any() or score < (self.metadata.get("score_threshold") or 0.0)
            name = _sentence_name(sample)
            write_mask(self.folder / PREDICTIONS / f"{name}.png", mask)
            write_mask(self.folder / GROUND_TRUTH / f"{name}.png", truth)
            boxes = (t.cpu().numpy() for t in (found.scores, found.pred_boxes.tensor))
            overlap = replace(measure(name, truth, mask), sentence=sample.get("expression", ""))
            self.samples.append(Referred(overlap, bool(refused), box, *boxes))

    def write_results(self) -> None:
        """The sentences; refusals and boxes of generalised RIS beside its masks."""
        sentences = {s.overlap.name: s.overlap.sentence for s in self.samples}
        write_json(self.folder / GROUND_TRUTH / images.SENTENCES, sentences)
        if "grefcoco" in self.protocols:
            flags = {s.overlap.name: s.refused for s in self.samples}
            write_json(self.folder / PREDICTIONS / images.REFUSALS, flags)
        if "grefcoco-box" in self.protocols:
            found = {
                s.overlap.name: {"scores": s.scores.tolist(), "boxes_xyxy": s.corners.tolist()}
                for s in self.samples
            }
            write_json(self.folder / PREDICTIONS / "results.json", found)
            truths = self._truths()
            truth = results.box_truth({name: truths[name] for name in found})
            write_json(self.folder / GROUND_TRUTH / "instances.json", truth)

    def score(self, protocol: str) -> Scores:
        """Masks under LAVT, CRIS, UniRef or ReLA rules, or boxes."""
        problems = Problems(allowed=False)
        overlaps = [sample.overlap for sample in self.samples]
        if protocol == "uniref-box":
            return images.referring_scores(self._best_boxes(), iou.UNIREF, problems)
        if protocol == "grefcoco-box":
            truths = self._truths()
            boxes = [
                BoxSample(s.overlap.name, truths[s.overlap.name], s.corners, s.scores)
                for s in self.samples
            ]
            return results.generalized_box_scores(boxes, problems)
        if protocol == "grefcoco":
            refused = [sample.refused for sample in self.samples]
            return images.generalized_scores(overlaps, refused, problems)
        rules = {"lavt": iou.LAVT, "cris": iou.CRIS, "uniref": iou.UNIREF}
        return images.referring_scores(overlaps, rules[protocol], problems)

    def _truths(self) -> dict[str, list[Any]]:
        """Name of a sentence -> boxes (x, y, w, h) of what it refers to."""
        return {
            _sentence_name(record): [entry["bbox"] for entry in record["annotations"]]
            for record in self._records()
        }

    def _best_boxes(self) -> list[Overlap]:
        truths = self._truths()
        single = [s for s in self.samples if len(truths[s.overlap.name]) == 1]
        return [
            results.measure_boxes(s.overlap.name, truths[s.overlap.name][0], s.box) for s in single
        ]


class FewShotEvaluator(ProtocolEvaluator):
    """FSS: the best scored instance of every episode."""

    known_protocols: ClassVar[tuple[str, ...]] = ("hsnet", "fss-per-image")

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Any]) -> None:
        """``inputs`` have target and void (H, W) bool and class_id; ``outputs`` instances."""
        for sample, output in zip(inputs, outputs, strict=True):
            truth, void = np.asarray(sample["target"]), np.asarray(sample["void"])
            mask, _, _ = best_instance(output["instances"], truth.shape)
            truth, void, mask = (self._judged(each) for each in (truth, void, mask))
            class_name = str(sample["class_id"])
            number = f"{comm.get_rank():02d}_{len(self.samples):06d}"
            name = f"{class_name}/{number}"
            write_mask(self.folder / PREDICTIONS / f"{name}.png", mask)
            drawn = np.where(void & ~truth, VOID, truth.astype(np.uint8))
            write_label_map(self.folder / GROUND_TRUTH / f"{name}.png", drawn.astype(np.uint8))
            episode = Episode(class_name, number, *few_shot.areas(truth, mask, void))
            shots = len(sample.get("supports", ()))
            self.samples.append((episode, measure(name, truth, mask), shots))

    def score(self, protocol: str) -> Scores:
        """Class mIoU, or the mean over images."""
        problems = Problems(allowed=False)
        if not self.samples:
            raise InputError(f"{self.dataset} has no episode to score: expected at least one")
        episodes, overlaps, shots = zip(*self.samples, strict=True)
        if protocol == "fss-per-image":
            scores = images.referring_scores(overlaps, iou.UNIREF, problems, "image")
        else:
            classes = dict.fromkeys(str(record["class_id"]) for record in self._records())
            scores = images.few_shot_scores(episodes, list(classes), problems)
        known = [f"{number}-shot" for number in sorted(set(shots)) if number]
        if self._side is not None:
            known.append(f"masks at {self._side} x {self._side} pixels")
        known += filter(None, [self.metadata.get("note", "")])
        return replace(scores, notes=(*scores.notes, *known))

    @property
    def _side(self) -> int | None:
        return self.metadata.get("mask_size")

    def _judged(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(H, W) at the size at which the benchmark judges, by nearest neighbour."""
        if self._side is None:
            return mask
        rows, columns = (np.arange(self._side) * length // self._side for length in mask.shape)
        return mask[rows[:, None], columns]


class DetectionEvaluator(ProtocolEvaluator):
    """COCO AP of masks and boxes."""

    known_protocols: ClassVar[tuple[str, ...]] = ("coco-mask", "coco-box")
    default_protocols: ClassVar[tuple[str, ...]] = known_protocols

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Any]) -> None:
        """``inputs`` have image_id; ``outputs`` instances at the size of the file."""
        for sample, output in zip(inputs, outputs, strict=True):
            found: Instances = output["instances"].to("cpu")
            boxes = found.pred_boxes.tensor.numpy().astype(float)
            boxes[:, 2:] -= boxes[:, :2]
            for index in range(len(found)):
                entry = {
                    "image_id": sample["image_id"],
                    "category_id": int(found.pred_classes[index]),
                    "score": float(found.scores[index]),
                    "bbox": boxes[index].tolist(),
                }
                if found.has("pred_masks"):
                    entry["segmentation"] = encode_mask(found.pred_masks[index].numpy())
                self.samples.append(entry)

    def write_results(self) -> None:
        """The results as COCO wants them."""
        write_json(self.folder / PREDICTIONS / "results.json", self._with_released_classes())

    def score(self, protocol: str) -> Scores:
        """The 12 numbers of COCO."""
        boxes = protocol == "coco-box"
        truth = self._truth("bbox" if boxes else "segmentation")
        found, merged = self._with_released_classes(), self.origin.class_agnostic
        return results.coco_scores(truth, found, boxes=boxes, class_agnostic=merged)

    def _truth(self, shape: str) -> Mapping[str, Any]:
        """The annotation file itself where it is known, as its areas are not those of the masks."""
        json_file = self.metadata.get("json_file")
        if json_file is not None:
            return results.read_coco(Path(json_file), shape)
        truth = coco_truth(self._records(), self.metadata.get("thing_classes"))
        write_json(self.folder / GROUND_TRUTH / "instances.json", truth)
        return truth


def build_evaluator(
    dataset: str, output_dir: Path | str, origin: Origin | None = None
) -> ProtocolEvaluator:
    """The evaluator of a registered dataset, by its ``evaluator_type``.

    Raises:
        ConfigError: the dataset is not made for testing.
    """
    kind = MetadataCatalog.get(dataset).get("evaluator_type", "")
    if kind not in EVALUATORS:
        raise ConfigError(f"dataset {dataset} cannot be evaluated: name a val or test set")
    return EVALUATORS[kind](dataset, output_dir, origin)


def best_instance(
    instances: Instances, shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_], float, tuple[float, ...]]:
    """Mask (H, W), score and box (x, y, w, h) of the best scored instance, or nothing."""
    if len(instances) == 0:
        return np.zeros(shape, bool), 0.0, results.NO_BOX
    index = int(instances.scores.argmax())
    left, top, right, bottom = instances.pred_boxes.tensor[index].tolist()
    mask = instances.pred_masks[index].cpu().numpy().astype(bool)
    return mask, float(instances.scores[index]), (left, top, right - left, bottom - top)


def _sentence_name(sample: Sample) -> str:
    return f"{sample['image_id']}_{sample['expression_id']}".replace("/", "_")


EVALUATORS: dict[str, type[ProtocolEvaluator]] = {
    "ris": ReferringEvaluator,
    "gris": ReferringEvaluator,
    "fss": FewShotEvaluator,
    "coco": DetectionEvaluator,
    "vos": VideoEvaluator,
    "rvos": VideoEvaluator,
}
