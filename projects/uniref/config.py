"""The configuration of UniRef: its keys with their defaults, and the model built from them."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY

from projects.uniref.model import UniRef
from unified.engine.backbone import Detectron2Backbone, build_detectron2_backbone
from unified.errors import ConfigError
from unified.modeling.attention import BACKENDS
from unified.modeling.backbones import BACKBONES, Backbone, build_backbone, load_pretrained
from unified.modeling.criterion import Criterion
from unified.modeling.detr_head import DetrHead
from unified.modeling.fusion import FusionLayer, build_fusion
from unified.modeling.layers import recompute
from unified.modeling.mask_encoder import MaskEncoder
from unified.modeling.mask_head import MaskHead
from unified.modeling.neck import NECKS
from unified.modeling.text_encoder import TextEncoder, build_text_encoder
from unified.modeling.transformer import DeformableTransformer
from unified.weights import WEIGHTS, resolve

ATTENTION_DTYPES = {"input": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.UNIREF``; the defaults are those of the reference's R50 video model."""
    node = CfgNode()
    node.BACKBONE = "resnet50"  # one of ours, or a name of Detectron2's BACKBONE_REGISTRY
    node.BACKBONE_WEIGHTS = ""  # name in the weights registry or a file
    node.BACKBONE_LR_MULTIPLIER = 0.1
    node.FREEZE_AT = 2
    node.DROP_PATH = 0.0
    # RGB on the 0..255 scale, as the backbone was trained.
    node.PIXEL_MEAN = [123.675, 116.28, 103.53]
    node.PIXEL_STD = [58.395, 57.12, 57.375]
    node.NECK = "plain"  # or "top_down"
    node.HIDDEN_DIM = 256
    node.NUM_CLASSES = 1
    node.NUM_QUERIES = 300
    node.NUM_HEADS = 8
    node.ENCODER_LAYERS = 6
    node.DECODER_LAYERS = 6
    node.FEEDFORWARD_DIM = 2048
    node.NUM_POINTS = 4
    node.DROPOUT = 0.0
    node.NMS_THRESHOLD = 0.7

    node.FUSION = CfgNode()
    node.FUSION.NAME = "UniFusion"  # "" builds a detector
    node.FUSION.NUM_HEADS = 8
    node.FUSION.HEAD_DIM = 256
    node.FUSION.DROPOUT = 0.1
    node.FUSION.BACKEND = "sdpa"
    node.FUSION.ATTENTION_DTYPE = "input"

    node.TEXT_ENCODER = CfgNode()
    node.TEXT_ENCODER.NAME = "bert-base"  # "" builds a model without sentences
    node.TEXT_ENCODER.WEIGHTS = ""  # name in the weights registry or a folder
    node.TEXT_ENCODER.LR = 1e-5  # of the language model
    node.TEXT_ENCODER.CONTEXT_LENGTH = 77
    node.TEXT_ENCODER.DROPOUT = 0.1
    node.TEXT_ENCODER.FREEZE = False  # the language model, not the projection of its words

    node.MASK_ENCODER = CfgNode()
    node.MASK_ENCODER.ENABLED = True
    node.MASK_ENCODER.WIDTH = 64
    node.MASK_AUX_LOSS = False
    node.BOX_SUPERVISED = False  # learn masks from boxes
    node.GRADIENT_CHECKPOINTING = False  # recompute activations in the backward pass
    lite = find_lite()
    node.LITE = CfgNode(new_allowed=True) if lite is None else lite.defaults()
    cfg.MODEL.UNIREF = node


def build(cfg: CfgNode) -> UniRef:
    """The model that ``cfg.MODEL.UNIREF`` describes, in train mode, with initial weights.

    Raises:
        ConfigError: a value is not among the known ones.
    """
    node = cfg.MODEL.UNIREF
    if node.HIDDEN_DIM % 32 or node.HIDDEN_DIM % node.NUM_HEADS:
        raise ConfigError(
            f"MODEL.UNIREF.HIDDEN_DIM is {node.HIDDEN_DIM}: expected a multiple of 32 and of "
            f"NUM_HEADS, which is {node.NUM_HEADS}"
        )
    if node.NECK not in NECKS:
        raise ConfigError(f"MODEL.UNIREF.NECK is {node.NECK!r}: choose one of {sorted(NECKS)}")
    backbone, text_encoder = _build_backbone(cfg), _build_text_encoder(node)
    transformer = DeformableTransformer(
        dim=node.HIDDEN_DIM,
        num_heads=node.NUM_HEADS,
        encoder_layers=node.ENCODER_LAYERS,
        decoder_layers=node.DECODER_LAYERS,
        feedforward_dim=node.FEEDFORWARD_DIM,
        num_points=node.NUM_POINTS,
        dropout=node.DROPOUT,
    )
    if node.GRADIENT_CHECKPOINTING:
        recompute(*transformer.encoder.layers, *transformer.decoder.layers)
    parts: dict[str, Any] = {
        "backbone": backbone,
        "neck": NECKS[node.NECK](in_dims=backbone.channels, dim=node.HIDDEN_DIM),
        "head": DetrHead(transformer, num_queries=node.NUM_QUERIES, num_classes=node.NUM_CLASSES),
        "mask_head": MaskHead(dim=node.HIDDEN_DIM, high_res_dim=backbone.channels["res2"]),
        "fusion": _build_fusion(node),
        "text_encoder": text_encoder,
        "mask_encoder": (
            MaskEncoder(dim=node.HIDDEN_DIM, width=node.MASK_ENCODER.WIDTH)
            if node.MASK_ENCODER.ENABLED
            else None
        ),
        "pixel_mean": node.PIXEL_MEAN,
        "pixel_std": node.PIXEL_STD,
        "nms_threshold": node.NMS_THRESHOLD,
        "criterion": Criterion(mask_aux=node.MASK_AUX_LOSS),
    }
    lite = find_lite()
    if lite is not None:
        return lite.build(node, parts)
    if node.LITE:
        raise ConfigError(
            "this config sets MODEL.UNIREF.LITE, but projects/uniref/lite is not there: bring the "
            "folder back, or take a config without these keys"
        )
    return UniRef(**parts)


