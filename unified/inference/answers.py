"""What a model says about objects of a frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unified.inference.frames import EncodedFrame, FrameEncoder
from unified.masks import mask_probabilities
from unified.structures import References, Size
from unified.tasks import TASKS, Task

Answer = tuple[Tensor, Tensor]
"""Score () of an object and its probability (H, W), which is zero where the score is too low."""


def ask_about(
    encoder: FrameEncoder,
    frame: EncodedFrame,
    references: Sequence[References],
    size: Size,
    task: Task,
    threshold: float,
) -> list[Answer]:
    """One answer for each of O objects.

    Args:
        references: one per kind, of batch O.
        size: (H, W) of the probabilities.
        threshold: an object with a lower score is not there.
    """
    num = len(references[0][0].keys)
    with torch.inference_mode(), encoder.autocast():
        result = encoder.model.segment(
            frame.features.expand(num), references, mask_stride=TASKS[task].mask_stride
        )
        logits = result.mask_logits[:, 0].float()
        probabilities = mask_probabilities(
            logits,
            stride=frame.images.padded_size[0] // logits.shape[-2],
            image_size=frame.images.image_sizes[0],
            original_size=size,
        )
        present = result.scores[:, 0].double() >= threshold  # in float64, as Python compares
        probabilities.mul_(present[:, None, None])
    return list(zip(result.scores[:, 0], probabilities, strict=True))
