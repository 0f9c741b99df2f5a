"""Detectron2 evaluators: thin adapters from models to the scoring that folders go through too.

Every evaluator writes what was predicted, so that ``tools/evaluate.py`` can repeat the number, and
a report with its card per protocol.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from numpy.typing import NDArray

from unified.data.formats.files import encode_mask, read_json
from unified.data.formats.records import Record
from unified.errors import ConfigError
from unified.evaluation import clips, images, results
from unified.evaluation.clips import Clip
from unified.evaluation.detections import coco_entries
from unified.evaluation.images import Episode, Overlap, measure
from unified.evaluation.protocols import find_protocol, make_report
from unified.evaluation.records import RecordTruth, annotated_frames, coco_truth
from unified.evaluation.report import Problems, Request, Scores, Split
from unified.evaluation.videos import VideoScoring
from unified.files import atomic_path
from unified.label_maps import write_label_map, write_mask
from unified.metrics import detection, few_shot, iou
from unified.metrics.davis import VOID
from unified.structures import FrameResult

logger = logging.getLogger(__name__)

Sample = Mapping[str, Any]
PREDICTIONS, GROUND_TRUTH = "predictions", "ground_truth"


class ProtocolEvaluator(DatasetEvaluator):
    """Collects samples on every rank and scores them, under every protocol of a dataset, on one.

    Subclasses add to ``samples`` in ``process`` and count in ``score``.
    """

    def __init__(self, dataset: str, output_dir: Path | str, weights: Path | None = None) -> None:
        """
        Args:
            dataset: registered name; its metadata has ``protocols`` and ``score_threshold``.
            output_dir: predictions and reports go here, in a folder of the dataset's name.
            weights: checkpoint that predicts, for its sha256 on the card.
        """
        self.dataset = dataset
        self.folder = Path(output_dir) / dataset
        self.weights = weights
        self.metadata = MetadataCatalog.get(dataset)
        self.samples: list[Any] = []

    def reset(self) -> None:
        """Forgets samples, also those of an earlier run on disk."""
        self.samples = []
        if comm.is_main_process():
            for name in (PREDICTIONS, GROUND_TRUTH):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        comm.synchronize()

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Any]) -> None:
        """Takes a batch of samples of the test loader and what the model says about each."""
        raise NotImplementedError

    def score(self, protocol: str) -> Scores:
        """Counts ``samples``, which hold those of all ranks now."""
        raise NotImplementedError

    def can_score(self) -> bool:
        """Whether the dataset has ground truth."""
        return True

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Protocol -> numbers in percent, on the main process; empty elsewhere."""
        gathered = comm.gather(self.samples, dst=0)
        comm.synchronize()
        found: OrderedDict[str, dict[str, float]] = OrderedDict()
        if not comm.is_main_process():
            return found
        self.samples = [sample for samples in gathered for sample in samples]
        if not self.can_score():
            logger.info("%s has no ground truth: masks are in %s", self.dataset, self.folder)
            return found
        for name in self.metadata.protocols:
            report = make_report(name, self.score(name), Split(note=self.dataset), self.weights)
            report.write(self.folder / name)
            logger.info("%s\n%s\n%s", self.dataset, report.table(), report.card.line())
            found[name] = dict(report.scores.numbers)
        return found

    def _records(self) -> list[Record]:
        return DatasetCatalog.get(self.dataset)


@dataclass(frozen=True)
class Referred:
    """A judged sentence: pixels, whether the model refused, and its box (x, y, w, h)."""

    overlap: Overlap
    refused: bool
    box: tuple[float, ...]


class ReferringEvaluator(ProtocolEvaluator):
    """RIS and generalised RIS: the best scored instance of every sentence.

    A model refuses a sentence by an empty mask, no instance, or a score below the dataset's
    threshold.
    """

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Any]) -> None:
        """``inputs`` have target (H, W) bool, image_id, expression_id; ``outputs`` instances."""
        for sample, output in zip(inputs, outputs, strict=True):
            truth = np.asarray(sample["target"])
            mask, score, box = best_instance(output["instances"], truth.shape)
            refused = not mask.any() or score < self.metadata.score_threshold
            name = _sentence_name(sample)
            write_mask(self.folder / PREDICTIONS / f"{name}.png", mask)
            write_mask(self.folder / GROUND_TRUTH / f"{name}.png", truth)
            self.samples.append(Referred(measure(name, truth, mask), refused, box))

    def score(self, protocol: str) -> Scores:
        """Masks under LAVT, CRIS, UniRef or ReLA rules, or boxes."""
        problems = Problems(allowed=False)
        overlaps = [sample.overlap for sample in self.samples]
        if protocol == "uniref-box":
            return images.referring_scores(self._boxes(), iou.UNIREF, problems)
        if protocol == "grefcoco":
            refused = [sample.refused for sample in self.samples]
            flags = {s.overlap.name: bool(s.refused) for s in self.samples}
            with atomic_path(self.folder / PREDICTIONS / images.REFUSALS) as path:
                path.write_text(json.dumps(flags))
            return images.generalized_scores(overlaps, refused, problems)
        rules = {"lavt": iou.LAVT, "cris": iou.CRIS, "uniref": iou.UNIREF}
        return images.referring_scores(overlaps, rules[protocol], problems)

    def _boxes(self) -> list[Overlap]:
        truths = {_sentence_name(record): record["annotations"] for record in self._records()}
        single = [s for s in self.samples if len(truths[s.overlap.name]) == 1]
        return [
            results.measure_boxes(s.overlap.name, truths[s.overlap.name][0]["bbox"], s.box)
            for s in single
        ]


