"""What sentences mean on a frame as another model says, which guides the one that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from unified.inference.answers import Answer
from unified.inference.frames import EncodedFrame, FrameEncoder
from unified.structures import Size


def is_guided(model: object) -> bool:
    """Whether the chooser of a model is asked in clips too, see ``Guided``."""
    return bool(getattr(getattr(model, "chooser", None), "in_clips", False))


def ask_guide(
    encoder: FrameEncoder,
    frame: EncodedFrame,
    texts: Sequence[str],
    size: Size,
    threshold: float,
) -> list[Answer]:
    """One answer for each sentence, as ``ImagePredictor`` has it of an image.

    Args:
        encoder: of a model that is guided.
        size, threshold: as of ``Question``.
    """
    if not texts:
        return []
    chooser: Any = getattr(encoder.model, "chooser", None)
    answers = []
    with torch.inference_mode(), encoder.autocast():
        scene = chooser.look([frame], frame.image)
        for text in texts:
            found = chooser.answer(scene, text, encoder.text(text))
            probability = F.interpolate(
                found.probability.float()[None, None], size, mode="bilinear", align_corners=False
            )[0, 0]
            score = probability.new_tensor(found.score, dtype=torch.float64)
            answers.append((score, probability * (found.score >= threshold)))
    return answers
