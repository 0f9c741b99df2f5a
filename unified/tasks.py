"""The tasks of the toolkit as rows of one table; no model reads it, loaders and evaluators do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class Task(str):
    """What is asked of the model: its name in sample dicts, configs and cards.

    ``Task("ris")`` is ``Task.RIS``; a name that is not in ``TASKS`` raises ValueError.
    """

    DETECTION: ClassVar[Task]
    RIS: ClassVar[Task]
    CAPTION: ClassVar[Task]
    FSS: ClassVar[Task]
    RVOS: ClassVar[Task]
    VOS: ClassVar[Task]

    def __new__(cls, name: str) -> Task:
        for task in TASKS:
            if task == name:
                return task
        raise ValueError(f"{name!r} is no task: choose one of {', '.join(TASKS)}")


@dataclass(frozen=True)
class TaskSpec:
    """One row of the table.

    Attributes:
        references: kinds of reference a training sample carries, of "text" and "mask".
        num_frames: frames in one training clip (1 = an image).
        mask_stride: stride of the mask logits that the losses and the merge see.
        mask_dropout: probability of dropping the mask reference of a training sample.
        top_k: queries kept at inference.
        has_masks: whether its samples show where things are; without, they are learnt from only by
            systems that need no masks, and not scored.
    """

    references: tuple[str, ...]
    num_frames: int = 1
    mask_stride: int = 4  # structures.MASK_STRIDE, without its import of torch
    mask_dropout: float = 0.0
    top_k: int = 1
    has_masks: bool = True

    @property
    def is_clip(self) -> bool:
        """Whether a sample comes from a clip."""
        return self.num_frames > 1


TASKS: dict[Task, TaskSpec] = {}


def register_task(name: str, spec: TaskSpec) -> Task:
    """Adds a row to the table.

    Raises:
        ValueError: another task has this name.
    """
    if name in TASKS:
        raise ValueError(f"another task is called {name!r}")
    task = str.__new__(Task, name)
    TASKS[task] = spec
    return task


Task.DETECTION = register_task("detection", TaskSpec(references=(), top_k=100))
Task.RIS = register_task("ris", TaskSpec(references=("text",)))
Task.CAPTION = register_task("caption", TaskSpec(references=("text",), has_masks=False))
Task.FSS = register_task("fss", TaskSpec(references=("mask",)))
Task.RVOS = register_task(
    "rvos", TaskSpec(references=("text", "mask"), num_frames=2, mask_dropout=0.4)
)
Task.VOS = register_task("vos", TaskSpec(references=("mask",), num_frames=2, mask_stride=1))
