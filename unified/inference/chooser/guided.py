"""One model says what is meant in an image, another, which follows boxes, outlines it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.inference.chooser.choosing import Answer
from unified.inference.chooser.scene import Scene
from unified.inference.frames import EncodedFrame
from unified.inference.image_predictor import ImagePredictor
from unified.masks import mean_logits
from unified.segmenter import PointSegmenter
from unified.structures import MASK_STRIDE, Prompt, References, Support


class View:
    """One image as both models see it; the guide looks at it when it is asked.

    Args:
        frame: of the other one.
        finder: of the guide.
    """

    def __init__(self, frame: EncodedFrame, finder: ImagePredictor) -> None:
        self.frame, self.finder = frame, finder

    @cached_property
    def scene(self) -> Scene:
        """What sentences are asked of."""
        guide, image = self.finder.encoder, self.frame.image
        views = [guide.image(image)]
        if self.finder.settings.mirror:
            views.append(guide.image(image[:, ::-1].copy()))
        chooser: Any = getattr(guide.model, "chooser", None)
        return chooser.look(views, image)


class Guided:
    """Answers sentences about images and frames of clips as ``Chooser`` does, and example images.

    Args:
        guide: a model with a chooser.
        model: is asked about the box of each thing that the guide chose; both masks are joined.

    Attributes:
        in_clips: sentences about clips are asked so too, until what they mean is found.
        matches: whether example images are.
    """

    in_clips = True

    def __init__(self, guide: Any, model: PointSegmenter) -> None:
        self.guide, self.model = guide, model
        self.finder = ImagePredictor(guide, score_threshold=0.0)
        self.matches = "mask" in guide.reference_kinds
        self._seen: View | None = None  # by the finder

    def understands(self, text: str) -> bool:
        """As of ``Chooser``."""
        return bool(self.guide.chooser.understands(text))

    def look(self, frames: Sequence[EncodedFrame], image: np.ndarray) -> View:
        """As of ``Chooser``; the guide follows the model to its device."""
        self.guide.to(frames[0].images.tensor.device)
        return View(frames[0], self.finder)

    def look_at_frame(self, frame: EncodedFrame) -> View:
        """One frame of a clip, which the model sees as it sees images."""
        return self.look([frame], frame.image)

    def answer(self, scene: View, text: str, _: References) -> Answer:
        """As of ``Chooser``, at the size of the model's input; the guide reads the text itself."""
        references = self.finder.encoder.text(text)
        parts, score = self.guide.chooser.chosen(scene.scene, text, references)
        return self._outlined(scene.frame, parts, score)

    def match(self, scene: View, supports: tuple[Support, ...]) -> Answer:
        """What example images show, as the guide finds it."""
        if self._seen is not scene:
            self.finder.set_image(scene.frame.image)
            self._seen = scene
        found, score = self.finder.predict_prob(Prompt(supports=supports))
        part = torch.from_numpy(found).to(scene.frame.images.tensor.device)
        return self._outlined(scene.frame, part[None], score)

    def _outlined(self, frame: EncodedFrame, parts: Tensor, score: float) -> Answer:
        """Parts (K, h, w) at any size, probabilities, after the model has drawn each."""
        size = frame.images.image_sizes[0]
        parts = parts[:, None].float()
        whole = F.interpolate(parts, size, mode="bilinear", align_corners=False)[:, 0]
        whole = whole[(whole > 0.5).flatten(1).any(dim=1)]
        if not len(whole):
            return Answer(parts.new_zeros(size), score)
        drawn = self._drawn(frame, whole > 0.5)
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
