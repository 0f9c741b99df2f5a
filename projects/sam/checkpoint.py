"""Keys of released files and ours: segment-anything, MobileSAM, UniRef's SAM."""

from __future__ import annotations

from collections.abc import Iterable

from unified.checkpoint import KeyTable

Rules = tuple[tuple[str, str], ...]

_VIT: Rules = (
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.patch_embed.proj.*", "vision_encoder.patch_embed.projection.*"),
    *(
        (f"image_encoder.blocks.*.norm{i}.*", f"vision_encoder.layers.*.layer_norm{i}.*")
        for i in (1, 2)
    ),
    ("image_encoder.blocks.*", "vision_encoder.layers.*"),
)
# MobileSAM counts the downsampling to the stage before it, timm to the one after.
_TINY_VIT: Rules = (
    *(
        (f"image_encoder.patch_embed.seq.{2 * i}.{theirs}.*", f"{ours}{i + 1}.{layer}.*")
        for ours in ("vision_encoder.patch_embed.conv",)
        for i in (0, 1)
        for theirs, layer in (("c", "conv"), ("bn", "bn"))
    ),
    *(
        (f"image_encoder.layers.{i}.downsample.*{theirs}", f"vision_encoder.stages.{j}.{ours}")
        for i, j in ((0, 1), (1, 2), (2, 3))
        for theirs, ours in ((".c.*", "downsample.*.conv.*"), ("", "downsample.*"))
    ),
    ("image_encoder.layers.*.c.*", "vision_encoder.stages.*.conv.*"),
    ("image_encoder.layers.*", "vision_encoder.stages.*"),
)
_NECK = {"0": "conv1", "1": "layer_norm1", "2": "conv2", "3": "layer_norm2"}
_MASK_PROMPT = {
    "0": "conv1",
    "1": "layer_norm1",
    "3": "conv2",
    "4": "layer_norm2",
    "6": "conv3",
}
_HYPERNETWORK = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
_UPSCALING = {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}
_SHARED: Rules = (
    *((f"image_encoder.neck.{a}.*", f"vision_encoder.neck.{b}.*") for a, b in _NECK.items()),
    (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.shared_embedding.positional_embedding",
    ),
    ("prompt_encoder.point_embeddings.*", "prompt_encoder.point_embed.*"),
    *(
        (f"prompt_encoder.mask_downscaling.{a}.*", f"prompt_encoder.mask_embed.{b}.*")
        for a, b in _MASK_PROMPT.items()
    ),
    ("prompt_encoder.*", "prompt_encoder.*"),
    *(
        (f"mask_decoder.transformer.layers.*.norm{i}.*", f"{layers}.*.layer_norm{i}.*")
        for layers in ("mask_decoder.transformer.layers",)
        for i in (1, 2, 3, 4)
    ),
    (
        "mask_decoder.transformer.norm_final_attn.*",
        "mask_decoder.transformer.layer_norm_final_attn.*",
    ),
    *(
        (f"mask_decoder.output_upscaling.{a}.*", f"mask_decoder.{b}.*")
        for a, b in _UPSCALING.items()
    ),
    *(
        (f"mask_decoder.{mlp}.layers.{a}.*", f"mask_decoder.{mlp}.{b}.*")
        for mlp in ("iou_prediction_head", *(f"output_hypernetworks_mlps.{i}" for i in range(4)))
        for a, b in _HYPERNETWORK.items()
    ),
    ("mask_decoder.*", "mask_decoder.*"),
)
_CLASSIFIER = ("image_encoder.norm_head.*", "image_encoder.head.*")
MOBILE_KEYS = KeyTable(rules=(*_TINY_VIT, *_SHARED), unused=_CLASSIFIER)
VIT_KEYS = KeyTable(rules=(*_VIT, *_SHARED))
# Meta releases SAM 2 and 2.1 in transformers' layout too, with a memory that is not used here.
SAM2_KEYS = KeyTable(
    rules=(
        ("no_memory_embedding", "model.no_memory_embedding"),
        *(
            (f"{part}.*", f"model.{part}.*")
            for part in (
                *("vision_encoder", "prompt_encoder", "mask_decoder"),
                "shared_image_embedding",
            )
        ),
    ),
    unused=(
        *("mask_downsample.*", "memory_*", "no_memory_positional_encoding", "no_object_pointer"),
        *("object_pointer_proj.*", "occlusion_*", "temporal_*"),
    ),
)

_FUSION = {
    "adaLN_modulation": "modulation",
    "attn": "attention",
    "norm_v": "norm_query",
    "norm_l": "norm_key",
}
_CBAM = "model.value_encoder.*.attention"


def _uniref_sam(sam: KeyTable) -> KeyTable:
    """UniRef's SAM around one of the above."""
    return KeyTable(
        rules=(
            *((f"model.sam.{theirs}", f"sam.{ours}") for theirs, ours in sam.rules),
            *((f"model.fusion_module.{a}.*", f"fusion.{b}.*") for a, b in _FUSION.items()),
            ("model.resizer.*", "text_encoder.project.*"),
            ("model.text_encoder.*", "text_encoder.bert.*"),
            (f"{_CBAM}.ChannelGate.mlp.*", "mask_encoder.*.attention.channel.*"),
            (f"{_CBAM}.SpatialGate.spatial.conv.*", "mask_encoder.*.attention.spatial.*"),
            ("model.value_encoder.*", "mask_encoder.*"),
        ),
        unused=(
            *(f"model.sam.{pattern}" for pattern in sam.unused),
            "criterion.*",
            *(f"model.text_encoder.embeddings.{name}_ids" for name in ("position", "token_type")),
        ),
    )


UNIREF_SAM_KEYS, UNIREF_MOBILE_KEYS = _uniref_sam(VIT_KEYS), _uniref_sam(MOBILE_KEYS)


def find_sam_keys(keys: Iterable[str]) -> KeyTable | None:
    """The table for a file of UniRef's SAM in either layout, by its image encoder."""
    known = list(keys)
    for prefixes, table in (
        (("model.sam.image_encoder.pos_embed", "sam.vision_encoder.pos_embed"), UNIREF_SAM_KEYS),
        (
            ("model.sam.image_encoder.patch_embed.seq.", "sam.vision_encoder.stages."),
            UNIREF_MOBILE_KEYS,
        ),
    ):
        if any(key.startswith(prefixes) for key in known):
            return table
    return None
