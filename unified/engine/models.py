"""Models by name, ready to use."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from unified.checkpoint import FOREIGN_PREFIX, LoadReport, Weights, load_weights, read_weights
from unified.devices import pick_device
from unified.engine.config import load_config, with_options
from unified.engine.inference import settings_of
from unified.engine.system import ModelEntry, find_systems, system
from unified.errors import CheckpointError, ConfigError, InputError
from unified.files import file_sha256
from unified.inference.settings import ModelInfo
from unified.layout import ROOT
from unified.weights import WEIGHTS, resolve

logger = logging.getLogger(__name__)

CONFIGS = ROOT / "configs"
CHOOSER = "unified.inference.chooser"


def model_entries() -> dict[str, ModelEntry]:
    """What users can name, of all systems."""
    return {
        name: entry for found in find_systems().values() for name, entry in found.models.items()
    }


def models(*, points: bool = False) -> tuple[str, ...]:
    """Names that ``load`` takes, or of those only the models that follow points."""
    entries = model_entries()
    return tuple(name for name, entry in entries.items() if entry.points or not points)


def default_model() -> str:
    """The model that is used where none is named.

    Raises:
        ConfigError: no system that works brings one.
    """
    for name, entry in model_entries().items():
        if entry.default:
            return name
    raise ConfigError("no model is the default here: name one, or give a yaml file")


def load(
    name_or_config: str | Path | CfgNode | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    options: Sequence[str] = (),
    kinds: Collection[str] = (),
) -> nn.Module:
    """A model in eval mode with its weights, ready for the predictors.

    Args:
        name_or_config: a name of ``models()``, a yaml file, or a configuration; by default the
            small model that comes with the toolkit.
        weights: a weights file (ours or the official layout) or a name of the weights registry.
            Without it, those of the named model or of ``MODEL.WEIGHTS``; if there are none, a
            warning says that the model is untrained.
        device: "auto", "cpu" or any name that torch knows.
        options: ``KEY VALUE`` pairs that override the configuration.
        kinds: of prompts it is going to be asked with: "text", "mask", "point", "box".

    Returns:
        The model; its attribute ``info`` is a ``ModelInfo``, ``inference`` how the predictors ask
        it.

    Raises:
        ConfigError: name, configuration or device are wrong.
        CheckpointError: the weights are not there or belong to another model.
        InputError: it does not follow such prompts; no weights were read.
    """
    wanted_model = default_model() if name_or_config is None else name_or_config
    cfg, name, file, registered = _configuration(wanted_model, options)
    target = pick_device(device)
    wanted = weights or registered or cfg.MODEL.WEIGHTS or None
    path = None if wanted is None else _weights_file(wanted)
    model = system(cfg.MODEL.META_ARCHITECTURE).build(cfg)
    _check_kinds(name, model.reference_kinds, kinds)
    load_checkpoint(model, cfg, path)
    if path is None:
        logger.warning(
            "%s has no trained weights yet: what it segments is random. Give --weights FILE", name
        )
    model.info = ModelInfo(
        name=name,
        system=cfg.MODEL.META_ARCHITECTURE,
        config=None if file is None else str(file),
        weights=None if path is None else str(path),
        sha256=None if path is None else file_sha256(path),
    )
    model.inference = settings_of(cfg)
    model.to(target).eval()
    attach_chooser(model, cfg, model.info.sha256)
    return model


def attach_chooser(model: Any, cfg: CfgNode, sha256: str | None) -> None:
    """Gives a model what chooses among its masks, if the configuration names one, or another model
    whose chooser shows it what to outline.

    Without the folder ``unified/inference/chooser`` sentences are answered without, and after a
    warning so they are where the model that would show is not installed.

    Args:
        model: in eval mode, on its device.
        sha256: of its weights file.

    Raises:
        CheckpointError: the weights of the chooser are missing or damaged.
        ConfigError: it does not fit the model.
    """
    name = cfg.INFERENCE.CHOOSER
    if not name or find_spec(CHOOSER) is None:
        return
    building = import_module(f"{CHOOSER}.building")
    if name in model_entries():
        model.chooser = building.build_guided(model, load(name, device="cpu"))
        model.chooser_name = name
    elif name in WEIGHTS or Path(name).suffix or Path(name).is_file():
        model.chooser = building.build_chooser(model, _weights_file(name), sha256)
        model.chooser_name = name
    else:
        logger.warning(
            "INFERENCE.CHOOSER: the model %s is not installed, so sentences about images are "
            "answered without it; installed are %s. With INFERENCE.CHOOSER '' they always are",
            name,
            ", ".join(model_entries()),
        )


def _check_kinds(name: str, known: Collection[str], kinds: Collection[str]) -> None:
    """Raises InputError unless a model that follows ``known`` follows all ``kinds``."""
    # A box becomes the mask of its rectangle.
    missing = [k for k in kinds if k not in known and not (k == "box" and "mask" in known)]
    if "point" in missing:
        others = ", ".join(models(points=True)) or "none is installed"
        raise InputError(
            f"the model {name} follows no points: choose another model ({others}), or give a box "
            "or a mask"
        )
    if missing:
        what = " and ".join(sorted(known)) or "none"
        raise InputError(
            f"the model {name} does not follow {missing[0]} prompts, but {what}: choose another"
        )


def load_checkpoint(
    model: nn.Module, cfg: CfgNode, path: Path | None, *, to_train: bool = False
) -> LoadReport | None:
    """Loads a weights file of either layout, and the parts that the config takes from elsewhere.

    Parts among ``System.spare_keys`` that the model lacks are left out.

    Args:
        to_train: whole parts and ``System.added_keys`` that the file lacks, and class predictors
            for other classes, keep their initial values; whole parts that the model lacks are left
            out.

    Returns:
        What became of the entries of the file, if there is one.

    Raises:
        CheckpointError: the weights belong to another model.
    """
    builder = system(cfg.MODEL.META_ARCHITECTURE)
    content: Weights = {}
    if path is not None:
        content = read_weights(path)
        table = builder.table_of(content)
        if table is not None and table.is_foreign(content):
            content, report = table.to_native(content)
            if report.unexpected:
                raise CheckpointError(
                    f"{path} holds {len(report.unexpected)} entries that no such model has, "
                    f"first {report.unexpected[0]}"
                )
    elsewhere = builder.load_parts(model, cfg, content)
    if path is None:
        return None
    parts = tuple(f"{name}." for name, _ in model.named_children())
    own = model.state_dict()
    absent = tuple(
        part
        for part in (*parts, *builder.added_keys)
        if any(key.startswith(part) for key in own)
        and not any(key.startswith(part) for key in content)
    )
    spare = tuple(part for part in builder.spare_keys if part not in parts)
    if to_train:
        known = (*parts, FOREIGN_PREFIX)
        content = _without(content, {key for key in content if not key.startswith(known)}, path)
        if absent:
            logger.info("%s has no %s: these parts start fresh", path, " ".join(absent))
    else:
        content = _without(content, {key for key in content if key.startswith(spare)}, path)
    return load_weights(
        model,
        content,
        optional=(*elsewhere, *absent) if to_train else elsewhere,
        reinitialise=builder.class_keys if to_train else (),
        source=str(path),
    )


def _without(content: Weights, left: Collection[str], path: Path) -> Weights:
    """The other entries; says which parts are left out."""
    if left:
        names = ", ".join(sorted({key.partition(".")[0] for key in left}))
        logger.info("%s also holds %s, which this model does not have", path, names)
    return {key: value for key, value in content.items() if key not in left}


def _configuration(
    name_or_config: str | Path | CfgNode, options: Sequence[str]
) -> tuple[CfgNode, str, Path | None, str | None]:
    """Config, name, file and registered weights, unless the options name others."""
    if isinstance(name_or_config, CfgNode):
        cfg = with_options(name_or_config, options)
        return cfg, cfg.MODEL.META_ARCHITECTURE, None, None
    name = str(name_or_config)
    entries = model_entries()
    entry = entries.get(name)
    if entry is None and Path(name).suffix not in (".yaml", ".yml"):
        near = get_close_matches(name, entries, n=1)
        meant = f"did you mean {near[0]}? Else " if near else ""
        raise ConfigError(
            f"model {name!r} is unknown: {meant}choose one of {', '.join(entries)} or give a yaml "
            "file"
        )
    file = Path(name) if entry is None else CONFIGS / entry.config
    registered = entry.weights if entry and "MODEL.WEIGHTS" not in options else None
    return load_config(file, options), name, file, registered


def _weights_file(wanted: str | Path) -> Path:
    if str(wanted) in WEIGHTS:
        return resolve(str(wanted))
    path = Path(wanted)
    if "://" in str(wanted):
        raise CheckpointError(f"weights {wanted} are an address: download the file first")
    if path.is_dir():
        raise CheckpointError(f"weights {path} are a folder: give the file of the weights in it")
    if not path.is_file():
        raise CheckpointError(
            f"weights {path} do not exist: give a file, or one of {', '.join(WEIGHTS)}"
        )
    return path
