"""The configuration of UniFusion in SAM: keys with their defaults, the model built from them."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from projects.sam.baseline import BoxTracking
from projects.sam.building import build_sam
from projects.sam.cache import GIGABYTE, EmbeddingCache
from projects.sam.checkpoint import MOBILE_KEYS, SAM2_KEYS, VIT_KEYS
from projects.sam.context import Context
from projects.sam.fusion import DeepFusion
from projects.sam.losses import MaskLosses
from projects.sam.mask_encoder import PatchMaskEncoder, SamMaskEncoder
from projects.sam.model import SamUniFusion
from unified.checkpoint import load_weights, read_weights
from unified.errors import ConfigError
from unified.modeling.backbones import build_backbone, load_pretrained
from unified.modeling.fusion import FusionLayer, build_fusion
from unified.modeling.text_encoder import TextEncoder, build_text_encoder
from unified.weights import WEIGHTS, cache_dir, resolve

WIDTH = 256  # of the embedding of every SAM here
_KEYS = {"mobile": MOBILE_KEYS, "sam2": SAM2_KEYS}  # of released files
MASK_ENCODERS = ("resnet", "patches", "box", "")
SHARED = (".mlp.", "upscale_")  # of a mask decoder, never trained
_SAM, _TEXT_MODEL, _BACKBONE = "sam.", "text_encoder.bert.", "context.backbone."


def add_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.SAM``; the defaults are the reference's model."""
    node = CfgNode()
    # Or vit_l, vit_b, mobile, sam2_tiny, sam2_small, sam2_base_plus, sam2_large (also SAM 2.1).
    node.NAME = "vit_h"
    # Side of the square that is encoded; released ViTs have positions for 1024 pixels only.
    node.IMAGE_SIZE = 1024
    node.WEIGHTS = ""  # of the SAM alone: name in the weights registry or an official file
    node.CACHE_GIGABYTES = 0.0  # of embeddings kept on disk in training; 0 keeps none
    node.FUSION = CfgNode()
    node.FUSION.NAME = "UniFusion"
    node.FUSION.NUM_HEADS = 8
    node.FUSION.HEAD_DIM = 256
    node.FUSION.DROPOUT = 0.1
    node.FUSION.DEPTH = 3  # layers of DeepFusion
    node.TEXT_ENCODER = CfgNode()
    node.TEXT_ENCODER.NAME = "bert-base"  # "" builds a model without sentences
    node.TEXT_ENCODER.WEIGHTS = ""  # name in the weights registry or a folder
    node.TEXT_ENCODER.LR = 1e-5  # of the language model
    node.TEXT_ENCODER.DROPOUT = 0.1
    node.TEXT_ENCODER.FREEZE = False  # the language model, not the projection of its words
    node.MASK_ENCODER = CfgNode()
    # Or patches; "" builds a model that follows no masks, and box a SAM with nothing trained, which
    # follows the box of its previous mask.
    node.MASK_ENCODER.NAME = "resnet"
    node.MASK_ENCODER.WIDTH = 64  # of the ResNet
    node.CONTEXT = CfgNode()
    node.CONTEXT.WEIGHTS = ""  # of EfficientNet-Lite0, which the fusion sees too; "" for none
    # A second mask decoder for sentences and masks; MLPs and upscaling stay as the SAM's.
    node.OWN_DECODER = False
    # The SAM's own decoder is asked about the box of what was found, and both masks are joined.
    node.SECOND_PASS = False
    node.LOSS = CfgNode()
    node.LOSS.BCE = 2.0
    node.LOSS.DICE = 0.5
    node.LOSS.SCORE = 0.0  # of the predicted IoU
    cfg.MODEL.SAM = node


def build(cfg: CfgNode) -> SamUniFusion:
    """The model that ``cfg.MODEL.SAM`` describes, in train mode, with initial weights.

    Raises:
        ConfigError: a value is not among the known ones.
    """
    node = cfg.MODEL.SAM
    sam = build_sam(node.NAME, node.IMAGE_SIZE)
    encoder = sam.freeze()
    if node.MASK_ENCODER.NAME == "box":
        return BoxTracking(sam)
    if node.OWN_DECODER:
        sam.mask_decoder.requires_grad_(False)
    return SamUniFusion(
        sam,
        fusion=_build_fusion(node.FUSION),
        text_encoder=_build_text_encoder(node),
        mask_encoder=_build_mask_encoder(node.MASK_ENCODER),
        context=(
            Context(build_backbone("efficientnet_lite0", freeze_at=5), dim=WIDTH)
            if node.CONTEXT.WEIGHTS
            else None
        ),
        decoder=own_decoder(sam.mask_decoder) if node.OWN_DECODER else None,
        second_pass=node.SECOND_PASS,
        criterion=MaskLosses(bce=node.LOSS.BCE, dice=node.LOSS.DICE, score=node.LOSS.SCORE),
        cache=(
            EmbeddingCache(
                encoder,
                folder=cache_dir().parent / "embeddings",
                limit=int(node.CACHE_GIGABYTES * GIGABYTE),
            )
            if node.CACHE_GIGABYTES
            else None
        ),
    )


