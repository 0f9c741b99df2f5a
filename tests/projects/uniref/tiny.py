"""A whole UniRef of 0.6 M parameters, without disk or network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from projects.uniref.model import UniRef
from tests.toy.parts import DIM, TinyBackbone, make_text_encoder
from unified.modeling.detr_head import DetrHead
from unified.modeling.fusion import build_fusion
from unified.modeling.mask_encoder import MaskEncoder
from unified.modeling.mask_head import MaskHead
from unified.modeling.neck import Neck
from unified.modeling.transformer import DeformableTransformer

MakeUniRef = Callable[..., UniRef]


def make_uniref(
    *,
    seed: int = 0,
    kinds: tuple[str, ...] = ("text", "mask"),
    backbone: nn.Module | None = None,
    num_queries: int = 12,
    num_classes: int = 1,
    num_layers: int = 2,
) -> UniRef:
    """C = 64, two encoder and decoder layers by default, every weight random, in eval mode.

    The zero-initialised layers (box refinement, fusion gate, sampling offsets) get random weights
    too, so that nothing is an identity. With C = 32 each of GroupNorm's 32 groups would be one
    channel: no mean of a channel would differ between images.
    """
    torch.manual_seed(seed)
    transformer = DeformableTransformer(
        dim=DIM,
        num_heads=4,
        encoder_layers=num_layers,
        decoder_layers=num_layers,
        feedforward_dim=64,
        num_points=2,
    )
    backbone = TinyBackbone() if backbone is None else backbone
    model = UniRef(
        backbone=backbone,
        neck=Neck(in_dims=backbone.channels, dim=DIM),
        head=DetrHead(transformer, num_queries=num_queries, num_classes=num_classes),
        mask_head=MaskHead(dim=DIM, high_res_dim=backbone.channels["res2"]),
        fusion=build_fusion("UniFusion", dim=DIM, num_heads=4, head_dim=8) if kinds else None,
        text_encoder=make_text_encoder() if "text" in kinds else None,
        mask_encoder=MaskEncoder(dim=DIM, width=8) if "mask" in kinds else None,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.3 / parameter[0].numel() ** 0.5)
            elif name.startswith("head.class_embed") and name.endswith("bias"):
                parameter.normal_(std=0.5)  # scores in the middle of 0..1
        if model.fusion is not None:
            model.fusion.modulation[1].weight.normal_(std=0.3)  # references matter
        model.mask_head.controller.layers[-1].weight.mul_(0.3)  # masks are neither full nor empty
    return model.eval()
