"""What the comparisons of recordings share: values in pairs, masks from archives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified.errors import InputError

Triple = tuple[str, Any, Any]  # what, ours, recorded


def read_masks(folder: Path, name: str) -> Mapping[str, NDArray]:
    """Arrays of ``<name>_masks.npz``.

    Raises:
        InputError: the archive is missing.
    """
    path = folder / f"{name}_masks.npz"
    if not path.is_file():
        raise InputError(f"{path} is missing: expected the masks of the recorded numbers")
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


def same_keys(what: str, ours: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[Triple]:
    """One triple per recorded key."""
    for key, value in recorded.items():
        yield f"{what} {key}", ours[key], value


def largest_difference(ours: Any, recorded: Any) -> float:
    """Largest difference of two arrays, of lists or of numbers.

    A shape or a NaN on one side only counts as infinite; None in a recording stands for NaN.
    """
    ours = np.asarray(ours, dtype=float)
    recorded = np.asarray(recorded, dtype=float)
    if ours.shape != recorded.shape or (np.isnan(ours) != np.isnan(recorded)).any():
        return float("inf")
    gap = np.abs(ours - recorded)
    return float(np.nanmax(gap)) if gap.size and not np.isnan(gap).all() else 0.0
