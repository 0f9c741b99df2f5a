"""Segments what prompts refer to in an image, or all objects, with any ``Segmenter``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.errors import InputError
from unified.expressions import swap_left_right
from unified.inference.checks import check_prompt
from unified.inference.frames import EncodedFrame, FrameEncoder
from unified.inference.prepared import is_compiled
from unified.inference.settings import ImageSettings, inference_settings
from unified.masks import MASK_THRESHOLD, Joint, binary_masks, join_mirrored, mask_probabilities
from unified.modeling.box_ops import cxcywh_to_xyxy
from unified.segmenter import Segmenter
from unified.structures import Instance, Prompt, Segmentation, Size

MASKS_AT_ONCE = 8  # resized to the size of the image


class ImagePredictor:
    """Segments prompts on one image at a time; the image is encoded once.

    Args:
        model: in eval mode.
        settings: sizes, threshold and the rest; those that the model carries by default.
        changes: fields of ``ImageSettings`` that replace those.
    """

    def __init__(
        self, model: Segmenter, settings: ImageSettings | None = None, **changes: Any
    ) -> None:
        self.settings = replace(settings or inference_settings(model).image, **changes)
        self.encoder = FrameEncoder(model, self.settings)
        self.compiled = is_compiled(self.encoder.model)
        self._frame: EncodedFrame | None = None
        self._flipped: np.ndarray | None = None
        self._mirrored: EncodedFrame | None = None
        self._image: np.ndarray | None = None
        self._scene: Any = None  # of the chooser, if the model has one
        self._size: Size = (0, 0)

    def set_image(self, image: np.ndarray) -> None:
        """Encodes (H, W, 3) uint8 RGB for the following prompts."""
        self._frame, self._mirrored = self.encoder.image(image), None
        self._image, self._scene = image, None
        self._size = (image.shape[0], image.shape[1])
        self._flipped = image[:, ::-1] if self.settings.mirror else None

    def predict(self, prompt: Prompt) -> tuple[np.ndarray, float]:
        """The mask (H, W) bool at the image's size and its score in [0, 1].

        The mask is empty where the score is below the threshold. See ``instance``.

        Raises:
            InputError: no image is set, or the prompt is empty or does not fit.
        """
        found = self.instance(prompt)
        return found.mask, found.score

    def instance(self, prompt: Prompt) -> Instance:
        """What the prompt refers to, with its box.

        The binary mask of the model's input is resized, as the reference's evaluation does; with
        the mirror image, probabilities are resized and joined before.

        Raises:
            InputError: as for ``predict``.
        """
        frame = self._check(prompt)
        if self._is_chosen(prompt):
            probability, score = self._choice(frame, prompt)
            mask = (probability > MASK_THRESHOLD) & (score >= self.settings.score_threshold)
            return Instance(mask.cpu().numpy(), score, _box_around(mask), category=0)
        if not self.settings.mirror:
            found = self._segment(frame, prompt)
            return self._instance(found, 0, self._binary(found.mask_logits[0])[0])
        joint, joined = self._joint(frame, prompt)
        return self._instance(joined, 0, joint.probability > MASK_THRESHOLD)

    def predict_prob(self, prompt: Prompt) -> tuple[np.ndarray, float]:
        """As ``predict``, with the probability (H, W) float32 of every pixel."""
        frame = self._check(prompt)
        if self._is_chosen(prompt):
            probability, score = self._choice(frame, prompt)
        elif self.settings.mirror:
            joint, _ = self._joint(frame, prompt)
            probability, score = joint.probability, float(joint.score)
        else:
            found = self._segment(frame, prompt)
            probability, score = self._probability(found), float(found.scores[0, 0])
        present = score >= self.settings.score_threshold
        return (probability * present).cpu().numpy(), score

    def detect(self, top_k: int = 100) -> list[Instance]:
        """All objects of the image that reach the threshold, the highest score first.

        Args:
            top_k: largest number of them.

        Raises:
            InputError: no image is set, or the model cannot say what there is.
        """
        frame = self._image_frame()
        if not getattr(self.encoder.model, "detects", False):
            kinds = " or ".join(sorted(self.encoder.model.reference_kinds))
            raise InputError(
                f"this model cannot detect, it segments what a prompt refers to: give a {kinds} "
                "prompt, or load a model that detects"
            )
        with torch.inference_mode(), self.encoder.autocast():
            found = _float32(self.encoder.model.segment(frame.features, [], top_k=top_k))
        scores = found.scores[0]
        kept = ((scores > 0) & (scores >= self.settings.score_threshold)).nonzero()[:, 0].tolist()
        instances: list[Instance] = []
        for start in range(0, len(kept), MASKS_AT_ONCE):
            part = kept[start : start + MASKS_AT_ONCE]
            masks = self._binary(found.mask_logits[0, part])
            instances += [self._instance(found, *pair) for pair in zip(part, masks, strict=True)]
        with_extent = [instance for instance in instances if instance.box is not None]
        return sorted(with_extent, key=lambda instance: -instance.score)

    def _image_frame(self) -> EncodedFrame:
        if self._frame is None:
            raise InputError("no image to segment: call set_image first")
        return self._frame

    def _check(self, prompt: Prompt) -> EncodedFrame:
        """The image as it was set, if there is one that the prompt fits."""
        frame = self._image_frame()
        check_prompt(prompt, self._size)
        return frame

    def _segment(self, frame: EncodedFrame, prompt: Prompt) -> Segmentation:
        """The best query, B = K = 1."""
        given = (
            None if prompt.text is None else self.encoder.text(prompt.text),
            self.encoder.visual(frame, prompt),
            self.encoder.shown(frame, prompt),
        )
        references = [reference for reference in given if reference is not None]
        with torch.inference_mode(), self.encoder.autocast():
            return _float32(self.encoder.model.segment(frame.features, references, top_k=1))

    def _joint(self, frame: EncodedFrame, prompt: Prompt) -> tuple[Joint, Segmentation]:
        """The answers about the image and its mirror image joined; box and class of both."""
        views = (
            self._segment(frame, prompt),
            self._segment(self._mirror_image(), _mirrored(prompt, self._size[1])),
        )
        joint = join_mirrored(
            torch.stack([self._probability(view) for view in views]),
            torch.stack([view.scores[0, 0] for view in views]),
        )
        first, second = (view.boxes[0, 0] for view in views)  # (4,), cxcywh
        flipped = torch.cat((1 - second[:1], second[1:]))
        boxes = (joint.weights[0] * first + joint.weights[1] * flipped)[None, None]
        better = views[int(joint.weights.argmax())]
        return joint, replace(better, boxes=boxes, scores=joint.score[None, None])

    def _mirror_image(self) -> EncodedFrame:
        if self._mirrored is None:
            assert self._flipped is not None, "kept by set_image where mirror images are asked"
            self._mirrored = self.encoder.image(self._flipped)
        return self._mirrored

    def _is_chosen(self, prompt: Prompt) -> bool:
        """Whether the model has a chooser, and the prompt is a sentence and nothing else, or
        example images and nothing else if the chooser follows these too.
        """
        chooser: Any = getattr(self.encoder.model, "chooser", None)
        if chooser is None or prompt.mask is not None or prompt.points_at:
            return False
        if prompt.supports:
            return prompt.text is None and getattr(chooser, "matches", False)
        return prompt.text is not None

    def _choice(self, frame: EncodedFrame, prompt: Prompt) -> tuple[Tensor, float]:
        """What a sentence means, or examples do, as the chooser says: (H, W) and a score.

        Source of candidates: the image, and its mirror image if that is asked too.
        """
        chooser: Any = getattr(self.encoder.model, "chooser", None)
        if prompt.text is not None and not chooser.understands(prompt.text):
            return torch.zeros(self._size), 0.0
        with torch.inference_mode(), self.encoder.autocast():
            if self._scene is None:
                frames = [frame, self._mirror_image()] if self.settings.mirror else [frame]
                self._scene = chooser.look(frames, self._image)
            if prompt.text is None:
                answer = chooser.match(self._scene, prompt.supports)
            else:
                answer = chooser.answer(self._scene, prompt.text, self.encoder.text(prompt.text))
        whole = F.interpolate(
            answer.probability.float()[None, None], self._size, mode="bilinear", align_corners=False
        )
        return whole[0, 0], answer.score

    def _probability(self, found: Segmentation) -> Tensor:
        """(H, W) at the image's size, of the best query."""
        return mask_probabilities(found.mask_logits[0, :1], **self._scale(found.mask_logits))[0]

    def _binary(self, mask_logits: Tensor) -> Tensor:
        """(N, h, w) -> (N, H, W) bool at the image's size."""
        return binary_masks(mask_logits, **self._scale(mask_logits))

    def _scale(self, mask_logits: Tensor) -> dict[str, Any]:
        """How (..., h, w) logits of the padded input become the image's size."""
        images = self._image_frame().images
        return {
            "stride": images.padded_size[0] // mask_logits.shape[-2],
            "image_size": images.image_sizes[0],
            "original_size": self._size,
        }

    def _instance(self, found: Segmentation, row: int, mask: Tensor) -> Instance:
        score = float(found.scores[0, row])
        present = score >= self.settings.score_threshold
        array = (mask & present).cpu().numpy()
        box = _pixel_box(found.boxes[0, row], self._size)
        return Instance(array, score, box, category=int(found.classes[0, row]))


