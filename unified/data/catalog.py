"""Datasets by name: where they lie, their records, and their registration with Detectron2.

Nothing is read when this module is imported or a dataset is registered; records are read when they
are asked for. The folder of all datasets is the environment variable DETECTRON2_DATASETS, or
``datasets``.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from unified.data.formats.records import Record
from unified.data.table import ROWS, Dataset
from unified.errors import ConfigError, InputError
from unified.files import is_litter
from unified.layout import DATASETS_GUIDE

logger = logging.getLogger(__name__)

# What readers raise where an annotation file lacks a key or holds another kind of value.
MALFORMED = (KeyError, IndexError, TypeError, ValueError)

CATALOG: dict[str, Dataset] = {row.name: row for row in ROWS}


def data_root() -> Path:
    """The folder of all datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def own_names() -> list[str]:
    """Names of the own data that is described below the root, sorted."""
    found = (path for path in (data_root() / "own").glob("*.yaml") if not is_litter(path))
    names = sorted(path.stem for path in found)
    return [name for name in names if name not in CATALOG]


def find_dataset(name: str) -> Dataset:
    """The row of a dataset in the table, or of own data described in ``own/<name>.yaml``.

    Raises:
        ConfigError: no such row and no such file.
    """
    if name in CATALOG:
        return CATALOG[name]
    path = data_root() / "own" / f"{name}.yaml"
    if path.exists():
        from unified.data.own import read_own_dataset

        return read_own_dataset(path)
    close = get_close_matches(name, CATALOG, n=5)
    hint = f"names that are near: {', '.join(close)}" if close else f"see {DATASETS_GUIDE}"
    raise ConfigError(f"dataset {name!r} is not in the catalog and {path} does not exist: {hint}")


def describe_malformed(error: Exception) -> str:
    """What is wrong with an annotation file, from one of the errors in ``MALFORMED``.

    The traceback is logged for the case that the reader is wrong and not the file.
    """
    logger.debug("where an annotation file was not as expected", exc_info=error)
    return f"an entry lacks {error}" if isinstance(error, KeyError) else f"{error}"


def annotation_files(row: Dataset) -> str:
    """The annotation files of a row that exist, or where the first could be."""
    root = data_root()
    lists = [str(root / file) for file in row.files if (root / file).is_file()]
    return " or ".join(lists or [str(root / row.files[0])])


def _check_command(name: str) -> str:
    """The command that checks a dataset, right in any shell whatever it says of the root."""
    command = f"python tools/data.py check {name}"
    if "DETECTRON2_DATASETS" in os.environ:
        command += f" --root {shlex.quote(str(data_root()))}"
    return f"`{command}`"


def load_records(name: str) -> list[Record]:
    """All records of a dataset, each with ``dataset`` and ``task``.

    Raises:
        InputError: a file is missing or wrong; names the file and the command that checks the set.
    """
    row = find_dataset(name)
    root = data_root()
    if not any((root / file).exists() for file in row.files):
        expected = " or ".join(str(root / file) for file in row.files)
        raise InputError(
            f"dataset {name} is not installed: expected {expected}; {DATASETS_GUIDE} shows "
            f"the tree, and {_check_command(name)} checks it"
        )
    try:
        records = row.read(root)
    except (InputError, *MALFORMED) as error:
        what = str(error)
        if not isinstance(error, InputError):
            what = f"{annotation_files(row)} is not as expected: {describe_malformed(error)}"
        raise InputError(
            f"dataset {name}: {what} (mend it, then run {_check_command(name)})"
        ) from error
    if not records:
        raise InputError(f"dataset {name} has no samples: {root / row.files[0]} lists none")
    return [{**record, "dataset": name, "task": row.task} for record in records]


def register_datasets(names: Iterable[str] = ()) -> None:
    """Makes rows known to Detectron2's catalogs: all of the table, and own data by name.

    Names that Detectron2 has itself, such as coco_2017_val, keep its reader there. Calling it again
    changes nothing.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for row in [*CATALOG.values(), *(find_dataset(name) for name in names)]:
        if row.name not in DatasetCatalog:
            DatasetCatalog.register(row.name, partial(load_records, row.name))
            MetadataCatalog.get(row.name).set(evaluator_type=row.evaluator)
        MetadataCatalog.get(row.name).set(
            task=row.task,
            protocols=row.protocols,
            score_threshold=row.score_threshold,
            merge=row.merge,
            memory=row.memory,
            mask_size=row.mask_size,
            note=row.note,
        )
