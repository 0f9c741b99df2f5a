"""The SAMs that a configuration can name, with initial weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from projects.sam.adapters import Sam, Sam2
from projects.sam.tiny_vit import TinyVit
from unified.dependencies import require
from unified.errors import ConfigError

SAM = "transformers.models.sam.modeling_sam"


def _sam_model(vision: Mapping[str, Any], image_size: int) -> Any:
    sam = require(SAM)
    config = require("transformers.models.sam.configuration_sam")
    return sam.SamModel(
        config.SamConfig(
            vision_config={"image_size": image_size, **vision},
            prompt_encoder_config={
                "image_size": image_size,
                "image_embedding_size": image_size // 16,
            },
            mask_decoder_config={"layer_norm_eps": 1e-5},  # of the released code
        )
    )


def build_vit(
    *,
    width: int,
    depth: int,
    num_heads: int,
    global_layers: list[int],
    window_size: int = 14,
    image_size: int = 1024,
) -> Sam:
    """SAM on a plain ViT with initial weights; layers that are not global attend in windows."""
    vision = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads,
        "global_attn_indexes": global_layers,
        "window_size": window_size,
    }
    return Sam.of(_sam_model(vision, image_size))


def build_mobile(image_size: int = 1024) -> Sam:
    """MobileSAM with initial weights."""
    tiny: Any = require("timm.models.tiny_vit").tiny_vit_5m_224(num_classes=0)
    tiny.stages[-1].downsample.conv2.conv.stride = (1, 1)
    width = tiny.num_features
    model = _sam_model(
        {"hidden_size": width, "num_hidden_layers": 0, "num_attention_heads": 1}, image_size
    )
    vision = TinyVit(
        patch_embed=tiny.patch_embed, stages=tiny.stages, neck=model.vision_encoder.neck
    )
    return Sam(
        vision_encoder=vision,
        prompt_encoder=model.prompt_encoder,
        mask_decoder=model.mask_decoder,
    )


def build_sam2(
    *,
    width: int,
    depths: list[int],
    global_layers: list[int],
    num_heads: int = 1,
    windows: Sequence[int] = (8, 4, 14, 7),
    background: int = 7,
    image_size: int = 1024,
) -> Sam2:
    """SAM 2 or 2.1, which have the same weights, on a Hiera with initial ones.

    Args:
        width, num_heads: of the first stage; both double from stage to stage.
        depths, windows: blocks and side of the windows of each stage.
        background: side of the position code that windows repeat.
    """
    sam2 = require("transformers.models.sam2.modeling_sam2")
    config = require("transformers.models.sam2.configuration_sam2")
    widths = [width * 2**stage for stage in range(4)]
    trunk = config.Sam2HieraDetConfig(
        hidden_size=width,
        num_attention_heads=num_heads,
        image_size=[image_size, image_size],
        blocks_per_stage=depths,
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[num_heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(windows),
        global_attention_blocks=global_layers,
        window_positional_embedding_background_size=[background, background],
    )
    vision = config.Sam2VisionConfig(
        backbone_config=trunk.to_dict(),
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[image_size // s, image_size // s] for s in (4, 8, 16)],
    )
    model = sam2.Sam2Model(
        config.Sam2Config(
            vision_config=vision.to_dict(), prompt_encoder_config={"image_size": image_size}
        )
    )
    return Sam2(model)


_VITS: Mapping[str, Mapping[str, Any]] = {
    "vit_b": {"width": 768, "depth": 12, "num_heads": 12, "global_layers": [2, 5, 8, 11]},
    "vit_l": {"width": 1024, "depth": 24, "num_heads": 16, "global_layers": [5, 11, 17, 23]},
    "vit_h": {"width": 1280, "depth": 32, "num_heads": 16, "global_layers": [7, 15, 23, 31]},
}
# Source: the configurations of facebookresearch/sam2.
_HIERAS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"width": 96, "depths": [1, 2, 7, 2], "global_layers": [5, 7, 9]},
    "small": {"width": 96, "depths": [1, 2, 11, 2], "global_layers": [7, 10, 13]},
    "base_plus": {
        "width": 112,
        "depths": [2, 3, 16, 3],
        "global_layers": [12, 16, 20],
        "num_heads": 2,
        "background": 14,
    },
    "large": {
        "width": 144,
        "depths": [2, 6, 36, 4],
        "global_layers": [23, 33, 43],
        "num_heads": 2,
        "windows": [8, 4, 16, 8],
    },
}
ADAPTERS: Mapping[str, Callable[..., Sam | Sam2]] = {
    "mobile": build_mobile,
    **{f"sam2_{name}": partial(build_sam2, **sizes) for name, sizes in _HIERAS.items()},
    **{name: partial(build_vit, **sizes) for name, sizes in _VITS.items()},
}


def build_sam(name: str, image_size: int = 1024) -> Sam | Sam2:
    """The SAM of that name with initial weights.

    Raises:
        ConfigError: there is none, or the size is no multiple of 16.
    """
    if name not in ADAPTERS:
        raise ConfigError(f"MODEL.SAM.NAME is {name!r}: choose one of {', '.join(ADAPTERS)}")
    if image_size % 16 or image_size <= 0:
        raise ConfigError(f"MODEL.SAM.IMAGE_SIZE is {image_size}: expected a multiple of 16")
    return ADAPTERS[name](image_size=image_size)