def _mirrored(prompt: Prompt, width: int) -> Prompt:
    """What the same prompt is on the mirror image; example images stay."""
    box = prompt.box
    return replace(
        prompt,
        text=None if prompt.text is None else swap_left_right(prompt.text),
        mask=None if prompt.mask is None else np.asarray(prompt.mask, bool)[:, ::-1],
        points=tuple(replace(point, x=width - 1 - point.x) for point in prompt.points),
        box=box and (width - box[2], box[1], width - box[0], box[3]),
    )


def _box_around(mask: Tensor) -> tuple[float, float, float, float] | None:
    """x0, y0, x1, y1 around a mask (H, W) bool; None if it is empty."""
    rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
    if not len(rows):
        return None
    x0, x1, y0, y1 = (float(side) for side in (columns[0], columns[-1], rows[0], rows[-1]))
    return x0, y0, x1 + 1, y1 + 1


def _float32(found: Segmentation) -> Segmentation:
    """The answer in single precision, whatever the model runs in."""
    return replace(
        found,
        mask_logits=found.mask_logits.float(),
        scores=found.scores.float(),
        boxes=found.boxes.float(),
    )


def _pixel_box(box: Tensor, size: Size) -> tuple[float, float, float, float] | None:
    """(4,) cxcywh, relative, as xyxy in pixels within an image of (H, W); None if it is empty."""
    height, width = size
    corners = cxcywh_to_xyxy(box) * box.new_tensor([width, height, width, height])
    left, right = corners[0::2].clamp(0, width).tolist()
    top, bottom = corners[1::2].clamp(0, height).tolist()
    return (left, top, right, bottom) if left < right and top < bottom else None
