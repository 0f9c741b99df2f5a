"""Everything that a configuration needs and this machine lacks, in one message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode

from unified.data.catalog import data_root, find_dataset
from unified.engine.config import load_config
from unified.engine.system import system
from unified.errors import InputError, UnifiedError
from unified.weights import WEIGHTS, resolve


def check_all_there(cfg: CfgNode, *, resume: bool) -> None:
    """Raises InputError with a line for each file of weights or data that is missing.

    Args:
        resume: a checkpoint holds the weights.

    Raises:
        InputError: names what is missing, how to get it, and what can be trained without.
        ConfigError: a dataset is not known.
    """
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    lines = [] if resume else list(_missing_weights(cfg))
    data = {name: line for name in names if (line := _missing_files(name))}
    lines.extend(data.values())
    if not lines:
        return
    if data:
        lines.append(
            "where to get the data: datasets/README.md; small made copies of it: "
            f"`python tools/data.py make {' '.join(data)} --root FOLDER`, then "
            "DETECTRON2_DATASETS=FOLDER"
        )
    listed = "\n".join(f"  - {line}" for line in lines)
    tiny = system(cfg.MODEL.META_ARCHITECTURE).tiny_config
    instead = f"\nWhat runs right now, on made data:\n{tiny_run(tiny)}" if tiny else ""
    raise InputError(f"this machine lacks what the configuration names:\n{listed}{instead}")


def tiny_run(tiny_config: str) -> str:
    """A shell command that trains a few steps on made sets, whatever is installed."""
    file = f"configs/{tiny_config}"
    cfg = load_config(file)
    needed = (name for _, name in _weights_keys(cfg.MODEL, "MODEL"))
    absent = [name for name in needed if name in WEIGHTS and _problem(name)]
    fetch = f"python tools/download_weights.py {' '.join(absent)} && " if absent else ""
    return (
        f"{fetch}python tools/data.py make {' '.join(cfg.DATASETS.TRAIN)} --root datasets_tiny "
        f"--size 20 && DETECTRON2_DATASETS=datasets_tiny python tools/train_net.py --config-file "
        f"{file} DATASETS.TEST '()' SOLVER.MAX_ITER 20 OUTPUT_DIR output/tiny"
    )


def _missing_weights(cfg: CfgNode) -> Iterator[str]:
    """``MODEL.WEIGHTS``, and the parts by name of the registry, unless the former may hold them."""
    wanted = cfg.MODEL.WEIGHTS
    apart = not wanted or (wanted not in WEIGHTS and not Path(wanted).is_file())
    for key, name in _weights_keys(cfg.MODEL, "MODEL"):
        if name not in WEIGHTS:
            if key == "MODEL.WEIGHTS" and not Path(name).is_file():
                yield (
                    f"{key} {name} does not exist: give a file, a name that "
                    "`python tools/download_weights.py --list` shows, or '' to start from the "
                    "backbone"
                )
            continue
        has_vocabulary = WEIGHTS[name].hub is not None  # which no checkpoint holds
        problem = _problem(name)
        if problem and (key == "MODEL.WEIGHTS" or has_vocabulary or apart):
            yield f"{key} {name}: {problem}"


def _problem(name: str) -> str:
    """Why weights of the registry cannot be used; empty if they can."""
    try:
        resolve(name)
    except UnifiedError as error:
        return str(error)
    return ""


def _weights_keys(node: CfgNode, prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _weights_keys(value, f"{prefix}.{key}")
        elif key.endswith("WEIGHTS") and isinstance(value, str) and value:
            yield f"{prefix}.{key}", value


def _missing_files(name: str) -> str:
    """What is expected if none of the annotation files of a dataset is there, else nothing."""
    root, files = data_root(), find_dataset(name).files
    if any((root / file).exists() for file in files):
        return ""
    expected = " or ".join(str(root / file) for file in files)
    return f"dataset {name}: {expected}; `python tools/data.py check {name}` checks it"