def own_decoder(decoder: nn.Module) -> nn.Module:
    """A copy of a SAM's mask decoder, of which prompts and attention are trained."""
    own = copy.deepcopy(decoder).requires_grad_(True)
    for name, parameter in own.named_parameters():
        if any(part in name for part in SHARED):
            parameter.requires_grad_(False)
    return own


def _build_fusion(node: CfgNode) -> FusionLayer:
    options = {
        "dim": WIDTH,
        "num_heads": node.NUM_HEADS,
        "head_dim": node.HEAD_DIM,
        "dropout": node.DROPOUT,
    }
    if node.NAME == DeepFusion.__name__:
        return DeepFusion(depth=node.DEPTH, **options)
    return build_fusion(node.NAME, **options)


def _build_mask_encoder(node: CfgNode) -> SamMaskEncoder | PatchMaskEncoder | None:
    if node.NAME not in MASK_ENCODERS:
        known = ", ".join(repr(name) for name in MASK_ENCODERS)
        raise ConfigError(f"MODEL.SAM.MASK_ENCODER.NAME is {node.NAME!r}: choose one of {known}")
    if node.NAME == "patches":
        return PatchMaskEncoder(dim=WIDTH)
    return SamMaskEncoder(dim=WIDTH, width=node.WIDTH) if node.NAME else None


def _build_text_encoder(node: CfgNode) -> TextEncoder | None:
    if not node.TEXT_ENCODER.NAME:
        return None
    text = build_text_encoder(
        node.TEXT_ENCODER.NAME, hidden_dim=WIDTH, dropout=node.TEXT_ENCODER.DROPOUT
    )
    text.bert.requires_grad_(not node.TEXT_ENCODER.FREEZE)
    return text


def load_parts(model: SamUniFusion, cfg: CfgNode, given: Collection[str]) -> tuple[str, ...]:
    """Loads the SAM and text weights that the config names and a checkpoint does not hold.

    Args:
        given: our keys of the checkpoint that is loaded next.

    Returns:
        Prefixes of our keys that need not be in the checkpoint.

    Raises:
        CheckpointError: the named weights are not there or do not fit.
    """
    node = cfg.MODEL.SAM
    loaded = []
    if node.WEIGHTS and not _holds(given, f"{_SAM}vision_encoder."):
        table = _KEYS.get(node.NAME.partition("_")[0], VIT_KEYS)
        weights = read_weights(_file(node.WEIGHTS))
        load_weights(model.sam, weights, table=table, source=node.WEIGHTS)
        loaded.append(_SAM)
        if model.decoder is not None:  # what a checkpoint has of it, comes after
            own: Any = model.sam  # a module, whatever else it is asked for
            model.decoder.load_state_dict(own.mask_decoder.state_dict())
            loaded.append("decoder.")
    if model.context is not None and not _holds(given, _BACKBONE):
        load_pretrained(model.context.backbone, _file(node.CONTEXT.WEIGHTS))
        loaded.append(_BACKBONE)
    text = model.text_encoder
    if text is not None and node.TEXT_ENCODER.WEIGHTS and not _holds(given, _TEXT_MODEL):
        source = build_text_encoder(
            node.TEXT_ENCODER.NAME, hidden_dim=WIDTH, weights=_file(node.TEXT_ENCODER.WEIGHTS)
        )
        text.bert, text.tokenizer = source.bert, source.tokenizer
        text.bert.requires_grad_(not node.TEXT_ENCODER.FREEZE)
        loaded.append(_TEXT_MODEL)
    return tuple(loaded)


def _holds(keys: Collection[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in keys)


def _file(name: str) -> Path:
    return resolve(name) if name in WEIGHTS else Path(name)
