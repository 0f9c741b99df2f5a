"""Key names of NVIDIA's GroupViT weights, in their own layout and in transformers', and ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unified.checkpoint import Conversion, KeyTable, Weights

_TEXT_LAYER = "text_encoder.transformer.resblocks.*."
_PROJECTOR = {"linear_hidden.0": "0", "linear_hidden.1": "1", "linear_out": "3"}
_SIDES = {"img_projector": "image_projector", "text_projector": "text_projector"}

OFFICIAL_KEYS = KeyTable(
    rules=[
        ("img_encoder.*", "image_encoder.*"),
        (f"{_TEXT_LAYER}attn.in_proj_*", "text_encoder.layers.*.attn.qkv.*"),
        (f"{_TEXT_LAYER}attn.out_proj.*", "text_encoder.layers.*.attn.proj.*"),
        (f"{_TEXT_LAYER}*", "text_encoder.layers.*.*"),
        ("text_encoder.*", "text_encoder.*"),
        *(
            (f"{side}.{theirs}.*", f"{ours_side}.{ours}.*")
            for side, ours_side in _SIDES.items()
            for theirs, ours in _PROJECTOR.items()
        ),
        ("logit_scale", "logit_scale"),
        ("multi_label_logit_scale", "multi_label_logit_scale"),
    ],
    convolutions=[
        f"{side}.{layer}.weight" for side in _SIDES for layer in ("linear_hidden.0", "linear_out")
    ],
)

_STAGE = "vision_model.encoder.stages.*."
_OUR_STAGE = "image_encoder.layers.*."
_TEXT = "text_model.encoder.layers.*."


@dataclass(frozen=True)
class FusedKeyTable(KeyTable):
    """A table of a layout that keeps queries, keys and values of self-attention apart.

    Ours is one layer ``qkv``; the patterns of the rules name it as if the foreign layout had one.
    """

    def to_native(self, weights: Mapping[str, Tensor]) -> tuple[Weights, Conversion]:
        """As ``KeyTable``, the three parts as one."""
        joined: Weights = {}
        for key, tensor in weights.items():
            fused = key.replace(".self_attn.q_proj.", ".self_attn.qkv.")
            if fused != key:
                parts = [weights[key.replace("q_proj", part)] for part in _PARTS]
                tensor = torch.cat(parts)
            elif any(f".self_attn.{part}." in key for part in _PARTS[1:]):
                continue
            joined[fused] = tensor
        return super().to_native(joined)

    def to_foreign(self, weights: Mapping[str, Tensor]) -> Weights:
        """As ``KeyTable``, the one layer as three parts."""
        foreign: Weights = {}
        for key, tensor in super().to_foreign(weights).items():
            if ".self_attn.qkv." in key:
                for part, piece in zip(_PARTS, tensor.chunk(3), strict=True):
                    foreign[key.replace("qkv", part)] = piece
            else:
                foreign[key] = tensor
        return foreign


_PARTS = ("q_proj", "k_proj", "v_proj")
_TRANSFORMERS_ATTENTION = {"self_attn.qkv": "attn.qkv", "self_attn.out_proj": "attn.proj"}
_VISION_LAYER = {**_TRANSFORMERS_ATTENTION, "layer_norm1": "norm1", "layer_norm2": "norm2"}
_TEXT_NAMES = {
    **_TRANSFORMERS_ATTENTION,
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}

TRANSFORMERS_KEYS = FusedKeyTable(
    rules=[
        ("vision_model.embeddings.position_embeddings", "image_encoder.pos_embed"),
        (
            "vision_model.embeddings.patch_embeddings.projection.*",
            "image_encoder.patch_embed.proj.*",
        ),
        ("vision_model.embeddings.layernorm.*", "image_encoder.patch_embed.norm.*"),
        ("vision_model.layernorm.*", "image_encoder.norm.*"),
        *(
            (f"{_STAGE}layers.*.{theirs}.*", f"{_OUR_STAGE}blocks.*.{ours}.*")
            for theirs, ours in _VISION_LAYER.items()
        ),
        (f"{_STAGE}layers.*", f"{_OUR_STAGE}blocks.*"),
        (
            f"{_STAGE}downsample.pre_assign_attn.attn.out_proj.*",
            f"{_OUR_STAGE}downsample.pre_assign_attn.attn.proj.*",
        ),
        (f"{_STAGE}*", f"{_OUR_STAGE}*"),
        *(
            (f"{_TEXT}{theirs}.*", f"text_encoder.layers.*.{ours}.*")
            for theirs, ours in _TEXT_NAMES.items()
        ),
        ("text_model.embeddings.token_embedding.*", "text_encoder.token_embedding.*"),
        ("text_model.embeddings.position_embedding.weight", "text_encoder.positional_embedding"),
        ("text_model.final_layer_norm.*", "text_encoder.ln_final.*"),
        ("visual_projection.*", "image_projector.*"),
        ("text_projection.*", "text_projector.*"),
        ("logit_scale", "logit_scale"),
    ],
    unused=["*.position_ids"],
    ours=["multi_label_logit_scale"],
)


def find_official_keys(keys: Iterable[str]) -> KeyTable | None:
    """The official table if a file has its layout or ours."""
    known = list(keys)
    ours = any(key.startswith("image_encoder.") for key in known)
    return OFFICIAL_KEYS if ours or any(key.startswith("img_encoder.") for key in known) else None


def find_transformers_keys(keys: Iterable[str]) -> KeyTable | None:
    """transformers' table if a file has its layout or ours."""
    known = list(keys)
    ours = any(key.startswith("image_encoder.") for key in known)
    theirs = any(key.startswith("vision_model.") for key in known)
    return TRANSFORMERS_KEYS if ours or theirs else None
