"""Recorded numbers of official evaluators against ours, one function per file of recordings.

Every function yields triples (what, ours, recorded); ``None`` in a recording stands for NaN.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.unified.evaluation.golden import images, videos
from tests.unified.evaluation.golden.compare import (
    SUFFIX,
    Recording,
    Triple,
    Watched,
    largest_difference,
)
from unified.data.formats.files import read_json
from unified.errors import InputError, first_line

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


# kind of recording -> blocks that a file of it may lack; the others cannot be compared without
_LVOS = ("semi-supervised", "unsupervised_multiple", "unsupervised_single")
BLOCKS: dict[str, tuple[str, ...]] = {
    "davis17": (
        *("semi-supervised", "unsupervised", "per_frame_all_frames", "boundary"),
        *("db_statistics", "palette_256x3"),
    ),
    "lvos": (*_LVOS, "variant_frame_nums_plus_one"),
    "lvos_v1_bundled": ("semi-supervised", "variant_frame_nums_plus_one"),
    "ris": (
        *("cmsa_compute_mask_IU", "lavt_train_IoU_per_sample", "lavt_test", "cris"),
        *("uniref_refcocoeval_segm", "uniref_refcocoeval_bbox"),
    ),
    "grefcoco": ("all_grefcoco", "no_no_target", "mixed_sources"),
    "semseg": ("plain", "reduce_zero_label", "mDice", "nan_to_num_-1"),
    "refer_mini": (
        *("refcoco(unc)", "refcoco+(unc)", "refcocog(umd)", "refcocog(google)", "grefcoco(unc)"),
    ),
}


@dataclass(frozen=True)
class Agreement:
    """How one file of recordings compares.

    Attributes:
        file: its name.
        difference: the largest one, at ``where``; ``tolerance`` is allowed.
        num_values: numbers that were compared.
        not_compared: keys of the file that mean nothing here, such as misspelled ones.
        missing: blocks of its kind that the file does not have.
    """

    file: str
    difference: float
    where: str
    num_values: int
    tolerance: float
    not_compared: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all of the file was compared, and is within the tolerance."""
        return self.difference <= self.tolerance and not self.not_compared

    def line(self) -> str:
        """The comparison in words."""
        words = (
            f"{'pass' if self.passed else 'FAIL'}  largest difference {self.difference:.1e} of "
            f"{self.num_values} values (tolerance {self.tolerance:.0e})"
        )
        if self.difference > self.tolerance:
            words += f", at: {self.where}"
        if self.not_compared:
            words += f", not compared: {', '.join(self.not_compared)}"
        return f"{words}, missing: {', '.join(self.missing)}" if self.missing else words


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
    content = read_json(path, "recorded numbers")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, expected an object of numbers")
    recording = Recording(path, kind, Watched(content))
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
    not_compared = tuple(recording.content.unread())
    missing = tuple(block for block in _blocks(recording) if block not in content)
    return Agreement(path.name, worst, where, count, tolerance, not_compared, missing)


def _blocks(recording: Recording) -> Iterable[str]:
    """The blocks that a file may lack; those of some kinds are named after the masks."""
    if recording.kind == "fss":
        names = recording.masks("fss")
        return [key.removesuffix("_gt") for key in names if key.endswith("_gt")]
    if recording.kind == "vos_benchmark":
        clips = [key for key in recording.masks("vos_benchmark") if key.startswith("gt_")]
        return [
            f"{clip.removeprefix('gt_')}|skip_first_last={skip}"
            for clip in clips
            for skip in (True, False)
        ]
    return BLOCKS.get(recording.kind, ())


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
