"""What a model says about objects of a frame."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unified.inference.frames import EncodedFrame, FrameEncoder
from unified.inference.memory import Track, references
from unified.masks import mask_probabilities
from unified.structures import Size
from unified.tasks import TASKS, Task

Answer = tuple[Tensor, Tensor]
"""Score () of an object and its probability (H, W), which is zero where the score is too low."""


@dataclass(frozen=True, eq=False)
class Question:
    """What a frame is asked about objects of one layout.

    Attributes:
        tracks: object id -> what was remembered of it.
        size: (H, W) of the probabilities.
        threshold: an object with a lower score is not there.
    """

    tracks: Mapping[int, Track]
    size: Size
    threshold: float

    def alone(self) -> Question:
        """The same of the sentences alone, which all these objects have."""
        return replace(self, tracks={i: Track(text=track.text) for i, track in self.tracks.items()})

    @property
    def key(self) -> Hashable:
        """Equal for two questions, both alive, that have the same answers on a frame."""
        told = tuple((i, *map(id, track.told)) for i, track in self.tracks.items())
        return told, self.size, self.threshold

    def ask(self, encoder: FrameEncoder, frame: EncodedFrame) -> dict[int, Answer]:
        """The answer about every object."""
        tracks = tuple(self.tracks.values())
        # Objects of one layout have all a sentence, or none of them.
        task = Task.VOS if tracks[0].text is None else Task.RVOS
        with torch.inference_mode(), encoder.autocast():
            result = encoder.model.segment(
                frame.features.expand(len(tracks)),
                references(tracks),
                mask_stride=TASKS[task].mask_stride,
            )
            logits = result.mask_logits[:, 0].float()
            probabilities = mask_probabilities(
                logits,
                stride=frame.images.padded_size[0] // logits.shape[-2],
                image_size=frame.images.image_sizes[0],
                original_size=self.size,
            )
            present = result.scores[:, 0].double() >= self.threshold  # as Python compares
            probabilities.mul_(present[:, None, None])
        answers = zip(result.scores[:, 0], probabilities, strict=True)
        return dict(zip(self.tracks, answers, strict=True))
