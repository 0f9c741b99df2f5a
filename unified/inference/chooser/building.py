"""A chooser for a loaded model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified.checkpoint import read_weights
from unified.errors import ConfigError
from unified.inference.chooser.choosing import Chooser, made_for, networks_of
from unified.inference.chooser.guided import Guided
from unified.modeling.backbones import Backbone, build_backbone, load_pretrained
from unified.modeling.text_encoder import TextEncoder
from unified.weights import resolve

logger = logging.getLogger(__name__)

BACKBONE = "efficientnet_lite0"
MEAN, STD = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)


def build_chooser(model: Any, file: Path, sha256: str | None) -> Chooser | None:
    """The chooser of a weights file, on the device of ``model``; None if it is of other weights, or
    the model has none.

    Args:
        model: in eval mode; a segmenter with a language model as ``text_encoder``.
        sha256: of the weights file of ``model``.

    Raises:
        ConfigError: the model has no language model, or one of another width.
        CheckpointError: the file holds no chooser, or weights of the backbone are missing.
    """
    if sha256 is None:  # untrained
        return None
    weights = read_weights(file)
    if not made_for(weights, sha256):
        logger.warning(
            "%s was trained for other weights: sentences are answered without a chooser. Train one "
            "with tools/train_chooser.py, or set INFERENCE.CHOOSER ''",
            file.name,
        )
        return None
    networks, rules = networks_of(weights)
    device = next(iter(model.parameters())).device
    text, backbone, mean, std = parts_of(model)
    config: Any = text.bert.config
    width = networks[0].read.in_features
    if config.hidden_size != width:
        raise ConfigError(
            f"{file.name} reads words of width {width}, those of the model have "
            f"{config.hidden_size}: set INFERENCE.CHOOSER '' or train another"
        )
    return Chooser(
        networks=[network.to(device) for network in networks],
        rules=rules,
        model=model,
        text=text,
        backbone=backbone,
        mean=mean,
        std=std,
    )


def build_guided(model: Any, guide: Any) -> Guided | None:
    """What a sentence means as the chooser of ``guide`` says, outlined by ``model``; None if it has
    no chooser.

    Args:
        model, guide: in eval mode.

    Raises:
        ConfigError: ``model`` follows no boxes.
    """
    if "box" not in model.reference_kinds:
        raise ConfigError(
            f"INFERENCE.CHOOSER is the model {guide.info.name}, which shows boxes, and this one "
            "follows none: name weights of a chooser, or set it to ''"
        )
    if getattr(guide, "chooser", None) is None:
        return None
    _share_language_model(model, guide)
    return Guided(guide, model)


def _share_language_model(model: Any, guide: Any) -> None:
    """The guide reads with the language model of ``model`` where it has the same: 90 MB less."""
    own, other = (getattr(one, "text_encoder", None) for one in (model, guide))
    if isinstance(own, TextEncoder) and isinstance(other, TextEncoder):
        weights, others = own.bert.state_dict(), other.bert.state_dict()
        if weights.keys() == others.keys() and all(
            weights[key].shape == value.shape and torch.equal(weights[key].cpu(), value.cpu())
            for key, value in others.items()
        ):
            other.bert = own.bert


def parts_of(model: Any) -> tuple[TextEncoder, Backbone, Tensor, Tensor]:
    """Language model, frozen backbone and its pixel mean and deviation.

    The backbone is the model's own, if it keeps one that was never fine-tuned.

    Raises:
        ConfigError: the model has no language model.
        CheckpointError: weights of the backbone are missing.
    """
    text = getattr(model, "text_encoder", None)
    if not isinstance(text, TextEncoder):
        raise ConfigError("a chooser needs a model with a text encoder: set INFERENCE.CHOOSER ''")
    some = next(iter(model.parameters()))
    backbone = getattr(model, "frozen_backbone", None)
    if backbone is None:
        backbone = build_backbone(BACKBONE, freeze_at=5)
        load_pretrained(backbone, resolve(BACKBONE))
        backbone.to(some.device).eval()
    return text, backbone, some.new_tensor(MEAN).float(), some.new_tensor(STD).float()
