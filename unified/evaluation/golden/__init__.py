"""Recorded numbers of official evaluators against ours, one function per file of recordings.

Every function yields triples (what, ours, recorded); ``None`` in a recording stands for NaN.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unified.data.formats.files import read_json
from unified.errors import InputError, first_line
from unified.evaluation.golden import images, videos
from unified.evaluation.golden.compare import SUFFIX, Recording, Triple, largest_difference

EXACT = 1e-9
SINGLE_PRECISION = 1e-4  # hsnet sums in 32 bits

# kind of recording -> how to compare it, and how closely
KINDS: dict[str, tuple[Callable[[Recording], Iterator[Triple]], float]] = {
    "davis17": (videos.check_davis, EXACT),
    "vos_benchmark": (videos.check_vos_benchmark, EXACT),
    "sav": (videos.check_sav, EXACT),
    "lvos": (videos.check_lvos, EXACT),
    "lvos_v1_bundled": (videos.check_lvos_bundled, EXACT),
    "mevis": (videos.check_mevis, EXACT),
    "youtubevis": (videos.check_youtube_vis, EXACT),
    "ris": (images.check_ris, EXACT),
    "grefcoco": (images.check_grefcoco, EXACT),
    "grec_boxes": (images.check_grec, EXACT),
    "fss": (images.check_few_shot, SINGLE_PRECISION),
    "semseg": (images.check_semantic, EXACT),
    "refer_mini": (images.check_refer, EXACT),
}


@dataclass(frozen=True)
class Agreement:
    """How one file of recordings compares: largest difference, where, and what is allowed."""

    file: str
    difference: float
    where: str
    num_values: int
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the largest difference is within the tolerance."""
        return self.difference <= self.tolerance


def find_recordings(folder: Path) -> list[Path]:
    """Every ``*_expected.json`` of a folder.

    Raises:
        InputError: there is none.
    """
    files = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} holds no *{SUFFIX}: expected a folder of recorded numbers")
    return files


def check_file(path: Path) -> Agreement:
    """Compares one file of recordings with our metrics on the masks beside it.

    Raises:
        InputError: the file is of an unknown kind, has missing parts or nothing to compare.
    """
    kind = find_kind(path)
    check, tolerance = KINDS[kind]
    recording = Recording(path, kind, read_json(path, "recorded numbers", keys=()))
    worst, where, count = 0.0, "", 0
    try:
        for what, ours, recorded in check(recording):
            difference = largest_difference(ours, recorded)
            count += int(np.size(recorded))
            if difference > worst:
                worst, where = difference, what
    except KeyError as error:
        raise InputError(f"{path} or its masks lack the entry {error}: is it complete?") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be compared: {first_line(error)}") from error
    if count == 0:
        raise InputError(f"{path} has no number to compare: is it complete?")
    return Agreement(path.name, worst, where, count, tolerance)


def find_kind(path: Path) -> str:
    """The kind of recording that a file is named after; there may be more in its name.

    Raises:
        InputError: it is of no known kind.
    """
    stem = path.name.removesuffix(SUFFIX)
    known = sorted(KINDS, key=len, reverse=True)  # lvos_v1_bundled before lvos
    found = [kind for kind in known if re.search(rf"(^|_){kind}(_|$)", stem)]
    if not found:
        raise InputError(f"{path} is of no known kind: expected one of {', '.join(sorted(KINDS))}")
    return found[0]
