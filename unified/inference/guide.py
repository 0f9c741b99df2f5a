"""What sentences mean on a frame as another model says, which guides the one that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from unified.inference.answers import Answer
from unified.inference.frames import EncodedFrame, FrameEncoder
from unified.inference.sentences import is_same
from unified.masks import MASK_THRESHOLD
from unified.structures import Size

DOUBTED = 0.1  # of the threshold: from there on a refused sentence gets a second opinion


def is_guided(model: object) -> bool:
    """Whether the chooser of a model is asked in clips too, see ``Guided``."""
    return bool(getattr(getattr(model, "chooser", None), "in_clips", False))


def ask_guide(
    encoder: FrameEncoder, frame: EncodedFrame, texts: Sequence[str], size: Size
) -> list[Answer]:
    """One answer for each sentence, as ``ImagePredictor`` has it of an image, whatever its score.

    Args:
        encoder: of a model that is guided.
        size: (H, W) of the probabilities.
    """
    if not texts:
        return []
    chooser: Any = getattr(encoder.model, "chooser", None)
    answers = []
    with torch.inference_mode(), encoder.autocast():
        scene = chooser.look_at_frame(frame)
        for text in texts:
            found = chooser.answer(scene, text, encoder.text(text))
            probability = F.interpolate(
                found.probability.float()[None, None], size, mode="bilinear", align_corners=False
            )[0, 0]
            answers.append((probability.new_tensor(found.score, dtype=torch.float64), probability))
    return answers


def is_doubted(answer: Answer, threshold: float) -> bool:
    """Whether the model itself is asked too, as the guide refuses a sentence, but not firmly."""
    return DOUBTED * threshold <= float(answer[0]) < threshold


def weighed(answer: Answer, own: Answer | None, threshold: float) -> Answer:
    """What counts of an answer of the guide, and of the model's own where it was doubted.

    What the guide refuses is there if the model itself finds the same thing, with its score.
    """
    score, probability = answer
    if float(score) >= threshold:
        return answer
    if own is not None and float(own[0]) >= threshold:
        mask, other = probability > MASK_THRESHOLD, own[1] > MASK_THRESHOLD
        if other.any() and is_same(mask, other):
            return own[0], probability
    return score, torch.zeros_like(probability)
