"""Pretrained weights for a backbone alone."""

from __future__ import annotations

from pathlib import Path

from unified.checkpoint import LoadReport, load_weights, read_weights
from unified.modeling.backbones.base import Backbone
from unified.modeling.backbones.key_tables import KEY_TABLES

# Buffers of classification files that depend on the training run or the image size.
NO_WEIGHTS = ("num_batches_tracked", "attn_mask")


def load_pretrained(backbone: Backbone, source: str | Path) -> LoadReport:
    """Fills ``backbone`` with ImageNet weights of its official layout or of ours.

    Classifier entries, counters and stored masks are left out; the norms of the outputs, which
    classification files lack, keep their initial values.

    Args:
        backbone: made by ``build_backbone``.
        source: a .pth, .safetensors or Detectron2 .pkl file.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or of another model.
    """
    weights = {
        key: tensor for key, tensor in read_weights(source).items() if not key.endswith(NO_WEIGHTS)
    }
    return load_weights(
        backbone,
        weights,
        table=KEY_TABLES[backbone.name],
        optional=("norms.",),
        source=str(source),
    )
