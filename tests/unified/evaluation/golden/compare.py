"""What the comparisons of recordings share: values in pairs, masks from archives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from unified.errors import InputError, first_line

SUFFIX = "_expected.json"
Triple = tuple[str, Any, Any]  # what, ours, recorded

# keys of a recording that are no numbers to compare: words about it, and what was judged
NOTES = ("note", "printed", "inputs", "return_order", "precision_shape")
INPUTS = (
    *("ground_truth", "results", "predictions", "meta_json", "meta_expressions", "mask_dict"),
    *("unseen_videos", "unsupervised_videos", "sample_index", "mixed_source_labels"),
)


class Watched(Mapping[str, Any]):
    """A JSON object that knows which of its keys were read, also of the objects inside it."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = {k: v if k in INPUTS else _watched(v) for k, v in content.items()}
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = self._content[key]
        self._read.add(key)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._content  # that of Mapping would count as reading

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def holds_object(self, key: str) -> bool:
        """Whether there is an object under ``key``, which does not count as reading it."""
        return isinstance(self._content[key], Watched)

    def unread(self) -> Iterator[str]:
        """Paths of the keys with numbers that nobody read, such as ``cris/Pr@50``."""
        for key, value in self._content.items():
            if key in (*NOTES, *INPUTS):
                continue
            if key in self._read:
                yield from (f"{key}/{inside}" for inside in _unread(value))
            else:
                yield key


def _watched(value: Any) -> Any:
    if isinstance(value, dict):
        return Watched(value)
    return [_watched(item) for item in value] if isinstance(value, list) else value


def _unread(value: Any) -> Iterator[str]:
    if isinstance(value, Watched):
        yield from value.unread()
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from (f"{index}/{inside}" for inside in _unread(item))


@dataclass(frozen=True)
class Recording:
    """One file of recorded numbers: ``<kind>_expected.json``, or with more in its name.

    Attributes:
        path: the file.
        kind: what was recorded, such as davis17.
        content: of the file.
    """

    path: Path
    kind: str
    content: Watched

    def blocks(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The named groups of numbers, without notes."""
        return ((key, self.content[key]) for key in self.content if self.content.holds_object(key))

    def beside(self, name: str) -> Path:
        """What goes with this recording: ``name``, with whatever else its own name has.

        The masks of ``seed7_ris_expected.json`` are in ``seed7_ris_masks.npz``.
        """
        stem = self.path.name.removesuffix(SUFFIX)
        return self.path.parent / stem.replace(self.kind, name, 1)

    def masks(self, name: str) -> Mapping[str, NDArray]:
        """Arrays of ``<name>_masks.npz``.

        Raises:
            InputError: the archive is missing or damaged.
        """
        path = self.beside(name).with_name(f"{self.beside(name).name}_masks.npz")
        if not path.is_file():
            raise InputError(f"{path} is missing: expected the masks of the recorded numbers")
        try:
            with path.open("rb") as file, np.load(file) as archive:
                return {key: archive[key] for key in archive.files}
        except (ValueError, OSError, BadZipFile) as error:
            raise InputError(f"{path} cannot be read: {first_line(error)}") from error


def same_keys(what: str, ours: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[Triple]:
    """One triple per recorded key."""
    for key, value in recorded.items():
        yield f"{what} {key}", ours[key], value


def rounded(ours: float, printed: str) -> float:
    """``ours``, or the printed number where that is ours with fewer digits."""
    digits = len(printed.partition(".")[2])
    return float(printed) if abs(ours - float(printed)) <= 0.5 * 10**-digits + 1e-9 else ours


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
