"""Segments what prompts refer to, in an image or along a video, with any ``Segmenter``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.errors import InputError
from unified.expressions import swap_left_right
from unified.inference.frames import EncodedFrame, FrameEncoder, check_image, check_prompt
from unified.inference.memory import VideoMemory
from unified.inference.settings import ImageSettings, VideoSettings, inference_settings
from unified.label_maps import MAX_OBJECT_ID, mask_box
from unified.masks import (
    MASK_THRESHOLD,
    Joint,
    binary_masks,
    join_mirrored,
    mask_probabilities,
    merge,
)
from unified.modeling.box_ops import cxcywh_to_xyxy
from unified.segmenter import Detector, Segmenter
from unified.structures import (
    FrameResult,
    Instance,
    Prompt,
    References,
    Segmentation,
    Size,
)

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
        self._frame: EncodedFrame | None = None
        self._flipped: np.ndarray | None = None
        self._mirrored: EncodedFrame | None = None
        self._size: Size = (0, 0)

    def set_image(self, image: np.ndarray) -> None:
        """Encodes (H, W, 3) uint8 RGB for the following prompts."""
        self._frame, self._mirrored = self.encoder.image(image), None
        self._size = (image.shape[0], image.shape[1])
        self._flipped = image[:, ::-1].copy() if self.settings.mirror else None

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
        if not self.settings.mirror:
            found = self._segment(frame, prompt)
            return self._instance(found, 0, self._binary(found.mask_logits[0])[0])
        joint, joined = self._joint(frame, prompt)
        return self._instance(joined, 0, joint.probability > MASK_THRESHOLD)

    def predict_prob(self, prompt: Prompt) -> tuple[np.ndarray, float]:
        """As ``predict``, with the probability (H, W) float32 of every pixel."""
        frame = self._check(prompt)
        if self.settings.mirror:
            joint, _ = self._joint(frame, prompt)
            probability, score = joint.probability, joint.score
        else:
            found = self._segment(frame, prompt)
            probability, score = self._probability(found), found.scores[0, 0]
        present = score >= self.settings.score_threshold
        return (probability * present).cpu().numpy(), float(score)

    def detect(self, top_k: int = 100) -> list[Instance]:
        """All objects of the image that reach the threshold, the highest score first.

        Args:
            top_k: largest number of them.

        Raises:
            InputError: no image is set, or the model cannot say what there is.
        """
        frame = self._image_frame()
        if not isinstance(self.encoder.model, Detector):
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
        references: list[References] = []
        if prompt.text is not None:
            references.append(self.encoder.text(prompt.text))
        visual = self.encoder.visual(frame, prompt)
        if visual is not None:
            references.append(visual)
        with torch.inference_mode(), self.encoder.autocast():
            return _float32(self.encoder.model.segment(frame.features, references, top_k=1))

    def _joint(self, frame: EncodedFrame, prompt: Prompt) -> tuple[Joint, Segmentation]:
        """The answers about the image and its mirror image joined; box and class of both."""
        if self._mirrored is None:
            assert self._flipped is not None, "kept by set_image where mirror images are asked"
            self._mirrored = self.encoder.image(self._flipped)
        views = self._segment(frame, prompt), self._segment(self._mirrored, _mirrored(prompt))
        joint = join_mirrored(
            torch.stack([self._probability(view) for view in views]),
            torch.stack([view.scores[0, 0] for view in views]),
        )
        boxes = None
        if views[0].boxes is not None:
            first, second = (view.boxes[0, 0] for view in views)  # (4,), cxcywh
            flipped = torch.cat((1 - second[:1], second[1:]))
            boxes = (joint.weights[0] * first + joint.weights[1] * flipped)[None, None]
        better = views[int(joint.weights.argmax())]
        return joint, replace(better, boxes=boxes, scores=joint.score[None, None])

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
        if found.boxes is None:
            box = mask_box(array)
        else:
            box = _pixel_box(found.boxes[0, row], self._size)
        return Instance(array, score, box, category=int(found.classes[0, row]))


class VideoPredictor:
    """Segments prompted objects frame by frame in memory that does not grow with the video.

    Each frame is encoded once for all objects, objects are batched, and the mask of only the best
    query is decoded. Source: UniRef++ (arXiv:2312.15715), section 3.5.

    Args:
        model: in eval mode.
        settings: sizes, threshold, merge rule and the rest; by default those the model carries.
        changes: fields of ``VideoSettings`` that replace those.
    """

    def __init__(
        self, model: Segmenter, settings: VideoSettings | None = None, **changes: Any
    ) -> None:
        self.settings = replace(settings or inference_settings(model).video, **changes)
        self.encoder = FrameEncoder(model, self.settings)
        self._waiting: dict[int, Prompt] = {}
        self.memory = VideoMemory()

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Known objects, ascending."""
        return tuple(sorted({*self.memory.object_ids, *self._waiting}))

    def reset(self) -> None:
        """Forgets every object; the next frame starts a new video."""
        self._waiting.clear()
        self.memory = VideoMemory()

    def add(self, object_id: int, prompt: Prompt) -> None:
        """Makes an object known from the next frame on, or corrects a known one there.

        Raises:
            InputError: id or prompt cannot be used. Whether a mask fits is known at that frame.
        """
        _check_object(object_id, prompt)
        self._waiting[object_id] = prompt

    def forget(self, object_id: int) -> None:
        """Stops following an object; unknown ids are fine."""
        self._waiting.pop(object_id, None)
        self.memory.forget(object_id)

    def run(
        self,
        frames: Iterable[np.ndarray],
        prompts: Mapping[int, Mapping[int, Prompt]],
    ) -> Iterator[FrameResult]:
        """Results of the frames as they are consumed.

        Args:
            frames: any iterable of (H, W, 3) uint8 RGB, read one at a time.
            prompts: frame index -> object id -> prompt.
        """
        for index, frame in enumerate(frames):
            yield self.step(frame, prompts.get(index, {}))

    def step(
        self,
        frame: np.ndarray,
        prompts: Mapping[int, Prompt] | None = None,
        *,
        output_size: Size | None = None,
    ) -> FrameResult:
        """Segments the next frame.

        Args:
            frame: (H, W, 3) uint8 RGB.
            prompts: object id -> prompt for objects that start or are corrected on this frame; a
                mask is taken over as it is and defines the object.
            output_size: (h, w) of the result, the frame's own by default.

        Raises:
            InputError: frame or prompt does not fit. Nothing was changed: another frame or other
                prompts can follow.
        """
        check_image(frame)
        frame_size = (frame.shape[0], frame.shape[1])
        size = output_size or frame_size
        waiting = {**self._waiting, **(prompts or {})}
        for object_id, prompt in waiting.items():
            _check_object(object_id, prompt)
            check_prompt(prompt, frame_size)
        if not waiting and not self.memory.object_ids:
            return FrameResult(np.zeros(size, np.uint8), scores={}, boxes={}, areas={})
        encoded = self.encoder.image(frame)
        given = self._take_prompts(encoded, waiting)
        scores, probabilities = self._predict(encoded, given, size)
        return self._finish(encoded, given, scores, probabilities)

    def _take_prompts(
        self, frame: EncodedFrame, waiting: Mapping[int, Prompt]
    ) -> dict[int, np.ndarray]:
        """Puts prompts into memory, all or none; returns the masks given on this frame."""
        encoded = {
            object_id: (
                None if prompt.text is None else self.encoder.text(prompt.text),
                self.encoder.visual(frame, prompt),
            )
            for object_id, prompt in waiting.items()
        }
        for object_id, (text, visual) in encoded.items():
            self.memory.add(object_id, text=text, mask=visual)
        self._waiting.clear()
        return {
            object_id: np.asarray(prompt.mask, bool)
            for object_id, prompt in waiting.items()
            if prompt.mask is not None
        }

    def _predict(
        self, frame: EncodedFrame, given: Mapping[int, np.ndarray], size: Size
    ) -> tuple[dict[int, float], Tensor]:
        """Score and probability map (O, H, W) of every known object, ascending by id."""
        ids = self.memory.object_ids
        scores = dict.fromkeys(ids, 1.0)
        maps: dict[int, Tensor] = {}
        for object_id, mask in given.items():
            source = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
            maps[object_id] = F.interpolate(
                source, size=size, mode="bilinear", align_corners=False
            )[0, 0]
        unknown = [object_id for object_id in ids if object_id not in given]
        image_size = frame.images.image_sizes[0]
        for chunk, references in self.memory.batches(unknown, self.settings.objects_per_pass):
            described = self.memory.has_text(chunk[0])  # then all of the chunk are
            with torch.inference_mode(), self.encoder.autocast():
                result = self.encoder.model.segment(
                    frame.features.expand(len(chunk)),
                    references,
                    mask_stride=self.settings.text_stride
                    if described
                    else self.settings.mask_stride,
                )
                logits = result.mask_logits[:, 0].float()
                probabilities = mask_probabilities(
                    logits,
                    stride=frame.images.padded_size[0] // logits.shape[-2],
                    image_size=image_size,
                    original_size=size,
                )
            for row, object_id in enumerate(chunk):
                scores[object_id] = float(result.scores[row, 0])
                present = scores[object_id] >= self.settings.score_threshold
                maps[object_id] = probabilities[row] * present
        device = frame.images.tensor.device
        return scores, torch.stack([maps[object_id].to(device) for object_id in ids])

    def _finish(
        self,
        frame: EncodedFrame,
        given: Mapping[int, np.ndarray],
        scores: Mapping[int, float],
        probabilities: Tensor,
    ) -> FrameResult:
        """Merges the objects, remembers the visible ones and describes the frame."""
        ids = self.memory.object_ids
        label_map = merge(probabilities, ids).cpu().numpy()
        if self.settings.merge_rule == "separate":
            masks = dict(zip(ids, (probabilities > MASK_THRESHOLD).cpu().numpy(), strict=True))
        else:
            masks = {object_id: label_map == object_id for object_id in ids}
        if self.settings.use_memory and "mask" in self.encoder.model.reference_kinds:
            seen = [i for i in ids if i not in given and masks[i].any()]
            for start in range(0, len(seen), self.settings.objects_per_pass):
                chunk = seen[start : start + self.settings.objects_per_pass]
                references = self.encoder.masks(frame, [masks[i] for i in chunk])
                for object_id, reference in zip(chunk, references, strict=True):
                    self.memory.update(object_id, reference)
        keep = self.settings.keep_probabilities
        kept = probabilities.cpu().numpy() if keep else ()
        return FrameResult(
            label_map=label_map,
            scores=dict(scores),
            boxes={i: mask_box(mask) for i, mask in masks.items()},
            areas={i: int(mask.sum()) for i, mask in masks.items()},
            masks=masks if self.settings.merge_rule == "separate" else {},
            probabilities=dict(zip(ids, kept, strict=True)) if keep else {},
        )


