"""Configurations: Detectron2's keys, plus one node per system under ``MODEL``."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from detectron2.config import CfgNode, get_cfg

from unified.errors import ConfigError
from unified.layout import PREFIX, find_config

# MODEL.META_ARCHITECTURE -> module with add_config(cfg), build(cfg), key_table(weights).
SYSTEMS = {"UniRef": f"{PREFIX}projects.uniref.config"}


def system(name: str) -> ModuleType:
    """The config module of a system.

    Raises:
        ConfigError: there is no such system, or its folder was removed.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"MODEL.META_ARCHITECTURE is {name!r}: choose one of {sorted(SYSTEMS)}")
    return importlib.import_module(SYSTEMS[name])


def default_config() -> CfgNode:
    """Detectron2's defaults with the keys of every installed system."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "UniRef"
    cfg.MODEL.DEVICE = "auto"
    cfg.INFERENCE = CfgNode()
    cfg.INFERENCE.SCORE_THRESHOLD = 0.3  # of clips: an object with a lower score is absent
    cfg.INFERENCE.IMAGE_SCORE_THRESHOLD = 0.0  # the same in tools/infer_image.py
    cfg.INFERENCE.OBJECTS_PER_PASS = 8
    cfg.INFERENCE.PRECISION = "float32"
    cfg.INFERENCE.IMAGE_SHORT_SIDE = 800
    cfg.INFERENCE.VIDEO_SHORT_SIDE = 480
    cfg.INFERENCE.MAX_SIZE = 1333
    # Example images are cropped around their object, see ``object_window``.
    cfg.INFERENCE.SUPPORT_MARGIN = math.inf
    cfg.INFERENCE.MIRROR = False  # images are asked as their mirror image too
    _add_data(cfg)
    _add_solver(cfg)
    for name in SYSTEMS:
        system(name).add_config(cfg)
    return cfg


def _add_data(cfg: CfgNode) -> None:
    """What to train on; maps are keyed by dataset name and hold what differs from the rest."""
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    cfg.DATALOADER.RATIOS = CfgNode(new_allowed=True)  # of batches, 1 where nothing is said
    cfg.DATALOADER.BATCH_SIZES = CfgNode(new_allowed=True)  # instead of SOLVER.IMS_PER_BATCH
    cfg.DATALOADER.NUM_WORKERS = 4  # per process
    image = cfg.INPUT
    image.MIN_SIZE_TRAIN = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    image.MAX_SIZE_TRAIN = 1333
    image.SIZE_PER_BATCH = False  # one of MIN_SIZE_TRAIN for a batch, not for each sample
    image.CROP_PROBABILITY = 0.5
    image.CROP_RANGE = (384, 600)
    image.PRE_CROP_SIZES = (400, 500, 600)  # shorter sides before a crop; () crops the original
    image.FLIP_PROBABILITY = 0.5
    image.COLOR = 0.0  # largest relative change of brightness, contrast and saturation
    image.FRAME_RANGE = 10  # largest distance of the two frames of a clip
    image.PER_DATASET = CfgNode(new_allowed=True)  # name -> any of the keys above
    cfg.TASK = CfgNode()
    cfg.TASK.FSS = CfgNode()
    cfg.TASK.FSS.NSHOT = 1
    cfg.TASK.FSS.NSHOT_TRAIN = ()  # one of these is drawn per batch; () is NSHOT
    cfg.TASK.FSS.MARGINS_TRAIN = (math.inf,)  # as SUPPORT_MARGIN; one is drawn per support


def _add_solver(cfg: CfgNode) -> None:
    """How to train; Detectron2's keys where it has them, with the reference's values."""
    cfg.SEED = 0
    solver = cfg.SOLVER
    solver.BASE_LR = 1e-4
    solver.BACKBONE_MULTIPLIER = 0.1
    solver.TEXT_ENCODER_LR = 1e-5
    solver.WEIGHT_DECAY = 0.05
    solver.STEPS = ()
    solver.WARMUP_FACTOR, solver.WARMUP_ITERS = 1.0, 0
    # Over the gradient of the whole model, in all groups.
    solver.CLIP_GRADIENTS.ENABLED = True
    solver.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    solver.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    solver.AMP.DTYPE = "bfloat16"  # or float16, with loss scaling; used if AMP.ENABLED
    solver.ACCUMULATE = 1  # batches per process and step; IMS_PER_BATCH stays that of a step
    solver.EMA_DECAY = 0.0  # of the averaged weights that are evaluated and handed on; 0 is off
    solver.LOG_PERIOD = 20
    solver.WANDB = ""  # project of Weights & Biases


def load_config(file: str | Path | None = None, options: Sequence[str] = ()) -> CfgNode:
    """The configuration of a yaml file and ``KEY VALUE`` pairs, frozen.

    Raises:
        ConfigError: the file is missing or no yaml, a key is unknown or a value does not fit.
    """
    cfg = default_config()
    if file is not None:
        file = find_config(file)
        if not file.is_file():
            raise ConfigError(f"config file {file} does not exist")
        try:
            cfg.merge_from_file(str(file))
        except (KeyError, ValueError, AssertionError, AttributeError) as error:
            raise ConfigError(f"{file}: {_reason(error)}") from error
        except Exception as error:  # yaml and file handlers raise kinds of their own
            raise ConfigError(f"{file} cannot be read as a config: {_reason(error)}") from error
    return with_options(cfg, options)


def with_options(cfg: CfgNode, options: Sequence[str]) -> CfgNode:
    """A frozen copy in which ``KEY VALUE`` pairs replace what was there.

    Raises:
        ConfigError: a key is unknown, a value does not fit, or one of them is missing.
    """
    check_pairs(options)
    cfg = cfg.clone()
    cfg.defrost()
    try:
        cfg.merge_from_list(_whole_floats(cfg, options))
    except (KeyError, ValueError, AssertionError) as error:
        raise ConfigError(f"command line options: {_reason(error)}") from error
    cfg.freeze()
    return cfg


def check_pairs(options: Sequence[str]) -> None:
    """Raises ConfigError unless options of a command line are ``KEY VALUE`` pairs."""
    flags = [option for option in options if option.startswith("--")]
    if flags:
        raise ConfigError(f"{flags[0]} follows the keys: flags go before KEY VALUE pairs")
    if len(options) % 2:
        raise ConfigError(f"expected pairs of KEY VALUE, got {' '.join(options)}")


def _whole_floats(cfg: CfgNode, options: Sequence[str]) -> list[str]:
    """The options with 1.0 instead of 1 where the configuration has a float."""
    values = list(options)
    for place in range(0, len(values), 2):
        known: object = cfg
        for part in values[place].split("."):
            known = known.get(part) if isinstance(known, CfgNode) else None
        if isinstance(known, float) and re.fullmatch(r"[+-]?\d+", values[place + 1]):
            values[place + 1] += ".0"
    return values


def _reason(error: BaseException) -> str:
    text = str(error).strip().strip("'\"") or type(error).__name__
    return " ".join(text.split())[:300]
