"""Predicts test sets with a model and scores them with the code that scores files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch.utils.data import DataLoader

from unified.data.catalog import find_dataset, load_records, register_datasets
from unified.data.formats.records import Record, frame_masks
from unified.data.loader import build_test_loader
from unified.data.mappers import TestMapper
from unified.data.samples import Sample
from unified.dependencies import require
from unified.engine.inference import settings_of
from unified.engine.system import system
from unified.errors import ConfigError
from unified.evaluation.evaluators import ProtocolEvaluator, build_evaluator
from unified.evaluation.report import Origin
from unified.files import file_sha256
from unified.inference.image_io import read_image
from unified.inference.image_predictor import ImagePredictor
from unified.inference.settings import ImageSettings, MergeRule, ModelInput, VideoSettings, asked_as
from unified.inference.video_predictor import VideoPredictor
from unified.label_maps import MAX_OBJECT_ID
from unified.structures import Instance, Prompt, Size
from unified.tasks import TASKS, Task

logger = logging.getLogger(__name__)


def evaluate(cfg: CfgNode, model: Any, weights: Path | None = None) -> dict[str, float]:
    """``dataset/protocol/metric`` -> number in percent of all sets in ``DATASETS.TEST``.

    All processes take part, the first one gets the numbers. Predictions, reports and cards are
    written below ``OUTPUT_DIR/inference``. The model is left in eval mode.

    Raises:
        ConfigError: a set is unknown or cannot be evaluated.
        InputError: a set is not installed.
    """
    names = tuple(cfg.DATASETS.TEST)
    register_datasets(names)
    model.eval()
    class_agnostic = system(cfg.MODEL.META_ARCHITECTURE).supervision(cfg).class_agnostic
    numbers: dict[str, float] = {}
    for name in names:
        images, clips = settings_for(cfg, name)
        is_clip = TASKS[find_dataset(name).task].num_frames > 1
        asked: ModelInput = clips if is_clip else images
        sha256 = None if weights is None else file_sha256(weights)
        origin = Origin(sha256, asked_as(model, asked), class_agnostic)
        evaluator = build_evaluator(name, Path(cfg.OUTPUT_DIR) / "inference", origin)
        evaluator.reset()
        with torch.inference_mode():
            if is_clip:
                groups = _clips(name)[comm.get_rank() :: comm.get_world_size()]
                _predict_clips(VideoPredictor(model, clips), _progress(groups, name), evaluator)
            else:
                loader = _test_loader(cfg, name)
                _predict_images(ImagePredictor(model, images), _progress(loader, name), evaluator)
        for protocol, values in evaluator.evaluate().items():
            numbers |= {f"{name}/{protocol}/{key}": value for key, value in values.items()}
    return numbers


def settings_for(cfg: CfgNode, name: str) -> tuple[ImageSettings, VideoSettings]:
    """How images and clips of a set are asked: as the model is, with what the benchmark fixes."""
    row, settings = find_dataset(name), settings_of(cfg)
    changes: dict[str, Any] = (
        {} if row.score_threshold is None else {"score_threshold": row.score_threshold}
    )
    special = cfg.INPUT.PER_DATASET.get(name, {})
    for field, key in (("short_side", "MIN_SIZE_TEST"), ("max_size", "MAX_SIZE_TEST")):
        if key in special:
            changes[field] = special[key]
    mirror = settings.image.mirror and row.task is not Task.DETECTION
    merge: MergeRule = "separate" if row.merge == "each" else "soft"
    return (
        replace(settings.image, mirror=mirror, **changes),
        replace(settings.video, merge_rule=merge, use_memory=row.memory, **changes),
    )


def _test_loader(cfg: CfgNode, name: str) -> DataLoader[list[Sample]]:
    return build_test_loader(
        name,
        TestMapper(num_supports=cfg.TASK.FSS.NSHOT),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )


def check_test_sets(cfg: CfgNode) -> None:
    """Raises ConfigError or InputError unless every set in ``DATASETS.TEST`` can be evaluated."""
    for name in cfg.DATASETS.TEST:
        if find_dataset(name).split != "test":
            raise ConfigError(f"DATASETS.TEST lists {name}, which is a training set")
        load_records(name)


def _predict_images(
    predictor: ImagePredictor, samples: Iterable[Sequence[Sample]], evaluator: ProtocolEvaluator
) -> None:
    """Each image is encoded once for all that is asked about it."""
    for group in samples:
        predictor.set_image(group[0]["image"])
        for sample in group:
            prompt = Prompt(sample.get("expression"), supports=sample.get("supports", ()))
            prompted = prompt.text is not None or prompt.supports
            found = [predictor.instance(prompt)] if prompted else predictor.detect()
            size = sample["height"], sample["width"]
            evaluator.process([sample], [{"instances": to_detectron2(found, size)}])


def to_detectron2(found: Sequence[Instance], size: Size) -> Instances:
    """Instances at the size (h, w) of the image; those without extent are left out."""
    kept = [instance for instance in found if instance.box is not None]
    masks = np.stack([i.mask for i in kept]) if kept else np.zeros((0, *size), bool)
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor([i.box for i in kept]).reshape(-1, 4)),
        scores=torch.tensor([i.score for i in kept]),
        pred_classes=torch.tensor([i.category for i in kept], dtype=torch.int64),
        pred_masks=torch.from_numpy(masks),
    )


def _predict_clips(
    predictor: VideoPredictor, clips: Iterable[Sequence[Record]], evaluator: ProtocolEvaluator
) -> None:
    """Each frame is encoded once for all that is asked about its clip."""
    alone = evaluator.metadata.merge == "each"
    for records in clips:
        frames = (read_image(path) for path in records[0]["file_names"])
        prompts = clip_prompts(records, alone=alone)
        evaluator.process(records, predictor.run(frames, prompts))


def _clips(name: str) -> list[list[Record]]:
    """The records of each clip, at most as many as there are ids of objects."""
    groups: dict[str, list[Record]] = {}
    for record in load_records(name):
        groups.setdefault(record["clip_id"], []).append(record)
    return [
        records[start : start + MAX_OBJECT_ID]
        for records in groups.values()
        for start in range(0, len(records), MAX_OBJECT_ID)
    ]


def clip_prompts(records: Sequence[Record], *, alone: bool = False) -> dict[int, dict[int, Prompt]]:
    """Frame index -> object id -> prompt of the records of one clip.

    Masks start objects at their first frames. Sentences that are judged ``alone`` name the objects
    1, 2, ...; others those that they refer to, or object 1 if there is one.
    """
    if "expression" in records[0]:
        named = alone or len(records) == 1
        ids = range(1, len(records) + 1) if named else [r["target_ids"][0] for r in records]
        return {0: {i: Prompt(r["expression"]) for i, r in zip(ids, records, strict=True)}}
    prompts: dict[int, dict[int, Prompt]] = {}
    record: Any = records[0]
    for number, frame in record["first_frames"].items():
        mask = frame_masks(record, frame)[number]
        prompts.setdefault(frame, {})[number] = Prompt(mask=mask)
    return prompts


def _progress(items: Any, name: str) -> Any:
    hidden = None if comm.is_main_process() else True  # None: only on a terminal
    return require("tqdm").tqdm(items, desc=name, disable=hidden)
