"""What a system brings to the toolkit, and how systems are found.

A system is a folder ``projects/<name>`` whose ``system.py`` holds a ``System`` called ``SYSTEM``,
or a Python entry point of the group ``unified.systems`` that names one. Nothing else of the toolkit
knows a system by name. A ``system.py`` imports its model inside functions, so that finding all
systems is cheap and needs no Detectron2.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified.checkpoint import KeyTable
from unified.errors import ConfigError
from unified.layout import PREFIX
from unified.parity import Comparison
from unified.weights import WeightsEntry, register_weights

if TYPE_CHECKING:
    from torch import Tensor, nn
    from yacs.config import CfgNode

    from unified.structures import Target

logger = logging.getLogger(__name__)

PROJECTS = f"{PREFIX}projects"
ENTRY_POINTS = "unified.systems"
FILE = "system.py"


@dataclass(frozen=True)
class Profile:
    """What ``tools/benchmark.py systems`` needs to know of a model beside what it measures.

    Attributes:
        size: (h, w) of the pictures that its publication speaks of.
        published: its results, as others report them.
        made: results of the system's tiny recipe on made sentences; "" if it was not run.
    """

    size: tuple[int, int]
    published: str = ""
    made: str = ""


@dataclass(frozen=True)
class ModelEntry:
    """A model that users can name.

    Attributes:
        config: file below ``configs/``, or an absolute path.
        weights: name in the weights registry; None for a model to be trained first.
        default: used where no model is named; at most one of all systems.
        points: it follows points, so others name it to who asks for them.
        profile: makes it a row of the table of all systems.
    """

    config: str | Path
    weights: str | None = None
    default: bool = False
    points: bool = False
    profile: Profile | None = None


@dataclass(frozen=True)
class Layout:
    """A foreign layout of checkpoints.

    Attributes:
        name: as ``tools/convert_checkpoint.py --to`` takes it.
        find: keys of a file -> the table between this layout and ours that fits them, whichever of
            the two the file has; None if it has neither.
    """

    name: str
    find: Callable[[Iterable[str]], KeyTable | None]


@dataclass(frozen=True)
class ParameterGroup:
    """How the optimiser treats a parameter: its initial learning rate and weight decay."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Supervision:
    """What the losses of a model are given.

    Attributes:
        masks: they look at masks; if not, sets without any can be trained on.
        class_agnostic: every label is 0.
        from_boxes: masks are the filled boxes, with the colour similarity of neighbouring pixels.
        schedule: (losses by name, number of the step) -> the losses of that step; None keeps them.
        complete_target: (target, sample) -> the target with what else of the sample the losses want
            to know; None keeps it.
    """

    masks: bool = True
    class_agnostic: bool = False
    from_boxes: bool = False
    schedule: Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]] | None = None
    complete_target: Callable[[Target, Mapping[str, Any]], Target] | None = None


@dataclass(frozen=True)
class Recording:
    """A recorded run of a reference implementation, as ``tools/check_parity.py`` was given it.

    Attributes:
        path: the .npz file.
        arrays: its content.
        manifest: {official key: [shape, dtype]}, if one was given.
        config_file: a configuration instead of the one that the recording asks for.
        options: ``KEY VALUE`` pairs for the configuration.
    """

    path: Path
    arrays: Mapping[str, np.ndarray]
    manifest: Mapping[str, list[Any]] | None = None
    config_file: Path | None = None
    options: Sequence[str] = ()


@dataclass(frozen=True)
class Replay:
    """How one kind of recording is computed again.

    Attributes:
        fits: whether a recording is of this kind.
        run: one comparison for every recorded output.
    """

    fits: Callable[[Recording], bool]
    run: Callable[[Recording], Sequence[Comparison]]


def same_group(_: str, cfg: CfgNode) -> ParameterGroup:
    """The group of every parameter where a system makes no difference between them."""
    return ParameterGroup(cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY)