def load_parts(model: UniRef, cfg: CfgNode, given: Collection[str]) -> tuple[str, ...]:
    """Loads the backbone and text weights that the config names and a checkpoint does not hold.

    Args:
        given: our keys of the checkpoint that is loaded next.

    Returns:
        Prefixes of our keys that need not be in the checkpoint.

    Raises:
        CheckpointError: the named weights are not there or do not fit.
    """
    node = cfg.MODEL.UNIREF
    loaded = []
    if node.BACKBONE_WEIGHTS and not _holds(given, "backbone."):
        if isinstance(model.backbone, Detectron2Backbone):
            model.backbone.load(_file(node.BACKBONE_WEIGHTS))
        else:
            load_pretrained(model.backbone, _file(node.BACKBONE_WEIGHTS))
        loaded.append("backbone.")
    lite = find_lite()
    if lite is not None:
        pretrained = _file(node.BACKBONE_WEIGHTS) if node.BACKBONE_WEIGHTS else None
        loaded.extend(lite.load_parts(model, pretrained, given))
    text = model.text_encoder
    if text is not None and node.TEXT_ENCODER.WEIGHTS and not _holds(given, _TEXT_MODEL):
        source = build_text_encoder(
            node.TEXT_ENCODER.NAME,
            hidden_dim=node.HIDDEN_DIM,
            weights=_file(node.TEXT_ENCODER.WEIGHTS),
        )
        text.bert, text.tokenizer = source.bert, source.tokenizer
        _prepare_text(text, node)
        loaded.append(_TEXT_MODEL)
    elif text is not None and node.TEXT_ENCODER.WEIGHTS and text.tokenizer is None:
        # The checkpoint holds the weights, but no file of weights holds a vocabulary.
        with torch.device("meta"):
            source = build_text_encoder(
                node.TEXT_ENCODER.NAME,
                hidden_dim=node.HIDDEN_DIM,
                tokenizer=_file(node.TEXT_ENCODER.WEIGHTS),
            )
        text.tokenizer = source.tokenizer
    return tuple(loaded)


_TEXT_MODEL = "text_encoder.bert."
_LITE = "projects.uniref.lite"


def find_lite() -> ModuleType | None:
    """What the lite model adds; None where its folder was deleted."""
    try:
        return importlib.import_module(f"{_LITE}.config")
    except ModuleNotFoundError as error:
        if error.name not in (_LITE, f"{_LITE}.config"):
            raise
        return None


def _holds(keys: Collection[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in keys)


def _file(name: str) -> Path:
    return resolve(name) if name in WEIGHTS else Path(name)


def _build_backbone(cfg: CfgNode) -> Backbone | Detectron2Backbone:
    """One of ours, or by its registered name one of Detectron2's, which has config keys of its own.

    Raises:
        ConfigError: the name is neither.
    """
    node = cfg.MODEL.UNIREF
    if node.BACKBONE not in BACKBONES and node.BACKBONE in BACKBONE_REGISTRY:
        return build_detectron2_backbone(node.BACKBONE, cfg)
    return build_backbone(
        node.BACKBONE,
        freeze_at=node.FREEZE_AT,
        drop_path=node.DROP_PATH,
        checkpoint=node.GRADIENT_CHECKPOINTING,
    )


def _build_fusion(node: CfgNode) -> FusionLayer | None:
    if not node.FUSION.NAME:
        return None
    if node.FUSION.BACKEND not in BACKENDS:
        raise ConfigError(f"FUSION.BACKEND is {node.FUSION.BACKEND!r}: choose one of {BACKENDS}")
    if node.FUSION.ATTENTION_DTYPE not in ATTENTION_DTYPES:
        raise ConfigError(
            f"FUSION.ATTENTION_DTYPE is {node.FUSION.ATTENTION_DTYPE!r}: choose one of "
            f"{tuple(ATTENTION_DTYPES)}"
        )
    return build_fusion(
        node.FUSION.NAME,
        dim=node.HIDDEN_DIM,
        num_heads=node.FUSION.NUM_HEADS,
        head_dim=node.FUSION.HEAD_DIM,
        dropout=node.FUSION.DROPOUT,
        backend=node.FUSION.BACKEND,
        attention_dtype=ATTENTION_DTYPES[node.FUSION.ATTENTION_DTYPE],
    )


def _build_text_encoder(node: CfgNode) -> TextEncoder | None:
    if not node.TEXT_ENCODER.NAME:
        return None
    text = build_text_encoder(
        node.TEXT_ENCODER.NAME,
        hidden_dim=node.HIDDEN_DIM,
        context_length=node.TEXT_ENCODER.CONTEXT_LENGTH,
        dropout=node.TEXT_ENCODER.DROPOUT,
    )
    _prepare_text(text, node)
    return text


def _prepare_text(text: TextEncoder, node: CfgNode) -> None:
    """Freezes the language model, whose dropout stays active in training, or saves its memory."""
    if node.TEXT_ENCODER.FREEZE:
        text.bert.requires_grad_(False)
    elif node.GRADIENT_CHECKPOINTING:
        recompute(*text.bert.encoder.layer)
