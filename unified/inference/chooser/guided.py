"""One model says what a sentence means in an image, another, which follows boxes, outlines it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.inference.chooser.choosing import Answer
from unified.inference.chooser.scene import Scene
from unified.inference.frames import EncodedFrame, FrameEncoder
from unified.masks import mean_logits
from unified.segmenter import PointSegmenter
from unified.structures import MASK_STRIDE, References


@dataclass(frozen=True)
class View:
    """One image as both models see it."""

    frame: EncodedFrame
    scene: Scene


class Guided:
    """Answers sentences about images as ``Chooser`` does.

    Args:
        guide: a model with a chooser.
        model: is asked about the box of each thing that the guide chose; both masks are joined.

    Attributes:
        in_clips: sentences about clips are asked so too, until what they mean is found.
    """

    in_clips = True

    def __init__(self, guide: Any, model: PointSegmenter) -> None:
        self.guide, self.model = guide, model
        self.encoder = FrameEncoder(guide, guide.inference.image)

    def understands(self, text: str) -> bool:
        """As of ``Chooser``."""
        return bool(self.guide.chooser.understands(text))

    def look(self, frames: Sequence[EncodedFrame], image: np.ndarray) -> View:
        """As of ``Chooser``; the guide follows the model to its device, and sees the image too."""
        self.guide.to(frames[0].images.tensor.device)
        views = [self.encoder.image(image)]
        if self.guide.inference.image.mirror:
            views.append(self.encoder.image(image[:, ::-1].copy()))
        return View(frames[0], self.guide.chooser.look(views, image))

    def answer(self, scene: View, text: str, _: References) -> Answer:
        """As of ``Chooser``, at the size of the model's input; the guide reads the text itself."""
        references = self.encoder.text(text)
        parts, score = self.guide.chooser.chosen(scene.scene, text, references)
        size = scene.frame.images.image_sizes[0]
        parts = parts[:, None].float()
        whole = F.interpolate(parts, size, mode="bilinear", align_corners=False)[:, 0]
        whole = whole[(whole > 0.5).flatten(1).any(dim=1)]
        if not len(whole):
            return Answer(parts.new_zeros(size), score)
        drawn = self._drawn(scene.frame, whole > 0.5)
        joined = mean_logits(whole.logit(eps=1e-4), drawn)
        return Answer(joined.sigmoid().amax(dim=0), score)

    def _drawn(self, frame: EncodedFrame, masks: Tensor) -> Tensor:
        """Logits (N, h, w) of the model for the boxes of masks (N, h, w), at its input size."""
        from torchvision.ops import masks_to_boxes

        boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1], device=masks.device)
        shown = self.model.encode_points(None, None, boxes)
        features = frame.features.expand(len(masks))
        found = self.model.segment(features, [shown], mask_stride=MASK_STRIDE)
        height, width = masks.shape[-2:]
        logits = F.interpolate(
            found.mask_logits.float(),
            frame.images.padded_size,
            mode="bilinear",
            align_corners=False,
        )
        return logits[:, 0, :height, :width]
