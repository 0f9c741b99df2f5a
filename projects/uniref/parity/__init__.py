"""Replays recorded runs of the reference implementation on weights made from key names.

A recorded file holds ``in/*`` and ``out/*`` arrays and one line ``meta``. Every kind of file has a
function that returns our value for every ``out`` array; ``check_file`` compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from projects.uniref.model import UniRef
from projects.uniref.parity.parts import (
    replay_call,
    replay_features,
    replay_maskenc,
    replay_msdeform,
    replay_post,
    replay_text,
    replay_unifusion,
)
from projects.uniref.parity.recorded import Arrays, load_recorded_weights, read_arrays
from projects.uniref.parity.video import replay_video
from unified.errors import InputError
from unified.parity import Comparison, NoiseFloor, compare

__all__ = [
    "Arrays",
    "check_file",
    "compare_recorded",
    "kind_of",
    "load_recorded_weights",
    "read_arrays",
    "replay",
]

REPLAYS: dict[str, Callable[[UniRef, Arrays], dict[str, object]]] = {
    "msdeform": replay_msdeform,
    "unifusion": replay_unifusion,
    "features": replay_features,
    "text": replay_text,
    "maskenc": replay_maskenc,
    "call": replay_call,
    "post": replay_post,
    "video": replay_video,
}


def kind_of(arrays: Arrays) -> str:
    """Which replay a recorded file needs.

    Raises:
        InputError: it is of no kind known here.
    """
    signatures = {
        "msdeform": "in/core_value",
        "unifusion": "in/src0",
        "features": "out/res2_sub",
        "text": "out/words",
        "maskenc": "out/ref0_sub",
        "train": "out/total",
        "video": "in/frames",
        "post": "in/orig_size",
        "call": "out/topk_idx",
    }
    for kind, name in signatures.items():
        if name in arrays:
            return kind
    raise InputError(
        f"expected a recorded file of one of the kinds {', '.join(signatures)}, got the arrays "
        f"{', '.join(sorted(arrays)[:6])}"
    )


def check_file(
    path: Path, model: UniRef, manifest: Mapping[str, list] | None = None
) -> list[Comparison]:
    """Replays one recorded file and compares every recorded output.

    Raises:
        InputError: the file is of another kind, or holds an output that the replay does not make.
    """
    arrays = read_arrays(path)
    load_recorded_weights(model, arrays, manifest)
    return compare_recorded(path.stem, arrays, replay(model, arrays), NoiseFloor.beside(path))


def replay(model: UniRef, arrays: Arrays) -> dict[str, np.ndarray]:
    """Our arrays for the inputs of a recorded file, on the weights that ``model`` has."""
    model.eval()
    with torch.no_grad():
        ours = REPLAYS[kind_of(arrays)](model, arrays)
    return {name: _array(value) for name, value in ours.items()}


def compare_recorded(
    stem: str, arrays: Arrays, ours: Arrays, noise: NoiseFloor
) -> list[Comparison]:
    """One comparison for every recorded output.

    Args:
        stem: name of the recorded file in the table of ``noise``.
        arrays: the recorded file.
        ours: from ``replay``.

    Raises:
        InputError: nothing is recorded, or an output that the replay does not make.
    """
    recorded = {
        name.removeprefix("out/"): value
        for name, value in arrays.items()
        if name.startswith("out/")
    }
    missing = sorted(set(recorded) - set(ours))
    if missing or not recorded:
        names = ", ".join(missing) or "none at all"
        raise InputError(f"{stem}: no replay for the recorded arrays {names}")
    swapped = near_tied_queries(recorded, ours, noise, stem)
    results = []
    for name, expected in recorded.items():
        actual = ours[name]
        allowed = noise.allowed(stem, name, expected)
        result = compare(name, expected, actual, allowed)
        if not result.passed and name in QUERY_AXES and swapped.any():
            axis = QUERY_AXES[name]
            keep = _kept_queries(~swapped.any(axis=0), expected.shape[axis])
            expected, actual = (np.compress(keep, x, axis=axis) for x in (expected, actual))
            note = f"{int(swapped.sum())} near-tied queries left out"
            result = compare(name, expected, actual, allowed, note)
        results.append(result)
    return results


def _array(value: object) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


# Recorded arrays with one entry per query, and the axis of the queries.
QUERY_AXES = {
    "pred_logits": 1,
    "pred_boxes": 1,
    "reference_points": 1,
    "pred_masks_sub": 1,
    "pred_masks_mean": 1,
    "pred_masks_std": 1,
    "hs_last_q10": 1,
    "init_reference": 1,
    "inter_references": 2,
    "topk_idx": 1,
}


def near_tied_queries(recorded: Arrays, ours: Arrays, noise: NoiseFloor, stem: str) -> np.ndarray:
    """(B, Q) bool: ranks where another token was chosen whose proposal logit is the same up to
    rounding; which of two tied tokens comes first decides which learned query it gets."""
    if "topk_idx" not in recorded or "enc_class" not in recorded:
        return np.zeros((1, 1), bool)
    expected, actual = recorded["topk_idx"], ours["topk_idx"]
    logits = recorded["enc_class"][..., 0]
    theirs, mine = (np.take_along_axis(logits, index, axis=1) for index in (expected, actual))
    tied = np.abs(theirs - mine) <= noise.allowed(stem, "enc_class", logits)
    return (expected != actual) & tied


def _kept_queries(keep: np.ndarray, length: int) -> np.ndarray:
    """``keep`` (Q,) at the queries that a sub-sampled axis of ``length`` holds."""
    return keep[:: len(keep) // length][:length]
