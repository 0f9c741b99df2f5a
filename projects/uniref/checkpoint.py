"""Key names of the official UniRef++ checkpoints and ours."""

from __future__ import annotations

from unified.checkpoint import KeyTable
from unified.modeling.backbones import KEY_RULES

_BACKBONE = "detr.detr.backbone.0.backbone."
_PREDICTORS = ("bbox_embed", "class_embed")
_PIXEL_DECODER = {
    "lay3": "coarse",
    "lay4": "middle",
    "jia_dcn": "fine",
    "lay1": "reduce",
    "lay2": "project",
}
_FUSION = {
    "adaLN_modulation": "modulation",
    "attn": "attention",
    "norm_v": "norm_query",
    "norm_l": "norm_key",
}

UNIREF_KEYS = KeyTable(
    rules=[
        *((_BACKBONE + theirs, "backbone." + ours) for theirs, ours in KEY_RULES),
        ("detr.detr.input_proj.*", "neck.input_proj.*"),
        ("detr.detr.transformer.*", "head.transformer.*"),
        ("detr.detr.*", "head.*"),
        *((f"detr.fusion_module.{a}.*", f"fusion.{b}.*") for a, b in _FUSION.items()),
        *((f"detr.mask_head.{a}.*", f"mask_head.pixel_decoder.{b}.*") for a, b in _PIXEL_DECODER.items()),
        ("detr.controller.*", "mask_head.controller.*"),
        *((f"detr.{name}_conv.*", f"mask_head.{name}_conv.*") for name in ("lateral", "output", "mask")),
        ("resizer.*", "text_encoder.project.*"),
        ("text_encoder.*", "text_encoder.bert.*"),
        ("value_encoder.*.attention.ChannelGate.mlp.*", "mask_encoder.*.attention.channel.*"),
        (
            "value_encoder.*.attention.SpatialGate.spatial.conv.*",
            "mask_encoder.*.attention.spatial.*",
        ),
        ("value_encoder.*", "mask_encoder.*"),
    ],
    aliases=[
        (f"detr.detr.transformer.decoder.{name}.*", f"detr.detr.{name}.*") for name in _PREDICTORS
    ],
    unused=[
        "criterion.*",
        "text_encoder.embeddings.position_ids",
        "text_encoder.embeddings.token_type_ids",
    ],
)
