"""The keys ``MODEL.UNIREF.LITE``, and the parts that they add to UniRef."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from projects.uniref.lite.model import NamedUniRef
from projects.uniref.lite.name_head import NameHead
from projects.uniref.lite.pixel_loss import PixelLoss
from projects.uniref.lite.word_loss import WordLoss, with_class_names
from projects.uniref.model import UniRef
from unified.errors import ConfigError
from unified.modeling.backbones import BACKBONES, build_backbone, load_pretrained
from unified.structures import Target

NAMES = "name_head."


def defaults() -> CfgNode:
    """The keys with values that add nothing."""
    node = CfgNode()
    node.AUXILIARY_LOSSES = ()  # of "pixel" and "word"
    # Which pixels are referred to, asked of the features.
    node.PIXEL = CfgNode()
    node.PIXEL.NUM_LEVELS = 3  # strides 8, 16 and 32
    node.PIXEL.CROSS_ENTROPY, node.PIXEL.DICE = 5.0, 2.0  # weights
    # In detection: which of the names in the batch is where.
    node.WORD = CfgNode()
    node.WORD.NUM_LEVELS = 3
    node.WORD.WEIGHT = 4.0
    node.WORD.BACKGROUND = 0.3  # weight of a cell without a named object
    # Names that a frozen copy of the backbone tells apart, to choose among masks. The values were
    # chosen on the lite model's validation sets, see docs/runs.md.
    node.NAMES = CfgNode()
    node.NAMES.NUM = 0  # 0 for a model without
    node.NAMES.CANDIDATES = 8  # masks of an image that are compared
    node.NAMES.HIDDEN_DIM = 256
    node.NAMES.WEIGHT = 0.4
    node.NAMES.NEUTRAL = -3.0  # log-probability that changes no logit
    # Cosine to the nearest name at which a sentence starts to count, and counts fully.
    node.NAMES.KNOWN = (0.3, 0.6)
    return node


def build(node: CfgNode, parts: Mapping[str, Any]) -> UniRef:
    """UniRef of ``parts`` with what ``node.LITE`` adds.

    Args:
        node: ``MODEL.UNIREF``.
        parts: keyword arguments of ``UniRef``.

    Raises:
        ConfigError: a value is not among the known ones, or a part is missing.
    """
    losses = _auxiliary_losses(node)
    if node.LITE.NAMES.NUM == 0:
        return UniRef(**parts, auxiliary_losses=losses)
    return NamedUniRef(
        **parts,
        auxiliary_losses=losses,
        name_head=_name_head(node, parts),
        num_candidates=node.LITE.NAMES.CANDIDATES,
    )


def complete_target(node: CfgNode) -> Callable[[Target, Mapping[str, Any]], Target] | None:
    """Adds to a ``Target`` what else of its sample the losses use; None if they use nothing."""
    return with_class_names if "word" in node.LITE.AUXILIARY_LOSSES else None


def load_parts(model: UniRef, pretrained: Path | None, given: Collection[str]) -> tuple[str, ...]:
    """Gives names their pretrained backbone where a checkpoint has no names.

    Args:
        pretrained: weights of the backbone, if there are any.
        given: our keys of the checkpoint that is loaded next.

    Returns:
        Prefixes of our keys that need not be in the checkpoint: names that are not trained change
        nothing.
    """
    if not isinstance(model, NamedUniRef) or any(key.startswith(NAMES) for key in given):
        return ()
    if pretrained is not None:
        load_pretrained(model.name_head.backbone, pretrained)
    return (NAMES,)


def _auxiliary_losses(node: CfgNode) -> dict[str, nn.Module]:
    pixel, word = node.LITE.PIXEL, node.LITE.WORD
    known: dict[str, Callable[[], nn.Module]] = {
        "pixel": lambda: PixelLoss(
            dim=node.HIDDEN_DIM,
            num_levels=pixel.NUM_LEVELS,
            cross_entropy=pixel.CROSS_ENTROPY,
            dice=pixel.DICE,
        ),
        "word": lambda: WordLoss(
            dim=node.HIDDEN_DIM,
            num_levels=word.NUM_LEVELS,
            weight=word.WEIGHT,
            background=word.BACKGROUND,
        ),
    }
    wanted = node.LITE.AUXILIARY_LOSSES
    if set(wanted) - set(known):
        raise ConfigError(
            f"MODEL.UNIREF.LITE.AUXILIARY_LOSSES is {list(wanted)}: choose among {list(known)}"
        )
    if "word" in wanted and not node.TEXT_ENCODER.NAME:
        raise ConfigError("the auxiliary loss 'word' needs a MODEL.UNIREF.TEXT_ENCODER.NAME")
    return {name: known[name]() for name in wanted}


def _name_head(node: CfgNode, parts: Mapping[str, Any]) -> NameHead:
    names = node.LITE.NAMES
    if names.NUM < 0 or names.CANDIDATES < 1:
        raise ConfigError(
            f"MODEL.UNIREF.LITE.NAMES has NUM {names.NUM} and CANDIDATES {names.CANDIDATES}: "
            "expected 0 or more, and 1 or more"
        )
    start, full = names.KNOWN
    if not start < full:
        raise ConfigError(
            f"MODEL.UNIREF.LITE.NAMES.KNOWN is {names.KNOWN}: expected two rising numbers"
        )
    text = parts["text_encoder"]
    if text is None or node.BACKBONE not in BACKBONES:
        raise ConfigError(
            "MODEL.UNIREF.LITE.NAMES.NUM needs a TEXT_ENCODER.NAME and a BACKBONE among "
            f"{sorted(BACKBONES)}"
        )
    return NameHead(
        build_backbone(node.BACKBONE, freeze_at=5),
        text_dim=text.bert.config.hidden_size,
        num_names=names.NUM,
        hidden_dim=names.HIDDEN_DIM,
        weight=names.WEIGHT,
        neutral=names.NEUTRAL,
        known=(start, full),
    )
