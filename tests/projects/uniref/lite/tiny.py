"""A tiny UniRef with names."""

from __future__ import annotations

from projects.uniref.lite.model import NamedUniRef
from projects.uniref.lite.name_head import NameHead
from tests.projects.uniref.tiny import make_uniref
from tests.toy.parts import TinyBackbone

NUM_CANDIDATES = 8


def make_named(num_names: int) -> NamedUniRef:
    """The parts of ``make_uniref`` with a name head that has no names yet, in eval mode."""
    model = make_uniref()
    return NamedUniRef(
        backbone=model.backbone,
        neck=model.neck,
        head=model.head,
        mask_head=model.mask_head,
        fusion=model.fusion,
        text_encoder=model.text_encoder,
        mask_encoder=model.mask_encoder,
        name_head=NameHead(
            TinyBackbone(),
            text_dim=16,
            num_names=num_names,
            hidden_dim=256,
            weight=0.4,
            neutral=-3.0,
            known=(0.3, 0.6),
        ),
        num_candidates=NUM_CANDIDATES,
    ).eval()
