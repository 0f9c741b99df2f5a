"""The candidates of one image, gathered and described once; a sentence adds its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unified.inference.chooser.candidates import (
    SAME,
    Found,
    grid_size,
    joined,
    on_grid,
    overlaps,
)
from unified.inference.chooser.describing import Described, Describer
from unified.inference.frames import EncodedFrame
from unified.masks import join_mirrored
from unified.modeling.backbones import Backbone
from unified.segmenter import Segmenter
from unified.structures import References

DETECTED, ASKED = 50, 8  # masks that the segmenter gives without a sentence, and for one
LIMIT = 40  # candidates of an image


class Scene:
    """One image whose candidates are known.

    Args:
        model: what finds candidates.
        frames: the image as the model encoded it, and its mirror image if that is asked too.
        image: (H, W, 3) uint8 RGB.
        backbone, mean, std: as of ``Describer``.
    """

    def __init__(
        self,
        model: Segmenter,
        frames: Sequence[EncodedFrame],
        image: np.ndarray,
        backbone: Backbone,
        mean: Tensor,
        std: Tensor,
    ) -> None:
        self.model, self.frames = model, frames
        self.frame, self.propose = frames[0], getattr(model, "propose", model.segment)
        frame = self.frame
        self.size = grid_size(frame)
        self.describer = Describer(backbone, mean, std, image, frame, self.size)
        detects = getattr(model, "detects", False)
        parts = [
            self._found(view, [], DETECTED, mirrored=view is not frame)
            for view in (frames if detects else ())
        ]
        self.detected = joined(parts, LIMIT) if parts else None
        self.described = None
        if self.detected is not None and len(self.detected):
            self.described = self.describer.describe(self.detected)

    def asked(self, references: References) -> Found:
        """What the segmenter finds for a sentence in the image itself, best first."""
        return self._found(self.frame, [references], ASKED, mirrored=False)

    def own(self, references: References) -> tuple[Tensor, Tensor]:
        """The segmenter's own answer: probability (h, w) and score.

        Answers about the image and its mirror image are joined; left and right must not be in the
        sentence.
        """
        views = []
        for view in self.frames:
            found = self.model.segment(view.features, [references], top_k=1)
            views.append(on_grid(found, view, self.size, mirrored=False))
        if len(views) == 1:
            return views[0].probabilities[0], views[0].scores[0]
        masks = torch.cat([view.probabilities for view in views])
        joint = join_mirrored(masks, torch.cat([view.scores for view in views]))
        return joint.probability, joint.score

    def names(self, described: Described, references: References) -> Tensor:
        """What the segmenter's names say about candidates (K,), to be added to logits.

        Zeros if it has none, or a sentence is about nothing near them.
        """
        evidence = getattr(self.model, "name_evidence", None)
        if evidence is None:
            return torch.zeros_like(described.scores)
        found: Tensor = evidence(described.seen[:, : self.describer.num_frozen], references)
        return found

    def candidates(self, asked: Found) -> tuple[Found, Described]:
        """The candidates of the image and what else a sentence finds; there may be none."""
        own = joined([asked], ASKED)
        if self.detected is None or self.described is None:
            return own, self.describer.describe(own)
        known = overlaps(own.masks, self.detected.masks)[0].amax(dim=1) > SAME
        fresh = Found(own.probabilities[~known], own.scores[~known])
        if not len(fresh):
            return self.detected, self.described
        both = self.detected.followed_by(fresh)
        return both, self.described.extended(self.describer.describe(fresh), both.masks)

    def _found(
        self,
        frame: EncodedFrame,
        references: Sequence[References],
        top_k: int,
        *,
        mirrored: bool,
    ) -> Found:
        found = self.propose(frame.features, references, top_k=top_k)
        return on_grid(found, frame, self.size, mirrored=mirrored)


def own_scores(candidates: Found, asked: Found) -> Tensor:
    """How well each candidate (K,) fits the sentence by the segmenter's own score, in [0, 1].

    The best score among the masks for the sentence, times the IoU with it.
    """
    iou, _ = overlaps(candidates.masks, asked.masks)
    return (iou * asked.scores).amax(dim=1)
