"""Configurations: Detectron2's keys, plus one node per system under ``MODEL``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from detectron2.config import CfgNode, get_cfg

from unified.errors import ConfigError

# MODEL.META_ARCHITECTURE -> module with add_config(cfg), build(cfg), key_table(weights).
SYSTEMS = {"UniRef": "projects.uniref.config"}


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
    # Score below which a video object is absent, longest side and precision at inference.
    cfg.INFERENCE = CfgNode()
    cfg.INFERENCE.SCORE_THRESHOLD = 0.3
    cfg.INFERENCE.OBJECTS_PER_PASS = 8
    cfg.INFERENCE.PRECISION = "float32"
    cfg.INFERENCE.IMAGE_SHORT_SIDE = 800
    cfg.INFERENCE.VIDEO_SHORT_SIDE = 480
    cfg.INFERENCE.MAX_SIZE = 1333
    for name in SYSTEMS:
        system(name).add_config(cfg)
    return cfg


def load_config(file: str | Path | None = None, options: Sequence[str] = ()) -> CfgNode:
    """The configuration of a yaml file and ``KEY VALUE`` pairs, frozen.

    Raises:
        ConfigError: the file is missing or no yaml, a key is unknown or a value does not fit.
    """
    cfg = default_config()
    if file is not None:
        if not Path(file).is_file():
            raise ConfigError(f"config file {file} does not exist")
        try:
            cfg.merge_from_file(str(file))
        except (KeyError, ValueError, AssertionError, AttributeError) as error:
            raise ConfigError(f"{file}: {_reason(error)}") from error
        except Exception as error:  # yaml and file handlers raise kinds of their own
            raise ConfigError(f"{file} cannot be read as a config: {_reason(error)}") from error
    if len(options) % 2:
        raise ConfigError(f"expected pairs of KEY VALUE, got {' '.join(options)}")
    try:
        cfg.merge_from_list(list(options))
    except (KeyError, ValueError, AssertionError) as error:
        raise ConfigError(f"command line options: {_reason(error)}") from error
    cfg.freeze()
    return cfg


def _reason(error: BaseException) -> str:
    text = str(error).strip().strip("'\"") or type(error).__name__
    return " ".join(text.split())[:300]
