"""Segments what prompts refer to, in an image or along a video, with any ``Segmenter``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.errors import InputError
from unified.expressions import swap_left_right
from unified.inference.frames import EncodedFrame, FrameEncoder, check_image, check_prompt
from unified.inference.memory import VideoMemory
from unified.label_maps import MAX_OBJECT_ID, mask_box
from unified.masks import MASK_THRESHOLD, binary_masks, join_mirrored, mask_probabilities, merge
from unified.segmenter import Segmenter
from unified.structures import FrameResult, Prompt, References, Size

MASK_STRIDE = 4

MergeRule = Literal["soft", "separate"]


class ImagePredictor:
    """Segments prompts on one image at a time; the image is encoded once."""

    def __init__(
        self,
        model: Segmenter,
        *,
        short_side: int = 800,
        max_size: int = 1333,
        precision: str = "float32",
        support_margin: float = math.inf,
        mirror: bool = False,
    ) -> None:
        """The defaults are the reference's.

        Args:
            mirror: ask the mirror image too, with left and right swapped in sentences, and join
                both answers, see ``join_mirrored``. Takes twice the time.

        The other options are those of ``FrameEncoder``.
        """
        self._encoder = FrameEncoder(
            model,
            short_side=short_side,
            max_size=max_size,
            precision=precision,
            support_margin=support_margin,
        )
        self._mirror = mirror
        self._frame: EncodedFrame | None = None
        self._mirrored: EncodedFrame | None = None
        self._size: Size = (0, 0)

    def set_image(self, image: np.ndarray) -> None:
        """Encodes (H, W, 3) uint8 RGB for the following prompts."""
        self._frame = self._encoder.image(image)
        self._mirrored = self._encoder.image(image[:, ::-1]) if self._mirror else None
        self._size = (image.shape[0], image.shape[1])

    def predict(self, prompt: Prompt) -> tuple[np.ndarray, float]:
        """The mask (H, W) bool at the image's size and its score in [0, 1].

        The binary mask of the model's input is resized, as the reference's evaluation does; with
        the mirror image, probabilities are resized and joined before.

        Raises:
            InputError: no image is set, or the prompt is empty or does not fit.
        """
        if self._mirror:
            probability, joint_score = self.predict_prob(prompt)
            return probability > MASK_THRESHOLD, joint_score
        frame = self._check(prompt)
        logits, score = self._segment(frame, prompt)
        size = frame.images.image_sizes[0]
        mask = binary_masks(logits, stride=MASK_STRIDE, image_size=size, original_size=self._size)
        return mask[0].cpu().numpy(), float(score)

    def predict_prob(self, prompt: Prompt) -> tuple[np.ndarray, float]:
        """As ``predict``, with the probability (H, W) float32 of every pixel."""
        frame = self._check(prompt)
        probability, score = self._probability(frame, prompt)
        if self._mirrored is not None:
            other, other_score = self._probability(self._mirrored, _mirrored_prompt(prompt))
            joint = join_mirrored(
                torch.stack((probability, other)), torch.stack((score, other_score))
            )
            probability, score = joint.probability, joint.score
        return probability.cpu().numpy(), float(score)

    def _check(self, prompt: Prompt) -> EncodedFrame:
        """The image as it was set, if there is one that the prompt fits."""
        if self._frame is None:
            raise InputError("no image to segment: call set_image first")
        check_prompt(prompt, self._size)
        return self._frame

    def _probability(self, frame: EncodedFrame, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Probabilities (H, W) at the image's size and score () of the best query."""
        logits, score = self._segment(frame, prompt)
        size = frame.images.image_sizes[0]
        return mask_probabilities(
            logits, stride=MASK_STRIDE, image_size=size, original_size=self._size
        )[0], score

    def _segment(self, frame: EncodedFrame, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Mask logits (1, h, w) and score () of the best query."""
        references: list[References] = []
        if prompt.text is not None:
            references.append(self._encoder.text(prompt.text))
        visual = self._encoder.visual(frame, prompt)
        if visual is not None:
            references.append(visual)
        with torch.inference_mode(), self._encoder.autocast():
            result = self._encoder.model.segment(
                frame.features, references, top_k=1, mask_stride=MASK_STRIDE
            )
        return result.mask_logits[0].float(), result.scores[0, 0].float()


class VideoPredictor:
    """Segments prompted objects frame by frame in memory that does not grow with the video.

    Each frame is encoded once for all objects, objects are batched, and the mask of only the best
    query is decoded. Source: UniRef++ (arXiv:2312.15715), section 3.5.

    Args:
        model: in eval mode.
        score_threshold: an object whose best score is lower is absent on that frame.
        merge_rule: "soft" lets objects compete for pixels (soft aggregation); "separate" keeps
            every object's own mask (``FrameResult.masks``), as one expression at a time would.
        use_memory: False segments every frame from the sentence alone.
        mask_stride: stride of mask logits, 4, or 1 as the reference does for masks alone.
        objects_per_pass: largest number of objects batched.
        keep_probabilities: return (H, W) float probabilities of every object.
        support_margin: example images are cropped around their object, see ``object_window``.
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        score_threshold: float = 0.3,
        merge_rule: MergeRule = "soft",
        use_memory: bool = True,
        mask_stride: int = MASK_STRIDE,
        short_side: int = 480,
        max_size: int = 1333,
        precision: str = "float32",
        objects_per_pass: int = 8,
        keep_probabilities: bool = False,
        support_margin: float = math.inf,
    ) -> None:
        self.encoder = FrameEncoder(
            model,
            short_side=short_side,
            max_size=max_size,
            precision=precision,
            support_margin=support_margin,
        )
        self.score_threshold, self.merge_rule = score_threshold, merge_rule
        self.use_memory, self.mask_stride = use_memory, mask_stride
        self.objects_per_pass, self.keep_probabilities = objects_per_pass, keep_probabilities
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
        for chunk, references in self.memory.batches(unknown, self.objects_per_pass):
            with torch.inference_mode(), self.encoder.autocast():
                result = self.encoder.model.segment(
                    frame.features.expand(len(chunk)), references, mask_stride=self.mask_stride
                )
                probabilities = mask_probabilities(
                    result.mask_logits[:, 0].float(),
                    stride=self.mask_stride,
                    image_size=image_size,
                    original_size=size,
                )
            for row, object_id in enumerate(chunk):
                scores[object_id] = float(result.scores[row, 0])
                present = scores[object_id] >= self.score_threshold
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
        if self.merge_rule == "separate":
            masks = dict(zip(ids, (probabilities > MASK_THRESHOLD).cpu().numpy(), strict=True))
        else:
            masks = {object_id: label_map == object_id for object_id in ids}
        if self.use_memory and "mask" in self.encoder.model.reference_kinds:
            seen = [i for i in ids if i not in given and masks[i].any()]
            for start in range(0, len(seen), self.objects_per_pass):
                chunk = seen[start : start + self.objects_per_pass]
                references = self.encoder.masks(frame, [masks[i] for i in chunk])
                for object_id, reference in zip(chunk, references, strict=True):
                    self.memory.update(object_id, reference)
        kept = probabilities.cpu().numpy() if self.keep_probabilities else ()
        return FrameResult(
            label_map=label_map,
            scores=dict(scores),
            boxes={i: mask_box(mask) for i, mask in masks.items()},
            areas={i: int(mask.sum()) for i, mask in masks.items()},
            masks=masks if self.merge_rule == "separate" else {},
            probabilities=dict(zip(ids, kept, strict=True)) if self.keep_probabilities else {},
        )


def _check_object(object_id: int, prompt: Prompt) -> None:
    if not 1 <= object_id <= MAX_OBJECT_ID:
        raise InputError(f"object ids go from 1 to {MAX_OBJECT_ID}, got {object_id}")
    check_prompt(prompt)


def _mirrored_prompt(prompt: Prompt) -> Prompt:
    """What the same prompt is on the mirror image; example images stay."""
    return replace(
        prompt,
        text=None if prompt.text is None else swap_left_right(prompt.text),
        mask=None if prompt.mask is None else np.asarray(prompt.mask, bool)[:, ::-1],
    )
