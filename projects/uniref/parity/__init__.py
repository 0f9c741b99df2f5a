"""Replays recorded runs of the reference implementation on weights made from key names.

A recorded file holds ``in/*`` and ``out/*`` arrays and one line ``meta``. Every kind of file has a
function that returns our value for every ``out`` array; ``check_file`` compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
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
from projects.uniref.parity.recorded import RECORDED_NOISE, load_recorded_weights
from projects.uniref.parity.ties import recorded_order
from projects.uniref.parity.video import replay_video
from unified.errors import InputError
from unified.parity import Arrays, Comparison, NoiseFloor, compare, read_arrays

__all__ = [
    "check_file",
    "compare_recorded",
    "kind_of",
    "load_recorded_weights",
    "replay",
]

# Recorded class logits (calls, Q) or (calls, Q, 1) of the whole network.
CALL_LOGITS = ("out/call_logits", "out/pred_logits")

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


def kind_of(arrays: Arrays) -> str | None:
    """Which replay a recorded file needs; None if it is of no kind known here."""
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
    return None


def check_file(
    path: Path, model: UniRef, manifest: Mapping[str, list] | None = None
) -> list[Comparison]:
    """Replays one recorded file and compares every recorded output.

    Raises:
        InputError: the file is of another kind, or holds an output that the replay does not make.
    """
    arrays = read_arrays(path)
    load_recorded_weights(model, arrays, manifest)
    return compare_recorded(
        path.stem, arrays, replay(model, arrays), NoiseFloor.beside(path, RECORDED_NOISE)
    )


def replay(model: UniRef, arrays: Arrays) -> dict[str, np.ndarray]:
    """Our arrays for the inputs of a recorded file, on the weights that ``model`` has.

    Nearly tied proposals are taken in the recorded order.

    Raises:
        InputError: the file is of no kind known here.
    """
    kind = kind_of(arrays)
    if kind not in REPLAYS:
        raise InputError(
            f"expected a recorded file of one of the kinds {', '.join(REPLAYS)}, got the arrays "
            f"{', '.join(sorted(arrays)[:6])}"
        )
    model.eval()
    calls = [arrays[name] for name in CALL_LOGITS if name in arrays]
    order = recorded_order(model, torch.from_numpy(calls[0])) if calls else nullcontext()
    with torch.no_grad(), order:
        ours = REPLAYS[kind](model, arrays)
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
    return [
        compare(name, expected, ours[name], noise.allowed(stem, name, expected))
        for name, expected in recorded.items()
    ]


def _array(value: object) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