def _check_object(object_id: int, prompt: Prompt) -> None:
    if not 1 <= object_id <= MAX_OBJECT_ID:
        raise InputError(f"object ids go from 1 to {MAX_OBJECT_ID}, got {object_id}")
    check_prompt(prompt)


def _mirrored(prompt: Prompt) -> Prompt:
    """What the same prompt is on the mirror image; example images stay."""
    return replace(
        prompt,
        text=None if prompt.text is None else swap_left_right(prompt.text),
        mask=None if prompt.mask is None else np.asarray(prompt.mask, bool)[:, ::-1],
    )


def _float32(found: Segmentation) -> Segmentation:
    """The answer in single precision, whatever the model runs in."""
    return replace(
        found,
        mask_logits=found.mask_logits.float(),
        scores=found.scores.float(),
        boxes=None if found.boxes is None else found.boxes.float(),
    )


def _pixel_box(box: Tensor, size: Size) -> tuple[float, float, float, float] | None:
    """(4,) cxcywh, relative, as xyxy in pixels within an image of (H, W); None if it is empty."""
    height, width = size
    corners = cxcywh_to_xyxy(box) * box.new_tensor([width, height, width, height])
    left, right = corners[0::2].clamp(0, width).tolist()
    top, bottom = corners[1::2].clamp(0, height).tolist()
    return (left, top, right, bottom) if left < right and top < bottom else None
