"""ReSTR as a system of the toolkit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

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

    from projects.restr.model import Restr
    from projects.restr.vision import ConvolutionalEncoder, VisualEncoder

VIT = "vit"


def add_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.RESTR``; the defaults are the published model."""
    from unified.engine.words import add_words

    node = type(cfg)()
    node.BACKBONE = VIT  # or one of our backbones: its map of stride PATCH_SIZE gives the patches
    node.BACKBONE_WEIGHTS = ""  # name in the weights registry or a file, a ViT's in timm's layout
    node.BACKBONE_LR_MULTIPLIER = 0.1
    node.FREEZE_AT = 0  # of one of our backbones
    # RGB on the 0..255 scale, as the backbone was trained.
    node.PIXEL_MEAN = [127.5, 127.5, 127.5]
    node.PIXEL_STD = [127.5, 127.5, 127.5]
    node.IMAGE_SIZE = 480
    node.PATCH_SIZE = 16
    node.DIM = 768
    node.NUM_HEADS = 12
    node.DROP_PATH = 0.1
    node.LANGUAGE_BLOCKS = 6
    node.LANGUAGE_HEADS = 12
    node.FUSION_BLOCKS = 2
    node.FUSION_SHARED = False  # the same block every time
    node.GATE = "logit"  # or "sigmoid_scaled", as printed
    node.PATCH_LABEL = "any"  # or "mean", as printed
    node.PATCH_WEIGHT = 0.1
    # What lets a narrow model learn from little; see "On made sets" in the README.
    node.PRIOR = 0.5  # share of foreground that scores of 0 stand for
    node.INITIAL_STD = [0.02, 0.02]  # of the weights that lead patches and words into the fusion
    node.CLASSIFIER_LR_MULTIPLIER = 1.0  # of the encoder that makes the classifier of patches
    add_words(node, dim=300)
    cfg.MODEL.RESTR = node


def build(cfg: CfgNode) -> Restr:
    """The model that ``MODEL.RESTR`` describes.

    Raises:
        ConfigError: a value is not among the known ones.
    """
    from projects.restr.fusion import GATES
    from projects.restr.language import LanguageEncoder
    from projects.restr.model import Restr
    from unified.engine.words import build_words

    node = cfg.MODEL.RESTR
    _check(node)
    return Restr(
        backbone=_build_backbone(node),
        text_encoder=LanguageEncoder(
            build_words(node),
            out_dim=node.DIM,
            num_blocks=node.LANGUAGE_BLOCKS,
            num_heads=node.LANGUAGE_HEADS,
        ),
        fusion=GATES[node.GATE](
            node.DIM,
            num_heads=node.NUM_HEADS,
            num_blocks=node.FUSION_BLOCKS,
            shared=node.FUSION_SHARED,
            num_steps=node.PATCH_SIZE.bit_length() - 1,  # back to pixels
            drop_path=node.DROP_PATH,
            initial_std=node.INITIAL_STD,
        ),
        image_size=node.IMAGE_SIZE,
        patch_size=node.PATCH_SIZE,
        patch_label=node.PATCH_LABEL,
        patch_weight=node.PATCH_WEIGHT,
        prior=node.PRIOR,
        pixel_mean=node.PIXEL_MEAN,
        pixel_std=node.PIXEL_STD,
    )


def _check(node: CfgNode) -> None:
    from projects.restr.fusion import GATES
    from projects.restr.model import PatchLabel

    for key, known in (("GATE", sorted(GATES)), ("PATCH_LABEL", get_args(PatchLabel))):
        if node[key] not in known:
            raise ConfigError(f"MODEL.RESTR.{key} is {node[key]!r}: choose one of {list(known)}")
    if not 0 < node.PRIOR < 1:
        raise ConfigError(f"MODEL.RESTR.PRIOR is {node.PRIOR}: expected a share between 0 and 1")
    if len(node.INITIAL_STD) != 2 or min(node.INITIAL_STD) <= 0:
        raise ConfigError(
            f"MODEL.RESTR.INITIAL_STD is {list(node.INITIAL_STD)}: expected two numbers above 0, "
            "of patches and of words"
        )
    if node.IMAGE_SIZE % node.PATCH_SIZE:
        raise ConfigError(
            f"MODEL.RESTR.IMAGE_SIZE is {node.IMAGE_SIZE}: expected a multiple of PATCH_SIZE, "
            f"which is {node.PATCH_SIZE}"
        )


def _build_backbone(node: CfgNode) -> VisualEncoder | ConvolutionalEncoder:
    from projects.restr.vision import ConvolutionalEncoder, VisualEncoder
    from unified.modeling.backbones import build_backbone

    if node.BACKBONE != VIT:
        backbone = build_backbone(node.BACKBONE, freeze_at=node.FREEZE_AT)
        return ConvolutionalEncoder(backbone, dim=node.DIM, patch_size=node.PATCH_SIZE)
    return VisualEncoder(
        image_size=node.IMAGE_SIZE,
        patch_size=node.PATCH_SIZE,
        dim=node.DIM,
        num_heads=node.NUM_HEADS,
        drop_path=node.DROP_PATH,
    )


def load_parts(model: Restr, cfg: CfgNode, given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Words from the checkpoint, and the backbone from where the configuration says.

    Raises:
        CheckpointError: the words are unknown, or the backbone's weights do not fit.
    """
    from unified.engine.words import load_words
    from unified.weights import WEIGHTS, resolve

    name = cfg.MODEL.RESTR.BACKBONE_WEIGHTS
    optional = load_words(model.text_encoder.table, given, "text_encoder.table.")
    if name and not any(key.startswith("backbone.") for key in given):
        model.backbone.load(resolve(name) if name in WEIGHTS else Path(name))
        optional = (*optional, "backbone.")
    return optional


def parameter_group(name: str, cfg: CfgNode) -> ParameterGroup:
    """The visual encoder learns slower; decay on everything. Source: SouthFlame/restr."""
    node, slower = cfg.MODEL.RESTR, 1.0
    if name.startswith("backbone."):
        slower = node.BACKBONE_LR_MULTIPLIER
    elif name == "fusion.seed" or name.startswith(("fusion.classifier.", "fusion.norm.")):
        slower = node.CLASSIFIER_LR_MULTIPLIER
    return ParameterGroup(slower * cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY)


def official_keys(keys: Iterable[str]) -> KeyTable | None:
    """The table for snapshots of the released code."""
    from projects.restr.checkpoint import find_restr_keys

    return find_restr_keys(keys)


def _replay(kind: str) -> Replay:
    def fits(recording: Recording) -> bool:
        from projects.restr.parity import is_recording

        return is_recording(recording.path, kind)

    def run(recording: Recording) -> list[Comparison]:
        from projects.restr.parity import check

        return check(recording.path, recording.arrays, kind)

    return Replay(fits, run)


SYSTEM = System(
    name="ReSTR",
    add_config=add_config,
    build=build,
    load_parts=load_parts,
    parameter_group=parameter_group,
    layouts=(Layout("official", official_keys),),
    models={
        "restr": ModelEntry(
            "restr.yaml",
            profile=Profile(
                (480, 480), published="RefCOCO val oIoU 67.2", made="60.2 at 128 lines"
            ),
        )
    },
    extensions=(f"{__package__}.fusion_layer",),
    replays={kind: _replay(kind) for kind in ("full", "fusion")},
)
