"""The tasks of the toolkit as rows of one table; no model reads it, loaders and evaluators do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Task(str, Enum):
    """What is asked of the model; the value is the name in sample dicts, configs and cards."""

    DETECTION = "detection"
    RIS = "ris"
    FSS = "fss"
    RVOS = "rvos"
    VOS = "vos"


@dataclass(frozen=True)
class TaskSpec:
    """One row of design section 4.

    Attributes:
        references: kinds of reference a training sample carries, of "text" and "mask".
        num_frames: frames in one training clip (1 = an image).
        mask_stride: stride of the mask logits that the losses and the merge see.
        mask_dropout: probability of dropping the mask reference of a training sample.
        top_k: queries kept at inference.
    """

    references: tuple[str, ...]
    num_frames: int = 1
    mask_stride: int = 4  # structures.MASK_STRIDE, without its import of torch
    mask_dropout: float = 0.0
    top_k: int = 1


TASKS: dict[Task, TaskSpec] = {
    Task.DETECTION: TaskSpec(references=(), top_k=100),
    Task.RIS: TaskSpec(references=("text",)),
    Task.FSS: TaskSpec(references=("mask",)),
    Task.RVOS: TaskSpec(references=("text", "mask"), num_frames=2, mask_dropout=0.4),
    Task.VOS: TaskSpec(references=("mask",), num_frames=2, mask_stride=1),
}
