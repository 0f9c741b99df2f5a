"""Replays recorded runs of CMSA's graph, from the maps of the backbone on.

A recording holds its weights under the names of the released graph (``P:text_objseg/...``), the
maps ``c3``, ``c4`` and ``c5`` and sentences ``w<n>_words``; what came out of each sentence is
``w<n>_f5`` and so on. It is float64, and so is the replay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from projects.cmsa.attention import CrossModalSelfAttention, coordinates
from projects.cmsa.checkpoint import CMSA_KEYS, HEAD
from projects.cmsa.gates import GatedFusion
from projects.cmsa.model import Cmsa, resize_from_corner
from unified.checkpoint import Weights, load_weights
from unified.errors import InputError
from unified.modeling.backbones.base import Backbone
from unified.modeling.vocabulary import Vocabulary, WordTable
from unified.parity import Comparison, compare
from unified.structures import FeaturePyramid, ImageBatch

Arrays = Mapping[str, np.ndarray]
WEIGHTS = "P:"
INPUTS = re.compile(r"P:.+|c\d|.+_words|gate_[abc]|resize_in")
ABSOLUTE, RELATIVE = 1e-5, 1e-4


def is_recording(arrays: Arrays) -> bool:
    """Whether these are the arrays of such a recording."""
    return f"{WEIGHTS}{HEAD}CMSA/conv3d/kernel" in arrays


def check(arrays: Arrays) -> list[Comparison]:
    """One comparison for every recorded output.

    Raises:
        InputError: an output is recorded that the replay does not make.
    """
    ours = replay(arrays)
    recorded = {name: value for name, value in arrays.items() if not INPUTS.fullmatch(name)}
    if unknown := sorted(set(recorded) - set(ours)):
        raise InputError(f"no replay for the recorded arrays {', '.join(unknown)}")
    return [
        compare(name, expected, ours[name], ABSOLUTE + RELATIVE * float(np.abs(expected).max()))
        for name, expected in recorded.items()
    ]


@torch.no_grad()
def replay(arrays: Arrays) -> dict[str, np.ndarray]:
    """Our value of every recorded output."""
    model = build(arrays)
    ours: dict[str, Tensor] = {}
    stages = [torch.from_numpy(arrays[name]).movedim(-1, 0)[None] for name in ("c3", "c4", "c5")]
    grid = stages[0].shape[-2:]
    features = model.pyramid(stages, _images(arrays, (grid[0], grid[1])))
    for name in sorted(key for key in arrays if key.endswith("_words")):
        said = name.removesuffix("words")
        for part, value in _sentence(model, features, torch.from_numpy(arrays[name])).items():
            ours[said + part] = value
    ours["spatial"] = coordinates(*grid, like=stages[0]).unflatten(0, grid)
    for name in arrays:
        if found := re.fullmatch(r"spatial(\d+)(_corners)?", name):
            side = int(found[1])
            cells = coordinates(side, side, like=stages[0]).unflatten(0, (side, side))
            ours[name] = cells[[0, 0, -1, -1], [0, -1, 0, -1]] if found[2] else cells
    if "gate_zero_out" in arrays:
        ours["gate_zero_out"] = _closed_gate(*(arrays[f"gate_{name}"] for name in "abc"))
    if "resize_in" in arrays:
        small = torch.from_numpy(arrays["resize_in"])[None, None]
        ours["resize_out"] = resize_from_corner(small, arrays["resize_out"].shape)[0, 0]
    return {name: value.numpy() for name, value in ours.items()}


def _sentence(model: Cmsa, features: FeaturePyramid, ids: Tensor) -> dict[str, Tensor]:
    """What the network makes of one sentence (T,), by the end of the recorded name."""
    reference = model.encode_ids(ids[None])
    found: dict[str, Tensor] = {}
    attentions = [cast(CrossModalSelfAttention, part) for part in model.attentions]
    for number, attention, level, one in zip(
        (3, 4, 5), attentions, features.levels, reference, strict=True
    ):
        found[f"f{number}"] = attention.attend(level, one.keys, one.padding_mask)[0]
    levels = model.attended(features, reference)
    parts = [
        gate(x).chunk(model.fusion.chunks, 1)
        for gate, x in zip(model.fusion.gates, levels, strict=True)
    ]
    for index, number in enumerate((5, 4, 3)):
        found[f"x{number}"] = levels[index][0].movedim(0, -1)
        found[f"g{number}"] = model.fusion.cell(index, levels, parts)[0].movedim(0, -1)
    found["score"] = model.score(model.fusion(levels))[0, 0]
    found["up"] = model.logits(features, [reference])[0, 0]
    pairs = attentions[2].pairs(features.levels[2], reference[2].keys, reference[2].padding_mask)
    found["attn5"] = (pairs.query.flatten(1, 2) @ pairs.key.transpose(1, 2)).softmax(dim=-1)[0]
    return found


def build(arrays: Arrays) -> Cmsa:
    """The model that a recording was made with, in float64, with its weights but for the trunk."""
    weights: Weights = {
        name.removeprefix(WEIGHTS): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(WEIGHTS)
    }

    def width(name: str) -> int:
        return weights[HEAD + name].shape[-1]

    words, word_dim = weights[f"{HEAD}embedding"].shape
    channels = {f"res{level}": arrays[f"c{level}"].shape[-1] for level in (3, 4, 5)}
    model = Cmsa(
        backbone=cast(Backbone, _Maps(channels)),
        text_encoder=WordTable(Vocabulary(), dim=word_dim, context_length=20, size=words),
        visual_dim=width("mlp_c5/DW"),
        inner_dims=[width(f"CMSA{end}/conv3d/kernel") for end in ("_C3", "_C4", "")],
        reduced_dims=[width(f"conv3d{end}/kernel") for end in ("_1", "")],
        fusion_dim=width("conv2d/kernel"),
    ).double()
    load_weights(model, weights, table=CMSA_KEYS, optional=("text_encoder.words",))
    return model.eval()


class _Maps(nn.Module):
    """Stands where a backbone does; its maps are recorded."""

    def __init__(self, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.channels = channels


def _images(arrays: Arrays, grid: tuple[int, int]) -> ImageBatch:
    """Images of the size that a recorded answer has, of which nobody asks the pixels."""
    sizes = [array.shape for name, array in arrays.items() if name.endswith("_up")]
    height, width = sizes[0] if sizes else grid
    return ImageBatch(
        tensor=torch.zeros(1, 3, height, width),
        image_sizes=((height, width),),
        padding_mask=torch.zeros(1, height, width, dtype=torch.bool),
    )


def _closed_gate(*levels: np.ndarray) -> Tensor:
    """The first of three levels (h, w, C) through gates whose convolutions are zero."""
    maps = [torch.from_numpy(level).movedim(-1, 0)[None] for level in levels]
    fusion = GatedFusion(maps[0].shape[1]).double()
    zeros = [torch.zeros_like(maps[0])] * fusion.chunks
    return fusion.cell(0, maps, [zeros] * len(maps))[0].movedim(0, -1)
