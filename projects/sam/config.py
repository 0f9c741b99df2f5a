"""The configuration of UniFusion in SAM: keys with their defaults, the model built from them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from detectron2.config import CfgNode

from projects.sam.adapters import build_sam
from projects.sam.cache import GIGABYTE, EmbeddingCache
from projects.sam.checkpoint import MOBILE_KEYS, VIT_KEYS
from projects.sam.losses import MaskLosses
from projects.sam.mask_encoder import SamMaskEncoder
from projects.sam.model import SamUniFusion
from unified.checkpoint import load_weights, read_weights
from unified.modeling.fusion import build_fusion
from unified.modeling.text_encoder import TextEncoder, build_text_encoder
from unified.weights import WEIGHTS, cache_dir, resolve

WIDTH = 256  # of the embedding of every SAM here
MOBILE = "mobile"
_SAM, _TEXT_MODEL = "sam.", "text_encoder.bert."


def add_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.SAM``; the defaults are the reference's model."""
    node = CfgNode()
    node.NAME = "vit_h"  # or vit_l, vit_b, mobile
    # Side of the square that is encoded; released ViTs have positions for 1024 pixels only.
    node.IMAGE_SIZE = 1024
    node.WEIGHTS = ""  # of the SAM alone: name in the weights registry or an official file
    node.CACHE_GIGABYTES = 0.0  # of embeddings kept on disk in training; 0 keeps none
    node.FUSION = CfgNode()
    node.FUSION.NAME = "UniFusion"
    node.FUSION.NUM_HEADS = 8
    node.FUSION.HEAD_DIM = 256
    node.FUSION.DROPOUT = 0.1
    node.TEXT_ENCODER = CfgNode()
    node.TEXT_ENCODER.NAME = "bert-base"  # "" builds a model without sentences
    node.TEXT_ENCODER.WEIGHTS = ""  # name in the weights registry or a folder
    node.TEXT_ENCODER.LR = 1e-5  # of the language model
    node.TEXT_ENCODER.DROPOUT = 0.1
    node.TEXT_ENCODER.FREEZE = False  # the language model, not the projection of its words
    node.MASK_ENCODER = CfgNode()
    node.MASK_ENCODER.ENABLED = True
    node.MASK_ENCODER.WIDTH = 64
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
    return SamUniFusion(
        sam,
        fusion=build_fusion(
            node.FUSION.NAME,
            dim=WIDTH,
            num_heads=node.FUSION.NUM_HEADS,
            head_dim=node.FUSION.HEAD_DIM,
            dropout=node.FUSION.DROPOUT,
        ),
        text_encoder=_build_text_encoder(node),
        mask_encoder=(
            SamMaskEncoder(dim=WIDTH, width=node.MASK_ENCODER.WIDTH)
            if node.MASK_ENCODER.ENABLED
            else None
        ),
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
        table = MOBILE_KEYS if node.NAME == MOBILE else VIT_KEYS
        weights = read_weights(_file(node.WEIGHTS))
        load_weights(model.sam, weights, table=table, source=node.WEIGHTS)
        loaded.append(_SAM)
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
