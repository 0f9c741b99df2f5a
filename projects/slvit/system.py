"""SLViT as a system of the toolkit."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified.checkpoint import KeyTable, read_weights
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
from unified.weights import WEIGHTS, WeightsEntry, resolve

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from projects.slvit.backbone import LanguageMSCAN
    from projects.slvit.model import SLViT
    from unified.modeling.text_encoder import TextEncoder

TEXT = "text_encoder.bert."


def add_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.SLVIT``; the defaults are the published model, MSCAN-B and BERT-base."""
    node = type(cfg)()
    node.DIMS = (64, 128, 320, 512)  # of the four stages
    node.DEPTHS = (3, 3, 12, 3)
    node.MLP_RATIOS = (8, 8, 4, 4)
    node.DROP_PATH = 0.2
    node.BACKBONE_WEIGHTS = ""  # public MSCAN weights: name in the weights registry or a file
    node.ENHANCE_DIM = 256
    node.REGIONS = 32
    # What tells uncertain regions: "attn_sum", as published, which is 1 everywhere up to rounding,
    # or "logit_mean", the mean similarity of a pixel to the words.
    node.SCORE = "attn_sum"
    node.DECODER_DIMS = (512, 256)
    node.DECODER_BASES = 64
    # (h, w) to which images are stretched; () keeps their sides and pads to multiples of 32.
    node.INPUT_SIZE = (480, 480)
    node.PIXEL_MEAN = [123.675, 116.28, 103.53]  # RGB on the 0..255 scale
    node.PIXEL_STD = [58.395, 57.12, 57.375]
    text = node.TEXT_ENCODER = type(cfg)()
    text.NAME = "bert-base"
    text.WEIGHTS = ""  # name in the weights registry, or a folder in transformers' layout
    text.CONTEXT_LENGTH = 20
    text.FREEZE = False
    cfg.MODEL.SLVIT = node


def build(cfg: CfgNode) -> SLViT:
    """The model that ``MODEL.SLVIT`` describes.

    Raises:
        ConfigError: a value does not fit.
    """
    import torch
    from torch import nn

    from projects.slvit.decoder import LightHamDecoder
    from projects.slvit.enhance import UncertainRegionEnhancement
    from projects.slvit.model import SLViT

    node = cfg.MODEL.SLVIT
    text_encoder = _build_text(node)
    model = SLViT(
        backbone=_build_backbone(node),
        text_encoder=text_encoder,
        enhancement=UncertainRegionEnhancement(
            dims=node.DIMS, dim=node.ENHANCE_DIM, num_regions=node.REGIONS
        ),
        decoder=LightHamDecoder(
            dims=node.DIMS,
            hidden_dim=node.DECODER_DIMS[0],
            out_dim=node.DECODER_DIMS[1],
            rank=node.DECODER_BASES,
        ),
        input_size=tuple(node.INPUT_SIZE) or None,
        score=node.SCORE,
        pixel_mean=node.PIXEL_MEAN,
        pixel_std=node.PIXEL_STD,
    )
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.cuda.is_available():
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def _build_backbone(node: CfgNode) -> LanguageMSCAN:
    from projects.slvit.backbone import LanguageMSCAN
    from unified.modeling.text_encoder import TEXT_ENCODERS

    lengths = {len(node.DIMS), len(node.DEPTHS), len(node.MLP_RATIOS)}
    if lengths != {4}:
        raise ConfigError("MODEL.SLVIT: DIMS, DEPTHS and MLP_RATIOS need four numbers each")
    return LanguageMSCAN(
        dims=node.DIMS,
        depths=node.DEPTHS,
        mlp_ratios=node.MLP_RATIOS,
        context_dim=TEXT_ENCODERS[node.TEXT_ENCODER.NAME].sizes["hidden_size"],
        drop_path=node.DROP_PATH,
    )


def _build_text(node: CfgNode) -> TextEncoder:
    from unified.modeling.text_encoder import build_text_encoder

    text = node.TEXT_ENCODER
    encoder = build_text_encoder(text.NAME, hidden_dim=None, context_length=text.CONTEXT_LENGTH)
    if hasattr(encoder.bert, "pooler"):
        encoder.bert.add_module("pooler", None)  # words alone are read
    encoder.bert.requires_grad_(not text.FREEZE)
    return encoder


def load_parts(model: Any, cfg: CfgNode, given: Collection[str]) -> tuple[str, ...]:
    """Public MSCAN weights and those of the language model, where the checkpoint lacks them.

    Raises:
        CheckpointError: they are not there or do not fit.
    """
    from projects.slvit.checkpoint import load_mscan
    from unified.modeling.text_encoder import build_text_encoder

    node, optional = cfg.MODEL.SLVIT, []
    if node.BACKBONE_WEIGHTS and not any(key.startswith("backbone.") for key in given):
        load_mscan(model.backbone, read_weights(_file(node.BACKBONE_WEIGHTS)))
        optional.append("backbone.")
    text = node.TEXT_ENCODER
    if text.WEIGHTS:
        source = build_text_encoder(text.NAME, hidden_dim=None, weights=_file(text.WEIGHTS))
        model.text_encoder.tokenizer = source.tokenizer
        if not any(key.startswith(TEXT) for key in given):
            weights = source.bert.state_dict()
            own = model.text_encoder.bert.state_dict()
            model.text_encoder.bert.load_state_dict({key: weights[key] for key in own})
            optional.append(TEXT)
    return tuple(optional)


def parameter_group(name: str, cfg: CfgNode) -> ParameterGroup:
    """No decay where the name says "norm", as in SLViT's code: its other biases do decay."""
    decay = 0.0 if "norm" in name else cfg.SOLVER.WEIGHT_DECAY
    return ParameterGroup(cfg.SOLVER.BASE_LR, decay)


def official_keys(keys: Iterable[str]) -> KeyTable | None:
    """The table if a file has SLViT's layout or ours."""
    from projects.slvit.checkpoint import OFFICIAL_KEYS

    known = list(keys)
    both = ("backbone.", "text_encoder.")
    mine = all(any(key.startswith(part) for key in known) for part in both)
    parts = ("classifier.", "inter_trans.", "enhancement.")
    return OFFICIAL_KEYS if mine and any(key.startswith(parts) for key in known) else None


def _file(name: str) -> Path:
    return resolve(name) if name in WEIGHTS else Path(name)


def _replay(kind: str) -> Replay:
    def fits(recording: Recording) -> bool:
        from projects.slvit.parity import kind_of

        return kind_of(recording.path) == kind

    def run(recording: Recording) -> list[Comparison]:
        from projects.slvit.parity import check

        return check(recording.path, recording.arrays)

    return Replay(fits, run)


_KINDS = ("lmfa", "block", "urce", "nmf", "hamhead", "full")
SYSTEM = System(
    name="SLViT",
    add_config=add_config,
    build=build,
    parameter_group=parameter_group,
    load_parts=load_parts,
    layouts=(Layout("official", official_keys),),
    extensions=("projects.slvit.fusion_layer",),
    models={
        "slvit": ModelEntry(
            "slvit.yaml",
            profile=Profile(
                (480, 480), published="RefCOCO val oIoU 74.0", made="60.3 at 128 lines"
            ),
        ),
        "slvit-tiny": ModelEntry("lite/slvit_tiny.yaml"),
    },
    weights={
        "mscan_b": WeightsEntry(
            licence="Apache-2.0", page="https://github.com/Visual-Attention-Network/SegNeXt"
        )
    },
    replays={f"slvit_{kind}": _replay(f"slvit_{kind}") for kind in _KINDS},
)
