"""Key names of the official UniRef++ checkpoints and ours."""

from __future__ import annotations

from collections.abc import Iterable

from unified.checkpoint import KeyTable
from unified.modeling.backbones import KEY_TABLES

_BACKBONE = "detr.detr.backbone.0.backbone."
# A backbone registered with Detectron2 keeps its own keys below "net.".
_DETECTRON2 = KeyTable(rules=(("*", "net.*"),))
_CONVS = ("lateral", "output", "mask")
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

_RULES = (
    ("detr.detr.input_proj.*", "neck.input_proj.*"),
    ("detr.detr.transformer.*", "head.transformer.*"),
    ("detr.detr.*", "head.*"),
    *((f"detr.fusion_module.{theirs}.*", f"fusion.{ours}.*") for theirs, ours in _FUSION.items()),
    *(
        (f"detr.mask_head.{theirs}.*", f"mask_head.pixel_decoder.{ours}.*")
        for theirs, ours in _PIXEL_DECODER.items()
    ),
    ("detr.controller.*", "mask_head.controller.*"),
    *((f"detr.{conv}_conv.*", f"mask_head.{conv}_conv.*") for conv in _CONVS),
    ("resizer.*", "text_encoder.project.*"),
    ("text_encoder.*", "text_encoder.bert.*"),
    ("value_encoder.*.attention.ChannelGate.mlp.*", "mask_encoder.*.attention.channel.*"),
    ("value_encoder.*.attention.SpatialGate.spatial.conv.*", "mask_encoder.*.attention.spatial.*"),
    ("value_encoder.*", "mask_encoder.*"),
)


def uniref_keys(backbone: str) -> KeyTable:
    """The table for models with the named backbone, ours or one registered with Detectron2."""
    inner = KEY_TABLES.get(backbone, _DETECTRON2)
    return KeyTable(
        rules=[
            *((_BACKBONE + theirs, "backbone." + ours) for theirs, ours in inner.rules),
            *_RULES,
        ],
        aliases=[
            (f"detr.detr.transformer.decoder.{name}.*", f"detr.detr.{name}.*")
            for name in ("bbox_embed", "class_embed")
        ],
        unused=[
            *(_BACKBONE + pattern for pattern in inner.unused),
            "criterion.*",
            "text_encoder.embeddings.position_ids",
            "text_encoder.embeddings.token_type_ids",
        ],
    )


def find_uniref_keys(weights: Iterable[str]) -> KeyTable | None:
    """The table for a file, chosen by its backbone's keys in either layout.

    None if the file holds no backbone of a known family.
    """
    keys = list(weights)
    official = [key.removeprefix(_BACKBONE) for key in keys if key.startswith(_BACKBONE)]
    native = [key.removeprefix("backbone.") for key in keys if key.startswith("backbone.")]
    for name, table in KEY_TABLES.items():
        if official and all(table.knows_foreign(key) for key in official):
            return uniref_keys(name)
        if native and all(table.knows_native(key) for key in native):
            return uniref_keys(name)
    if native and all(map(_DETECTRON2.knows_native, native)):
        return uniref_keys("")
    return None
