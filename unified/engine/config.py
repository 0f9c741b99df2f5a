"""Configurations: Detectron2's keys, plus one node per system under ``MODEL``."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from unified.engine.system import find_systems, prepare
from unified.errors import ConfigError, InputError
from unified.files import read_text
from unified.layout import find_config


def default_config() -> CfgNode:
    """Detectron2's defaults with the keys of every installed system."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = ""  # name of a system
    cfg.EXTENSIONS = ()  # modules to import that register fusion layers, backbones, tasks, datasets
    cfg.MODEL.DEVICE = "auto"
    cfg.INFERENCE = CfgNode()
    cfg.INFERENCE.SCORE_THRESHOLD = 0.3  # of clips: an object with a lower score is absent
    cfg.INFERENCE.IMAGE_SCORE_THRESHOLD = 0.0  # the same in tools/infer_image.py
    # Of clips: until a sentence alone reaches it, it is asked beside the memory of its answers.
    cfg.INFERENCE.MEMORY_SCORE = 0.0
    cfg.INFERENCE.MEMORY_INTERVAL = 1  # of clips: frames from one remembered mask to the next
    cfg.INFERENCE.OBJECTS_PER_PASS = 8
    cfg.INFERENCE.PRECISION = "float32"
    cfg.INFERENCE.COMPILE = False
    cfg.INFERENCE.IMAGE_SHORT_SIDE = 800
    cfg.INFERENCE.VIDEO_SHORT_SIDE = 480
    cfg.INFERENCE.MAX_SIZE = 1333
    # Example images are cropped around their object, see ``object_window``.
    cfg.INFERENCE.SUPPORT_MARGIN = math.inf
    cfg.INFERENCE.MIRROR = False  # images are asked as their mirror image too
    # Weights by name or file of what chooses among masks of an image, or the name of a model whose
    # chooser shows this one what a sentence means.
    cfg.INFERENCE.CHOOSER = ""
    _add_data(cfg)
    _add_solver(cfg)
    for found in find_systems().values():
        prepare(found, cfg)
    return cfg


def _add_data(cfg: CfgNode) -> None:
    """What to train on; maps are keyed by dataset name and hold what differs from the rest."""
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    cfg.DATALOADER.RATIOS = CfgNode(new_allowed=True)  # of batches, 1 where nothing is said
    cfg.DATALOADER.BATCH_SIZES = CfgNode(new_allowed=True)  # instead of SOLVER.IMS_PER_BATCH
    cfg.DATALOADER.NUM_WORKERS = 4  # per process
    cfg.DATALOADER.ONE_DATASET_PER = "step"  # or "process": their tasks differ within a step
    image = cfg.INPUT
    image.MIN_SIZE_TRAIN = (480,)
    image.MAX_SIZE_TRAIN = 1333
    image.SIZE_PER_BATCH = False  # one of MIN_SIZE_TRAIN for a batch, not for each sample
    image.CROP_PROBABILITY = 0.0
    image.CROP_RANGE = (384, 600)
    image.PRE_CROP_SIZES = ()  # shorter sides before a crop; () crops the original
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
    """How to train; Detectron2's keys where it has them, with plain values for AdamW."""
    cfg.SEED = 0
    solver = cfg.SOLVER
    solver.BASE_LR = 1e-4
    solver.WEIGHT_DECAY = 0.01
    solver.STEPS = ()
    solver.POLY_LR_POWER = 0.9  # of WarmupPolyLR
    solver.WARMUP_FACTOR, solver.WARMUP_ITERS = 1.0, 0
    # Over the gradient of the whole model, in all groups.
    solver.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    solver.AMP.DTYPE = "bfloat16"  # or float16, with loss scaling; used if AMP.ENABLED
    solver.ACCUMULATE = 1  # batches per process and step; IMS_PER_BATCH stays that of a step
    solver.EMA_DECAY = 0.0  # of the averaged weights that are evaluated and handed on; 0 is off
    solver.LOG_PERIOD = 20
    solver.WANDB = ""  # project of Weights & Biases


def load_config(file: str | Path | None = None, options: Sequence[str] = ()) -> CfgNode:
    """The configuration of a yaml file and ``KEY VALUE`` pairs, frozen.

    Raises:
        ConfigError: the file is missing or no yaml, a key is unknown, a value does not fit, or a
            module of ``EXTENSIONS`` cannot be imported.
    """
    cfg = default_config()
    if file is not None:
        file = find_config(file)
        if not file.is_file():
            raise ConfigError(f"config file {file} does not exist")
        try:
            cfg.merge_from_other_cfg(CfgNode(_read_file(file)))
        except InputError as error:  # it names the file, which may be a base of this one
            raise ConfigError(f"cannot be read as a config: {error}") from error
        except (KeyError, ValueError, AssertionError, AttributeError) as error:
            raise ConfigError(f"{file}: {_reason(error)}") from error
        except Exception as error:  # yaml and file handlers raise kinds of their own
            raise ConfigError(f"{file} cannot be read as a config: {_reason(error)}") from error
    return with_options(cfg, options)


def _read_file(file: Path) -> dict[str, Any]:
    """Content of a yaml file over that of its ``_BASE_``.

    A base is relative to the file, or to the toolkit where it starts with ``configs/`` and is not
    beside the file.
    """
    content = yaml.safe_load(read_text(file)) or {}
    if not isinstance(content, dict):
        raise ValueError(f"expected keys and values, got {type(content).__name__}")
    base = content.pop("_BASE_", None)
    if base is None:
        return content
    beside = file.parent / base
    return _overlay(_read_file(beside if beside.exists() else find_config(base)), content)


def read_runs(
    file: str | Path, kind: str, keys: Set[str], listed: str
) -> tuple[Path, dict[str, Any]]:
    """Where a yaml file that lists runs is, and its content.

    Args:
        kind: what the file is called in errors.
        keys: that it has, all and no other.
        listed: the key among them that lists one or more things.

    Raises:
        ConfigError: the file is missing, no yaml, or has other keys or an empty list.
    """
    path = find_config(file)
    if not path.is_file():
        raise ConfigError(f"{kind} file {path} does not exist")
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or set(content) != keys:
        raise ConfigError(f"{path}: expected the keys {sorted(keys)}")
    if not isinstance(content[listed], list) or not content[listed]:
        raise ConfigError(f"{path}: expected a list with one or more entries as {listed}")
    return path, content


def _overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``top``, node by node."""
    both = {
        key: _overlay(base[key], value)
        for key, value in top.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | top | both


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
    _import_extensions(cfg)
    return cfg


def _import_extensions(cfg: CfgNode) -> None:
    """Lets the modules of ``EXTENSIONS`` register what the configuration may name."""
    for module in cfg.EXTENSIONS:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the module of a user raises
            raise ConfigError(
                f"EXTENSIONS names {module!r}, which cannot be imported: {_reason(error)}"
            ) from error


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
