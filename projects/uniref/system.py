"""UniRef as a system of the toolkit."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unified.checkpoint import KeyTable
from unified.engine.system import (
    Layout,
    ModelEntry,
    ParameterGroup,
    Profile,
    Recording,
    Replay,
    Supervision,
    System,
)
from unified.parity import Comparison
from unified.weights import WeightsEntry

if TYPE_CHECKING:
    from torch import nn
    from yacs.config import CfgNode

_PAGE = "https://github.com/FoundationVision/UniRef"
SAMPLING_MULTIPLIER = 0.1

MODELS = {
    "uniref-lite": ModelEntry(
        "lite/uniref_lite.yaml",
        "uniref_lite",
        default=True,
        profile=Profile((352, 480), made="77.2 at 128 lines"),
    ),
    "uniref-r50": ModelEntry("video_joint_r50.yaml", "uniref_video_r50"),
    "uniref-r50-image": ModelEntry(
        "image_joint_r50.yaml",
        "uniref_image_r50",
        profile=Profile((800, 1088), published="RefCOCO val oIoU 76.3"),
    ),
    "uniref-r50-objects365": ModelEntry("pretrain_objects365_r50.yaml", "uniref_objects365_r50"),
    "uniref-swin-l": ModelEntry("video_joint_swin_l.yaml", "uniref_video_swin_l"),
    "uniref-swin-l-image": ModelEntry("image_joint_swin_l.yaml", "uniref_image_swin_l"),
    "uniref-swin-l-objects365": ModelEntry(
        "pretrain_objects365_swin_l.yaml", "uniref_objects365_swin_l"
    ),
}
WEIGHTS = {
    "uniref_lite": WeightsEntry(
        licence="Apache-2.0",  # see MODEL_CARD.md for that of the training data
        bundled=Path(__file__).parent / "weights/uniref_lite.safetensors",
        sha256="3e95906763257a307bb8253a706482a605de640e37af9c58742c7106a747fdd7",
    ),
    "uniref_lite_chooser": WeightsEntry(
        licence="Apache-2.0",  # see MODEL_CARD.md
        bundled=Path(__file__).parent / "weights/uniref_lite_chooser.safetensors",
        sha256="498f9c92284aae2e34224458156a9bd286aee55706c491f44d34b11256752f4d",
    ),
    **{
        f"uniref_{stage}_{size}": WeightsEntry(licence="MIT", page=_PAGE)
        for stage in ("objects365", "image", "video")
        for size in ("r50", "swin_l")
    },
}


def add_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.UNIREF``."""
    from projects.uniref.config import add_config

    add_config(cfg)


def build(cfg: CfgNode) -> nn.Module:
    """The model that ``MODEL.UNIREF`` describes."""
    from projects.uniref.config import build

    return build(cfg)


def load_parts(model: nn.Module, cfg: CfgNode, given: Collection[str]) -> tuple[str, ...]:
    """Backbone and language model from the weights that ``MODEL.UNIREF`` names."""
    from projects.uniref.config import load_parts

    return load_parts(model, cfg, given)


def supervision(cfg: CfgNode) -> Supervision:
    """Boxes alone, with a warm-up, in the Objects365 stage."""
    from projects.uniref.config import find_lite
    from unified.modeling.boxinst import warm_up

    node, lite = cfg.MODEL.UNIREF, find_lite()
    return Supervision(
        class_agnostic=node.NUM_CLASSES == 1,
        from_boxes=node.BOX_SUPERVISED,
        schedule=(
            (lambda losses, step: warm_up(losses, step * node.DECODER_LAYERS))
            if node.BOX_SUPERVISED
            else None
        ),
        complete_target=None if lite is None else lite.complete_target(node),
    )


def parameter_group(name: str, cfg: CfgNode) -> ParameterGroup:
    """The first rule that matches counts.

    Source: UniRef's optimiser. Its last group holds the language model alone, not the projection
    of the words, which is why ours is matched by "text_encoder.bert".
    """
    node, rate = cfg.MODEL.UNIREF, cfg.SOLVER.BASE_LR
    if "backbone" in name:
        rate *= node.BACKBONE_LR_MULTIPLIER
    elif "sampling_offsets" in name or "reference_points" in name:
        rate *= SAMPLING_MULTIPLIER
    elif "text_encoder.bert" in name:
        rate = node.TEXT_ENCODER.LR
    return ParameterGroup(rate, cfg.SOLVER.WEIGHT_DECAY)


def official_keys(keys: Iterable[str]) -> KeyTable | None:
    """The table for files of UniRef++."""
    from projects.uniref.checkpoint import find_uniref_keys

    return find_uniref_keys(keys)


def score_bias(model: nn.Module) -> str:
    """The bias of the last layer's class predictor."""
    return f"head.class_embed.{model.head.num_layers - 1}.bias"


def baseline(model: nn.Module) -> nn.Module:
    """Our remake of the reference's algorithm on the weights of ``model``."""
    from projects.uniref.baseline import ReferenceAlgorithm

    return ReferenceAlgorithm(model)


def benchmark_weights(model: nn.Module) -> None:
    """Weights made from key names: fusion is no identity then, and objects are visible."""
    from projects.uniref.parity import load_recorded_weights

    load_recorded_weights(model, {"in/controller_last_bias": np.float32(0.8)})


def _replay(kind: str) -> Replay:
    def fits(recording: Recording) -> bool:
        from projects.uniref.parity import kind_of

        return kind_of(recording.arrays) == kind

    def run(recording: Recording) -> list[Comparison]:
        from projects.uniref.parity.check import check

        return check(recording)

    return Replay(fits, run)


SYSTEM = System(
    name="UniRef",
    add_config=add_config,
    build=build,
    supervision=supervision,
    parameter_group=parameter_group,
    load_parts=load_parts,
    class_keys=("head.class_embed.", "name_head.names"),
    added_keys=("neck.top_down.",),
    spare_keys=("name_head.",),
    layouts=(Layout("official", official_keys),),
    models=MODELS,
    weights=WEIGHTS,
    tiny_config="lite/joint_tiny.yaml",
    replays={
        kind: _replay(kind)
        for kind in (
            *("msdeform", "unifusion", "features", "text", "maskenc"),
            *("train", "video", "post", "call"),
        )
    },
    score_bias=score_bias,
    baseline=baseline,
    benchmark_weights=benchmark_weights,
    stages={"fuse": "fusion", "head.transformer.encode": "encoder", "head.forward": "decoder"},
)