@dataclass(frozen=True)
class System:
    """One system. All but the first three fields may stay as they are.

    Attributes:
        name: value of ``MODEL.META_ARCHITECTURE``.
        add_config: adds the keys of the system, with defaults, to a configuration.
        build: a ``Segmenter`` (``TrainableSegmenter`` to be trained) in train mode with initial
            weights; raises ConfigError.
        supervision: what the losses are given.
        parameter_group: key of a parameter -> its group in the optimiser.
        load_parts: (model, cfg, entries by our keys of the checkpoint that is loaded next) ->
            prefixes of keys that need not be in it, after loading the parts that the configuration
            takes from elsewhere; raises CheckpointError.
        class_keys: prefixes of keys whose shape depends on the number of classes.
        added_keys: prefixes of parts that change nothing until they are trained.
        spare_keys: prefixes of parts that a model may do without.
        layouts: foreign layouts of checkpoints.
        models: what users can name.
        weights: rows of the weights registry.
        replays: kind of recording -> how it is computed again.
        tiny_config: file below ``configs/`` of a recipe that trains on sets that the toolkit makes;
            suggested where data or weights are missing.
        extensions: modules whose import registers fusion layers, backbones, tasks or datasets.
        score_bias: model -> key of the parameter that is added to the logit of every score.
        baseline: model -> a ``Segmenter`` with the same weights and the steps of the reference, for
            ``tools/benchmark.py --baseline``.
        benchmark_weights: gives an untrained model weights with which every part does its work,
            since the time may depend on them; None where it does so anyway, or where the parts that
            the configuration takes from elsewhere are all that segments.
        stages: method of the model -> the stage of a frame that ``tools/benchmark.py`` counts its
            time for, beside the verbs of every ``Segmenter``.
    """

    name: str
    add_config: Callable[[CfgNode], None]
    build: Callable[[CfgNode], Any]
    supervision: Callable[[CfgNode], Supervision] = lambda _: Supervision()
    parameter_group: Callable[[str, CfgNode], ParameterGroup] = same_group
    load_parts: Callable[[Any, CfgNode, Mapping[str, Tensor]], tuple[str, ...]] = lambda *_: ()
    class_keys: tuple[str, ...] = ()
    added_keys: tuple[str, ...] = ()
    spare_keys: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    weights: Mapping[str, WeightsEntry] = field(default_factory=dict)
    replays: Mapping[str, Replay] = field(default_factory=dict)
    tiny_config: str | None = None
    extensions: tuple[str, ...] = ()
    score_bias: Callable[[nn.Module], str] | None = None
    baseline: Callable[[nn.Module], nn.Module] | None = None
    benchmark_weights: Callable[[nn.Module], None] | None = None
    stages: Mapping[str, str] = field(default_factory=dict)

    def table_of(self, keys: Iterable[str]) -> KeyTable | None:
        """The table of the first layout that fits the keys of a file; see ``Layout.find``."""
        known = list(keys)
        tables = (layout.find(known) for layout in self.layouts)
        return next((table for table in tables if table is not None), None)


def find_systems() -> dict[str, System]:
    """Every system that works, by name, sorted; one warning names each that does not."""
    return dict(_systems())


def system(name: str) -> System:
    """The system of that name.

    Raises:
        ConfigError: there is none, or it does not work.
    """
    systems = find_systems()
    if name not in systems:
        known = ", ".join(systems) or "none is installed"
        raise ConfigError(f"MODEL.META_ARCHITECTURE is {name!r}: choose a system ({known})")
    return systems[name]


def prepare(found: System, cfg: CfgNode) -> None:
    """Imports the extensions of a system and adds its keys.

    A system that fails once is left out from then on, after a warning.
    """
    try:
        for module in found.extensions:
            importlib.import_module(module)
        found.add_config(cfg)
    except Exception as error:  # whatever is wrong with one system must not stop the others
        _warn(f"the system {found.name}", error)
        _systems().pop(found.name)


@cache
def _systems() -> dict[str, System]:
    systems: dict[str, System] = {}
    for place, load in (*_in_folders(), *_in_entry_points()):
        try:
            found = load()
            if not isinstance(found, System):
                raise TypeError(f"expected a System, got {type(found).__name__}")
            if found.name in systems:
                raise ValueError(f"another system is called {found.name} already")
            _check_models(found, systems.values())
            register_weights(found.weights)
        except Exception as error:  # as in prepare
            _warn(place, error)
            continue
        systems[found.name] = found
    return dict(sorted(systems.items()))


def _check_models(found: System, others: Iterable[System]) -> None:
    """Raises ValueError if a model has the name of another system's, or is a second default."""
    taken = {name: entry for other in others for name, entry in other.models.items()}
    if double := sorted(taken.keys() & found.models.keys()):
        raise ValueError(f"another system has models called {', '.join(double)} already")
    defaults = [name for name, entry in {**taken, **found.models}.items() if entry.default]
    if len(defaults) > 1:
        raise ValueError(f"of the models {', '.join(defaults)} one alone can be the default")


def _in_folders() -> Iterator[tuple[str, Callable[[], object]]]:
    """(folder, loader) of every ``projects/*/system.py``; the first folder of a name counts."""
    spec = find_spec(PROJECTS)
    folders: dict[str, Path] = {}
    for root in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(root).glob(f"*/{FILE}")):
            folders.setdefault(file.parent.name, file.parent)
    for name, folder in sorted(folders.items()):
        yield f"the folder {folder}", partial(_load_folder, name)


def _load_folder(name: str) -> object:
    return importlib.import_module(f"{PROJECTS}.{name}.system").SYSTEM


def _in_entry_points() -> Iterator[tuple[str, Callable[[], object]]]:
    for entry in entry_points(group=ENTRY_POINTS):
        yield f"the entry point {entry.name} = {entry.value}", entry.load


def _warn(place: str, error: Exception) -> None:
    text = " ".join(str(error).split())[:300]
    logger.warning("%s is left out: %s: %s", place, type(error).__name__, text)
    logger.debug("where a system failed", exc_info=error)
