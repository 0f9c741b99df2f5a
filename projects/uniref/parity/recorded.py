"""Recorded files and the weights they were made with."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from projects.uniref.checkpoint import uniref_keys
from projects.uniref.model import UniRef
from unified.checkpoint import Weights, load_weights
from unified.parity import Arrays

# Of recordings that come without a file of their own.
RECORDED_NOISE = Path(__file__).with_name("noise.json")


def make_weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array that the recordings used for an official state-dict key."""
    name = key.replace("detr.detr.transformer.decoder.bbox_embed.", "detr.detr.bbox_embed.")
    name = name.replace("detr.detr.transformer.decoder.class_embed.", "detr.detr.class_embed.")
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if key.endswith("running_var"):
        return (0.5 + rng.random(shape)).astype(np.float32)
    x = rng.standard_normal(shape).astype(np.float32)
    if key.endswith("running_mean"):
        return (0.1 * x).astype(np.float32)
    if len(shape) <= 1:
        return ((1 + 0.1 * x) if key.endswith("weight") else 0.02 * x).astype(np.float32)
    if "embeddings" in key:
        return (0.02 * x).astype(np.float32)
    if key.endswith(("query_embed.weight", "level_embed")):
        return (0.5 * x).astype(np.float32)
    scale = np.float32(1.0 / math.sqrt(int(np.prod(shape[1:]))))
    if key.endswith("controller.layers.2.weight"):
        scale = scale * np.float32(0.2)
    return (x * scale).astype(np.float32)


def official_weights(model: UniRef, manifest: Mapping[str, list] | None = None) -> Weights:
    """Weights in the official layout, for the keys of a manifest or those that ``model`` needs.

    Args:
        manifest: {official key: [shape, dtype]}; entries that are not floating point stay as built.
    """
    table = uniref_keys(model.backbone.name)
    own = model.state_dict().items()
    built = table.to_foreign({key: value for key, value in own if table.knows_native(key)})
    if manifest is None:
        manifest = {
            key: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
            for key, tensor in built.items()
        }
    weights: Weights = {}
    for key, (shape, dtype) in manifest.items():
        if dtype.startswith("float") and not key.startswith("criterion."):
            weights[key] = torch.from_numpy(make_weight(key, tuple(shape)))
        else:
            weights[key] = built.get(key, torch.zeros(shape, dtype=getattr(torch, dtype)))
    return weights


def load_recorded_weights(
    model: UniRef, arrays: Arrays, manifest: Mapping[str, list] | None = None
) -> None:
    """Loads the weights that a recorded file was made with, through the official layout.

    What the reference does not have keeps its initial values.
    """
    weights = official_weights(model, manifest)
    if "in/controller_last_bias" in arrays:
        weights["detr.controller.layers.2.bias"][-1] = float(arrays["in/controller_last_bias"])
    table = uniref_keys(model.backbone.name)
    ours_alone = [key for key in model.state_dict() if not table.knows_native(key)]
    load_weights(model, weights, table=table, optional=ours_alone)
