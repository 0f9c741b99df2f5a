"""Comparing arrays with recorded ones, within what the recording's own rounding allows."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from unified.errors import InputError
from unified.unpickle import why_unread

Arrays = Mapping[str, np.ndarray]

# Labels of argmax maps and thresholded masks flip where two values are equal up to rounding.
FLIPPED_SHARE = 2e-4

NOISE_FACTOR = 10.0
RELATIVE_FLOOR = 2e-5


@dataclass(frozen=True)
class Comparison:
    """One recorded array against ours.

    Attributes:
        name: of the recorded array.
        error: largest absolute difference, or the number of differing entries of integer arrays.
        allowed: largest ``error`` that passes.
    """

    name: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """False also for an error that is not a number."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.name:32s} error {self.error:.3e}  allowed {self.allowed:.3e}"


class NoiseFloor:
    """Measured rounding of recorded arrays: {file: {array: [max |f32 - f64|, max |value|]}}."""

    def __init__(self, table: dict[str, dict[str, list[float]]]) -> None:
        self._table = table

    @classmethod
    def beside(cls, path: Path, otherwise: Path | None = None) -> NoiseFloor:
        """From ``noise.json`` in the folder of a recorded file, else from another file."""
        beside = path.parent / "noise.json"
        file = beside if beside.is_file() else otherwise
        return cls({} if file is None else json.loads(file.read_text()))

    def allowed(self, file: str, name: str, expected: np.ndarray) -> float:
        """Ten times the noise or 2e-5 of the largest magnitude, whichever is larger.

        A file without an entry has the noise of the recorded file of its kind: the last words of
        the name, as "ground" or "video_vos" in golden_ground and golden_video_vos.
        """
        finite = expected[np.isfinite(expected)]
        largest = float(np.abs(finite).max()) if finite.size else 0.0
        noise = self._entry(file).get(name, [0.0])[0]
        return max(NOISE_FACTOR * noise, RELATIVE_FLOOR * largest)

    def _entry(self, file: str) -> dict[str, list[float]]:
        words = file.split("_")
        names = [file, *("golden_" + "_".join(words[start:]) for start in range(1, len(words)))]
        return next((self._table[name] for name in names if name in self._table), {})


def compare(name: str, expected: np.ndarray, actual: np.ndarray, allowed: float) -> Comparison:
    """Floats by their largest difference; integers and booleans by the number of differing entries.

    Raises:
        InputError: the shapes differ.
    """
    if expected.shape != actual.shape:
        raise InputError(f"{name}: recorded shape {expected.shape}, ours {actual.shape}")
    if expected.dtype.kind == "f":
        same = expected == actual  # also equal infinities
        with np.errstate(invalid="ignore"):
            difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
        error = float(np.where(same, 0.0, difference).max(initial=0.0))
        return Comparison(name, error, allowed)
    differing = int((expected != actual).sum())
    tolerated = int(FLIPPED_SHARE * expected.size) if expected.ndim >= 2 else 0
    return Comparison(name, differing, tolerated)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a recorded file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            content = np.load(file)
            if isinstance(content, np.ndarray):
                raise ValueError("a single array")
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read as an .npz file of recorded arrays: {why_unread(error)}"
        ) from error
