"""Recorded numbers of official evaluators against ours, one function per file of recordings.

Every function yields triples (what, ours, recorded); ``None`` in a recording stands for NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unified.data.formats.files import read_json
from unified.errors import InputError
from unified.evaluation.golden import images, videos
from unified.evaluation.golden.compare import Triple, largest_difference

SUFFIX = "_expected.json"
EXACT = 1e-9
SINGLE_PRECISION = 1e-4  # hsnet sums in 32 bits

# kind of recording -> how to compare it, and how closely
KINDS: dict[str, tuple[Callable[[Path, Any], Iterator[Triple]], float]] = {
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


def check_folder(folder: Path) -> list[Agreement]:
    """Compares every ``*_expected.json`` of a folder.

    Raises:
        InputError: the folder has no recording, or one of an unknown kind or with missing parts.
    """
    files = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} holds no *{SUFFIX}: expected a folder of recorded numbers")
    return [check_file(path) for path in files]


def check_file(path: Path) -> Agreement:
    """Compares one file of recordings with our metrics on the masks beside it."""
    kind = path.name.removesuffix(SUFFIX)
    if kind not in KINDS:
        raise InputError(f"{path} is of no known kind: expected one of {', '.join(sorted(KINDS))}")
    check, tolerance = KINDS[kind]
    worst, where, count = 0.0, "", 0
    try:
        for what, ours, recorded in check(path.parent, read_json(path, "recorded numbers")):
            difference = largest_difference(ours, recorded)
            count += int(np.size(recorded))
            if difference > worst:
                worst, where = difference, what
    except KeyError as error:
        raise InputError(f"{path} or its masks lack the entry {error}: is it complete?") from error
    return Agreement(path.name, worst, where, count, tolerance)
