"""Predicts test sets with a model and scores them with the code that scores files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from unified.data.catalog import find_dataset, load_records, register_datasets
from unified.data.formats.files import read_image
from unified.data.formats.records import Record, frame_masks
from unified.data.loader import build_test_loader
from unified.data.mappers import TestMapper
from unified.dependencies import require
from unified.engine.meta_arch import SegmenterShell
from unified.engine.sources import input_option
from unified.errors import ConfigError
from unified.evaluation.evaluators import ProtocolEvaluator, build_evaluator
from unified.inference.predictor import VideoPredictor
from unified.structures import FrameResult, Prompt
from unified.tasks import TASKS, Task

logger = logging.getLogger(__name__)


def evaluate(cfg: CfgNode, shell: SegmenterShell, weights: Path | None = None) -> dict[str, float]:
    """``dataset/protocol/metric`` -> number in percent of all sets in ``DATASETS.TEST``.

    All processes take part, the first one gets the numbers. Predictions, reports and cards are
    written below ``OUTPUT_DIR/inference``. The shell is left in eval mode.

    Raises:
        ConfigError: a set is unknown or cannot be evaluated.
        InputError: a set is not installed.
    """
    names = tuple(cfg.DATASETS.TEST)
    register_datasets(names)
    shell.eval()
    numbers: dict[str, float] = {}
    for name in names:
        evaluator = build_evaluator(name, Path(cfg.OUTPUT_DIR) / "inference", weights)
        evaluator.reset()
        with torch.inference_mode():
            if TASKS[find_dataset(name).task].num_frames > 1:
                _predict_clips(cfg, shell, name, evaluator)
            else:
                _predict_images(cfg, shell, name, evaluator)
        for protocol, values in evaluator.evaluate().items():
            numbers |= {f"{name}/{protocol}/{key}": value for key, value in values.items()}
    return numbers


def check_test_sets(cfg: CfgNode) -> None:
    """Raises ConfigError or InputError unless every set in ``DATASETS.TEST`` can be evaluated."""
    for name in cfg.DATASETS.TEST:
        if find_dataset(name).split != "test":
            raise ConfigError(f"DATASETS.TEST lists {name}, which is a training set")
        load_records(name)


def _predict_images(
    cfg: CfgNode, shell: SegmenterShell, name: str, evaluator: ProtocolEvaluator
) -> None:
    mapper = TestMapper(
        short_side=input_option(cfg, name, "MIN_SIZE_TEST", cfg.INFERENCE.IMAGE_SHORT_SIDE),
        max_size=input_option(cfg, name, "MAX_SIZE_TEST", cfg.INFERENCE.MAX_SIZE),
        num_supports=cfg.TASK.FSS.NSHOT,
        support_margin=cfg.INFERENCE.SUPPORT_MARGIN,
    )
    loader = build_test_loader(
        name,
        mapper,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    device = next(shell.parameters()).device.type
    precision = cfg.INFERENCE.PRECISION
    half = precision != "float32"
    mirror = cfg.INFERENCE.MIRROR and TASKS[find_dataset(name).task].top_k == 1
    for sample in _progress(loader, len(loader), name):
        with torch.autocast(device, getattr(torch, precision) if half else None, enabled=half):
            outputs = [shell.predict_mirrored(sample)] if mirror else shell([sample])
        evaluator.process([sample], outputs)


def _predict_clips(
    cfg: CfgNode, shell: SegmenterShell, name: str, evaluator: ProtocolEvaluator
) -> None:
    groups = _clips(name)
    share = groups[comm.get_rank() :: comm.get_world_size()]
    metadata = MetadataCatalog.get(name)
    for records in _progress(share, len(share), name):
        predictor = VideoPredictor(
            shell.model,
            score_threshold=metadata.score_threshold,
            merge_rule="soft",
            use_memory=metadata.memory,
            mask_stride=TASKS[Task(records[0]["task"])].mask_stride,
            short_side=input_option(cfg, name, "MIN_SIZE_TEST", cfg.INFERENCE.VIDEO_SHORT_SIDE),
            max_size=input_option(cfg, name, "MAX_SIZE_TEST", cfg.INFERENCE.MAX_SIZE),
            precision=cfg.INFERENCE.PRECISION,
            objects_per_pass=cfg.INFERENCE.OBJECTS_PER_PASS,
        )
        evaluator.process(records[:1], [_follow(predictor, records)])


def _clips(name: str) -> list[list[Record]]:
    """Records to run together: the sentences of a clip whose objects compete, else one by one."""
    records = load_records(name)
    if MetadataCatalog.get(name).merge != "soft":
        return [[record] for record in records]
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["clip_id"], []).append(record)
    return list(groups.values())


def _follow(predictor: VideoPredictor, records: Sequence[Record]) -> Iterator[FrameResult]:
    """Results of every frame of one clip."""
    frames = (read_image(path) for path in records[0]["file_names"])
    return predictor.run(frames, clip_prompts(records))


def clip_prompts(records: Sequence[Record]) -> dict[int, dict[int, Prompt]]:
    """Frame index -> object id -> prompt of the records of one clip.

    Masks start objects at their first frames. A single sentence names object 1; several sentences
    about one clip name the objects that they refer to.
    """
    if "expression" in records[0]:
        if len(records) == 1:
            return {0: {1: Prompt(text=records[0]["expression"])}}
        return {
            0: {record["target_ids"][0]: Prompt(text=record["expression"]) for record in records}
        }
    prompts: dict[int, dict[int, Prompt]] = {}
    record: Any = records[0]
    for number, frame in record["first_frames"].items():
        mask = frame_masks(record, frame)[number]
        prompts.setdefault(frame, {})[number] = Prompt(mask=mask)
    return prompts


def _progress(items: Any, total: int, name: str) -> Any:
    hidden = None if comm.is_main_process() else True  # None: only on a terminal
    return require("tqdm").tqdm(items, total=total, desc=name, disable=hidden)
