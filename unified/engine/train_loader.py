"""The stream of training batches that a configuration describes."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from unified.data.augmentation import Augmentation
from unified.data.catalog import find_dataset
from unified.data.loader import Source, TrainLoader, train_records
from unified.data.mappers import TrainMapper
from unified.engine.system import system
from unified.errors import ConfigError
from unified.tasks import TASKS


def build_train_loader(cfg: CfgNode) -> TrainLoader:
    """Batches of the sets in ``DATASETS.TRAIN`` for this process.

    Raises:
        ConfigError: a name is unknown, no training set, or a map names a set that is not used.
        InputError: a set is not installed; the message says where it is expected.
    """
    names = tuple(cfg.DATASETS.TRAIN)
    for key in ("DATALOADER.RATIOS", "DATALOADER.BATCH_SIZES"):
        unused = set(_node(cfg, key)) - set(names)
        if unused:
            raise ConfigError(f"{key} names {sorted(unused)}, which DATASETS.TRAIN does not list")
    for name in names:
        row = find_dataset(name)
        if row.split != "train":
            raise ConfigError(f"DATASETS.TRAIN lists {name}, which is a test set")
        if not TASKS[row.task].has_masks:
            _check_learns_without_masks(cfg, name)
    return TrainLoader(
        [build_source(cfg, name) for name in names],
        seed=cfg.SEED,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        one_dataset_per=cfg.DATALOADER.ONE_DATASET_PER,
    )


def _check_learns_without_masks(cfg: CfgNode, name: str) -> None:
    learner = cfg.MODEL.META_ARCHITECTURE
    if system(learner).supervision(cfg).masks:
        raise ConfigError(
            f"DATASETS.TRAIN lists {name}, which has no masks, and {learner} learns from masks: "
            "choose other sets, or a system that learns from captions"
        )


def build_source(cfg: CfgNode, name: str) -> Source:
    """One training set with what its samples go through.

    Raises:
        ConfigError, InputError: as for ``build_train_loader``.
    """
    unknown = set(cfg.INPUT.PER_DATASET.get(name, {})) - set(cfg.INPUT)
    if unknown:
        raise ConfigError(f"INPUT.PER_DATASET.{name} has {sorted(unknown)}: INPUT has no such key")
    num_supports = tuple(cfg.TASK.FSS.NSHOT_TRAIN) or (cfg.TASK.FSS.NSHOT,)
    if min(num_supports) < 1:
        raise ConfigError(
            f"TASK.FSS asks for {num_supports} support images in training: expected at least 1"
        )
    margins = tuple(cfg.TASK.FSS.MARGINS_TRAIN)
    if not margins or not all(isinstance(m, (int, float)) and m >= 0 for m in margins):
        raise ConfigError(
            f"TASK.FSS.MARGINS_TRAIN is {margins}: expected at least one number of 0 or more, .inf "
            "in a file or 1e999 on the command line for whole pictures"
        )
    mapper = TrainMapper(
        augmentation=Augmentation(
            short_sides=tuple(input_option(cfg, name, "MIN_SIZE_TRAIN")),
            max_size=input_option(cfg, name, "MAX_SIZE_TRAIN"),
            flip=input_option(cfg, name, "FLIP_PROBABILITY"),
            crop=input_option(cfg, name, "CROP_PROBABILITY"),
            crop_range=tuple(input_option(cfg, name, "CROP_RANGE")),
            pre_crop_sides=tuple(input_option(cfg, name, "PRE_CROP_SIZES")),
            colour=input_option(cfg, name, "COLOR"),
            per_batch=input_option(cfg, name, "SIZE_PER_BATCH"),
        ),
        num_supports=num_supports,
        support_margins=margins,
        frame_range=input_option(cfg, name, "FRAME_RANGE"),
    )
    return Source(
        name=name,
        records=train_records(name),
        mapper=mapper,
        ratio=float(cfg.DATALOADER.RATIOS.get(name, 1.0)),
        batch_size=int(cfg.DATALOADER.BATCH_SIZES.get(name, cfg.SOLVER.IMS_PER_BATCH)),
    )


def input_option(cfg: CfgNode, name: str, key: str) -> Any:
    """``INPUT.PER_DATASET[name][key]`` or else ``INPUT[key]``."""
    return cfg.INPUT.PER_DATASET.get(name, {}).get(key, cfg.INPUT[key])


def _node(cfg: CfgNode, key: str) -> CfgNode:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
