"""Weights and inputs made from names, as recordings of reference implementations use them.

A recording then needs no weights file: each tensor is drawn with its own key as the seed.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from unified.checkpoint import Weights
from unified.errors import InputError

Shape = tuple[int, ...]


def named_generator(name: str) -> np.random.Generator:
    """The generator whose seed is the checksum of ``name``."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def make_input(name: str, shape: Shape, scale: float = 1.0) -> np.ndarray:
    """The float32 input that is called ``name``."""
    return (scale * named_generator(name).standard_normal(shape)).astype(np.float32)


def make_weights(shapes: Mapping[str, Sequence[int]], *, embeddings: Collection[str]) -> Weights:
    """A tensor for every key of a PyTorch state dict.

    Args:
        shapes: by key of the official layout.
        embeddings: keys whose values are small (deviation 0.02) whatever their shape.
    """
    return {
        key: torch.from_numpy(np.asarray(_weight(key, tuple(shape), key in embeddings)))
        for key, shape in shapes.items()
    }


def _weight(key: str, shape: Shape, embedding: bool) -> np.ndarray:
    rng = named_generator(key)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        return (0.5 + rng.random(shape)).astype(np.float32)
    drawn = np.asarray(rng.standard_normal(shape))
    if key.endswith("running_mean"):
        drawn = 0.1 * drawn
    elif embedding:
        drawn = 0.02 * drawn
    elif len(shape) == 1 and key.endswith("weight"):
        drawn = 1 + 0.1 * drawn
    elif len(shape) <= 1:
        drawn = 0.02 * drawn
    else:
        drawn = drawn / math.sqrt(math.prod(shape[1:]))
    return drawn.astype(np.float32)


def named_inputs(note: str) -> dict[str, Shape]:
    """Names and shapes of inputs written as ``rnd("name",(1,3,64,64))`` in a recording's note."""
    found = re.findall(r"""rnd\(["']([^"']+)["'],\s*\(([\d,\s]+)\)""", note)
    return {name: tuple(int(side) for side in sides.split(",") if side) for name, sides in found}


def thin_out(full: np.ndarray, shape: Shape) -> np.ndarray:
    """Every n-th entry of ``full`` along each axis, so that ``shape`` is left.

    Recordings keep large arrays so; the smallest step that fits is taken.

    Raises:
        InputError: no steps lead there.
    """
    if full.ndim == len(shape):
        steps = []
        for own, wanted in zip(full.shape, shape, strict=True):
            steps.append(next((s for s in range(1, own + 1) if -(-own // s) == wanted), 0))
        if all(steps):
            return full[tuple(slice(None, None, step) for step in steps)]
    raise InputError(f"recorded is an array of shape {shape}, ours is {full.shape}")
