"""Variable names of the released TensorFlow graph and our keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from unified.checkpoint import FOREIGN_PREFIX, Conversion, KeyTable, Weights

HEAD = "text_objseg/"
_BLOCKS = {"res2": 3, "res3": 4, "res4": 23, "res5": 3}
_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# Levels of ours from fine to coarse: 0 is res3.
_LEVELS = {0: "CMSA_C3", 1: "CMSA_C4", 2: "CMSA"}
_ATTENTION = {"conv3d": "query", "conv3d_1": "key", "conv3d_2": "value", "conv3d_3": "output"}
_REDUCE = {0: "conv3d_1", 1: "conv3d"}
_PROJECT = {0: "conv2d_2", 1: "conv2d_1", 2: "conv2d"}
_PARTS = {"kernel": "weight", "bias": "bias"}


def _layer(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [(f"{HEAD}{theirs}/{a}", f"{ours}.{b}") for a, b in _PARTS.items()]


def _head_rules() -> list[tuple[str, str]]:
    rules = [(f"{HEAD}embedding", "text_encoder.table.weight")]
    for theirs, ours in (("mlp_c5", "reduce"), ("score", "score")):
        rules += [
            (f"{HEAD}{theirs}/DW", f"{ours}.weight"),
            (f"{HEAD}{theirs}/biases", f"{ours}.bias"),
        ]
    for level, scope in _LEVELS.items():
        for theirs, ours in _ATTENTION.items():
            rules += _layer(f"{scope}/{theirs}", f"attentions.{level}.{ours}")
        rules += _layer(_PROJECT[level], f"attentions.{level}.project")
        if level in _REDUCE:
            rules += _layer(_REDUCE[level], f"attentions.{level}.reduce")
    for index in range(3):
        rules += _layer(f"mgate/x{index + 1}/conv2d", f"fusion.gates.{index}")
        rules += [(f"{HEAD}mgate/x{index + 1}/Variable", f"fusion.shares.{index}")]
    return rules


def _trunk_rules() -> list[tuple[str, str]]:
    """DeepLab's names, those of Caffe: res3b2_branch2a is the first convolution of the third."""
    convs = {"conv1": "stem.conv1"}
    norms = {"bn_conv1": "stem.bn1"}
    for stage, (name, depth) in enumerate(_BLOCKS.items(), start=2):
        for number in range(depth):
            letter = "abc"[number] if depth == 3 else ("a" if number == 0 else f"b{number}")
            for branch, conv, norm in (
                ("2a", "conv1", "bn1"),
                ("2b", "conv2", "bn2"),
                ("2c", "conv3", "bn3"),
                ("1", "downsample.0", "downsample.1"),
            ):
                convs[f"res{stage}{letter}_branch{branch}"] = f"{name}.{number}.{conv}"
                norms[f"bn{stage}{letter}_branch{branch}"] = f"{name}.{number}.{norm}"
    rules = [(f"{theirs}/weights", f"backbone.{ours}.weight") for theirs, ours in convs.items()]
    return rules + [
        (f"{theirs}/{a}", f"backbone.{ours}.{b}")
        for theirs, ours in norms.items()
        for a, b in _NORM.items()
    ]


@dataclass(frozen=True)
class TensorFlowKeys(KeyTable):
    """A table between TensorFlow's variables and ours; kernels there end in (in, out)."""

    def to_native(self, weights: Mapping[str, Tensor]) -> tuple[Weights, Conversion]:
        """Kernels get their output channels first; those of linear layers become matrices."""
        native, report = super().to_native(weights)
        for key, tensor in native.items():
            if tensor.ndim >= 4 and not key.startswith(FOREIGN_PREFIX):
                tensor = tensor.movedim((-1, -2), (0, 1))
                linear = key.startswith("attentions.")
                native[key] = (tensor.flatten(1) if linear else tensor).contiguous()
        return native, report

    def to_foreign(self, weights: Mapping[str, Tensor]) -> Weights:
        """The way back."""
        foreign = super().to_foreign(weights)
        for key, tensor in foreign.items():
            if FOREIGN_PREFIX + key in weights or key == f"{HEAD}embedding" or tensor.ndim < 2:
                continue
            if tensor.ndim == 2:
                spatial = 3 if "/conv3d" in key else 2
                tensor = tensor.reshape(*tensor.shape, *(1,) * spatial)
            foreign[key] = tensor.movedim((0, 1), (-1, -2)).contiguous()
        return foreign


CMSA_KEYS = TensorFlowKeys(
    rules=(*_head_rules(), *_trunk_rules()),
    unused=("*/Adam", "*/Adam_1", "beta1_power", "beta2_power", f"{HEAD}Variable", "fc1_voc12_*"),
    ours=("text_encoder.words",),
)


def find_cmsa_keys(keys: Iterable[str]) -> KeyTable | None:
    """The table, if the keys are those of a CMSA model in either layout."""
    known = set(keys)
    theirs, ours = f"{HEAD}CMSA/conv3d/kernel", "attentions.2.query.weight"
    return CMSA_KEYS if theirs in known or ours in known else None
