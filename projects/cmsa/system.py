"""CMSA as a system of the toolkit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unified.checkpoint import KeyTable
from unified.engine.system import (
    Layout,
    ModelEntry,
    ParameterGroup,
    Profile,
    Recording,
    Replay,
    System,
)
from unified.errors import ConfigError
from unified.parity import Comparison

if TYPE_CHECKING:
    from torch import Tensor
    from yacs.config import CfgNode

    from projects.cmsa.model import Cmsa
    from unified.modeling.backbones import Backbone


def add_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.CMSA``; the defaults are the published model."""
    from unified.engine.words import add_words

    node = type(cfg)()
    node.BACKBONE = "deeplab_resnet101"  # or one of our backbones, at its own strides
    node.BACKBONE_WEIGHTS = ""  # name in the weights registry or a file
    node.BACKBONE_LR_MULTIPLIER = 1.0
    node.FREEZE_AT = 5
    # RGB on the 0..255 scale, as the backbone was trained.
    node.PIXEL_MEAN = [122.679, 116.669, 104.007]
    node.PIXEL_STD = [1.0, 1.0, 1.0]
    node.IMAGE_SIZE = 320  # images are padded to a multiple of it
    node.VISUAL_DIM = 1000
    node.INNER_DIMS = (64, 128, 512)  # of the attention on res3, res4, res5
    node.REDUCED_DIMS = (128, 256)  # of pairs on res3, res4
    node.FUSION_DIM = 500
    node.GATE = "code"  # or "paper"
    add_words(node, dim=1000)
    cfg.MODEL.CMSA = node


def build(cfg: CfgNode) -> Cmsa:
    """The model that ``MODEL.CMSA`` describes.

    Raises:
        ConfigError: a value is not among the known ones.
    """
    from projects.cmsa.gates import GATES
    from projects.cmsa.model import Cmsa
    from unified.engine.words import build_words

    node = cfg.MODEL.CMSA
    if node.GATE not in GATES:
        raise ConfigError(f"MODEL.CMSA.GATE is {node.GATE!r}: choose one of {sorted(GATES)}")
    return Cmsa(
        backbone=_build_backbone(node),
        text_encoder=build_words(node),
        visual_dim=node.VISUAL_DIM,
        inner_dims=node.INNER_DIMS,
        reduced_dims=node.REDUCED_DIMS,
        fusion_dim=node.FUSION_DIM,
        gate=node.GATE,
        image_size=node.IMAGE_SIZE,
        pixel_mean=node.PIXEL_MEAN,
        pixel_std=node.PIXEL_STD,
    )


def _build_backbone(node: CfgNode) -> Backbone:
    from projects.cmsa.deeplab import NAME, build_deeplab
    from unified.modeling.backbones import build_backbone

    if node.BACKBONE == NAME:
        return build_deeplab(freeze_at=node.FREEZE_AT)
    return build_backbone(node.BACKBONE, freeze_at=node.FREEZE_AT)


def load_parts(model: Cmsa, cfg: CfgNode, given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Words from the checkpoint, and the backbone from where the configuration says.

    Raises:
        CheckpointError: the words are unknown, or the backbone's weights do not fit.
    """
    from unified.engine.words import load_words

    node = cfg.MODEL.CMSA
    optional = load_words(model.text_encoder, given, "text_encoder.")
    if node.BACKBONE_WEIGHTS and not any(key.startswith("backbone.") for key in given):
        _load_backbone(model, node.BACKBONE_WEIGHTS)
        optional = (*optional, "backbone.")
    return optional


def _load_backbone(model: Cmsa, name: str) -> None:
    from projects.cmsa.checkpoint import CMSA_KEYS
    from projects.cmsa.deeplab import NAME
    from unified.checkpoint import load_weights, read_weights
    from unified.modeling.backbones import load_pretrained
    from unified.weights import WEIGHTS, resolve

    file = resolve(name) if name in WEIGHTS else Path(name)
    if model.backbone.name != NAME:
        load_pretrained(model.backbone, file)
        return
    others = tuple(f"{part}." for part, _ in model.named_children() if part != "backbone")
    load_weights(model, read_weights(file), table=CMSA_KEYS, optional=others, source=str(file))


def parameter_group(name: str, cfg: CfgNode) -> ParameterGroup:
    """One rate but for the backbone, where it is not frozen."""
    slower = cfg.MODEL.CMSA.BACKBONE_LR_MULTIPLIER if name.startswith("backbone.") else 1.0
    return ParameterGroup(slower * cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY)


def official_keys(keys: Iterable[str]) -> KeyTable | None:
    """The table for variables of the released TensorFlow graph."""
    from projects.cmsa.checkpoint import find_cmsa_keys

    return find_cmsa_keys(keys)


def is_recording(recording: Recording) -> bool:
    """Whether it is a run of the graph."""
    from projects.cmsa.parity import is_recording

    return is_recording(recording.arrays)


def check(recording: Recording) -> list[Comparison]:
    """The graph from the maps of the backbone on."""
    from projects.cmsa.parity import check

    return check(recording.arrays)


SYSTEM = System(
    name="CMSA",
    add_config=add_config,
    build=build,
    load_parts=load_parts,
    parameter_group=parameter_group,
    layouts=(Layout("official", official_keys),),
    models={
        "cmsa": ModelEntry(
            "cmsa.yaml",
            profile=Profile((320, 320), published="RefCOCO val oIoU 58.3", made="62.8"),
        )
    },
    extensions=(f"{__package__}.fusion_layer",),
    replays={"graph": Replay(is_recording, check)},
)