class FewShotEvaluator(ProtocolEvaluator):
    """FSS: the best scored instance of every episode."""

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Any]) -> None:
        """``inputs`` have target and void (H, W) bool and class_id; ``outputs`` instances."""
        for sample, output in zip(inputs, outputs, strict=True):
            truth, void = np.asarray(sample["target"]), np.asarray(sample["void"])
            mask, _, _ = best_instance(output["instances"], truth.shape)
            class_name = str(sample["class_id"])
            number = f"{comm.get_rank():02d}_{len(self.samples):06d}"
            name = f"{class_name}/{number}"
            write_mask(self.folder / PREDICTIONS / f"{name}.png", mask)
            drawn = np.where(void & ~truth, VOID, truth.astype(np.uint8))
            write_label_map(self.folder / GROUND_TRUTH / f"{name}.png", drawn.astype(np.uint8))
            episode = Episode(class_name, number, *few_shot.areas(truth, mask, void))
            self.samples.append((episode, measure(name, truth, mask)))

    def score(self, protocol: str) -> Scores:
        """Class mIoU, or the mean over images."""
        problems = Problems(allowed=False)
        if protocol == "fss-per-image":
            overlaps = [overlap for _, overlap in self.samples]
            return images.referring_scores(overlaps, iou.UNIREF, problems, "episode")
        classes = dict.fromkeys(str(record["class_id"]) for record in self._records())
        return images.few_shot_scores([e for e, _ in self.samples], list(classes), problems)


class DetectionEvaluator(ProtocolEvaluator):
    """COCO AP of masks and boxes."""

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

    def score(self, protocol: str) -> Scores:
        """The 12 numbers of COCO, with the category ids of the annotation file."""
        to_contiguous = self.metadata.get("thing_dataset_id_to_contiguous_id") or {}
        ids = {new: old for old, new in to_contiguous.items()}
        found = [
            {**s, "category_id": ids.get(s["category_id"], s["category_id"])} for s in self.samples
        ]
        with atomic_path(self.folder / PREDICTIONS / "results.json") as path:
            path.write_text(json.dumps(found))
        truth = self._truth()
        entries = coco_entries(truth, found, boxes=protocol == "coco-box")
        return results.detection_scores(truth, entries, detection.COCO_AREAS)

    def _truth(self) -> dict[str, Any]:
        """The annotation file itself where it is known, as its areas are not those of the masks."""
        json_file = self.metadata.get("json_file")
        if json_file is not None:
            return read_json(Path(json_file), "COCO instances", results.COCO_KEYS)
        truth = coco_truth(self._records(), self.metadata.get("thing_classes"))
        with atomic_path(self.folder / GROUND_TRUTH / "instances.json") as path:
            path.write_text(json.dumps(truth))
        return truth


class VideoEvaluator(ProtocolEvaluator):
    """VOS and RVOS: writes masks as frames come, then scores the files.

    Objects that compete for pixels (``merge`` "soft") make one label map per frame, whatever the
    number of sentences; otherwise every sentence has a folder of binary masks.
    """

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Iterable[FrameResult]]) -> None:
        """``inputs`` are clip records, ``outputs`` the frames of each in order, read once."""
        for record, frames in zip(inputs, outputs, strict=True):
            folder = self.folder / PREDICTIONS / self._place(record)
            for name, frame in zip(record["frame_names"], frames, strict=True):
                if self.metadata.merge == "each":
                    write_mask(folder / f"{name}.png", frame.label_map > 0)
                else:
                    write_label_map(folder / f"{name}.png", frame.label_map)
            self.samples.append(self._place(record))

    def can_score(self) -> bool:
        """Whether there is ground truth beyond the masks that are given to the model."""
        return any(
            set(annotated_frames(record)) - set(record.get("first_frames", {}).values())
            for record in self._records()
        )

    def score(self, protocol: str) -> Scores:
        """Scores the files written by all ranks against the records of the dataset."""
        scoring = find_protocol(protocol).score
        if not isinstance(scoring, VideoScoring):
            raise ConfigError(f"protocol {protocol} of dataset {self.dataset} is not for videos")
        made = {self._place(record): record for record in self._records()}
        expected = [self._clip(record, protocol) for record in made.values()]
        request = Request(Path(), self.folder / PREDICTIONS, num_workers=os.cpu_count() or 1)
        return scoring.score(expected, request, Problems(allowed=False))

    def _place(self, record: Sample) -> str:
        one_sentence = self.metadata.merge == "each" and "expression_id" in record
        return str(record["clip_id"]) + (f"/{record['expression_id']}" if one_sentence else "")

    def _clip(self, record: Record, protocol: str) -> Clip:
        sentence = self.metadata.merge == "each" and "expression_id" in record
        frames = tuple(record["frame_names"][i] for i in annotated_frames(record))
        clip = Clip(
            sequence=record["clip_id"],
            item=record["expression_id"] if sentence else "",
            frames=frames,
            truth=RecordTruth(record, sentence=sentence),
            prediction=self.folder / PREDICTIONS / self._place(record),
            binary=sentence,
            check_ids="expression_id" not in record,
            unseen_ids=frozenset(record.get("unseen_ids", ())),
        )
        if "frame_ranges" in record:
            return clips.with_spans(clip, record["frame_ranges"], protocol == "lvos")
        return clip


def build_evaluator(
    dataset: str, output_dir: Path | str, weights: Path | None = None
) -> ProtocolEvaluator:
    """The evaluator of a registered dataset, by its ``evaluator_type``.

    Raises:
        ConfigError: the dataset is not made for testing.
    """
    kind = MetadataCatalog.get(dataset).get("evaluator_type", "")
    if kind not in EVALUATORS:
        raise ConfigError(f"dataset {dataset} cannot be evaluated: name a val or test set")
    return EVALUATORS[kind](dataset, output_dir, weights)


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
