"""Segments what prompts refer to along a video, with any ``Segmenter``."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.errors import InputError
from unified.inference.answers import Answer, Question
from unified.inference.checks import check_frames, check_image, check_object, check_prompt
from unified.inference.doubles import Doubles
from unified.inference.frames import EncodedFrame, FrameAhead, FrameEncoder
from unified.inference.guide import ask_guide, is_doubted, is_guided, weighed
from unified.inference.memory import VideoMemory, chunks
from unified.inference.prepared import is_compiled
from unified.inference.presence import presences
from unified.inference.sentences import drop_other, is_weak, takes_over
from unified.inference.settings import VideoSettings, inference_settings
from unified.inference.stream import Coming, coming_frames
from unified.inference.workers import even_size, side_by_side, started_pool, threads_of_operations
from unified.label_maps import mask_box
from unified.masks import MASK_THRESHOLD, merge
from unified.segmenter import Segmenter
from unified.structures import FrameResult, Prompt, Size, upload

T = TypeVar("T")
FRAMES_AHEAD = 3  # more are seldom asked about before a mask is remembered


class VideoPredictor:
    """Segments prompted objects frame by frame in memory that does not grow with the video.

    Each frame is encoded once for all objects, objects are batched, and the mask of only the best
    query is decoded. Source: UniRef++ (arXiv:2312.15715), section 3.5.

    Args:
        model: in eval mode.
        settings: sizes, threshold, merge rule and the rest; by default those the model carries.
        changes: fields of ``VideoSettings`` that replace those.

    Attributes:
        side_by_side: on a processor, objects and the next frames of a stream are shared out among
            the threads of torch. False does one thing after the other,
            for who watches the verbs of the model.
    """

    def __init__(
        self, model: Segmenter, settings: VideoSettings | None = None, **changes: Any
    ) -> None:
        self.settings = replace(settings or inference_settings(model).video, **changes)
        self.encoder = FrameEncoder(model, self.settings)
        self.compiled = is_compiled(self.encoder.model)
        self.side_by_side = True
        self._waiting: dict[int, Prompt] = {}
        self._output_size: Size | None = None  # as the last frame was asked for
        self._threads = 1
        self.memory, self._doubles = VideoMemory(), Doubles()

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Known objects, ascending."""
        return tuple(sorted({*self.memory.object_ids, *self._waiting}))

    def reset(self) -> None:
        """Forgets every object; the next frame starts a new video."""
        self._waiting.clear()
        self._forget_clip()

    def _forget_clip(self) -> None:
        self.memory, self._doubles = VideoMemory(), Doubles()

    def add(self, object_id: int, prompt: Prompt) -> None:
        """Makes an object known from the next frame on, or corrects a known one there.

        Raises:
            InputError: id or prompt cannot be used. Whether a mask fits is known at that frame.
        """
        check_object(object_id, prompt)
        self._waiting[object_id] = prompt

    def forget(self, object_id: int) -> None:
        """Stops following an object; unknown ids are fine."""
        self._waiting.pop(object_id, None)
        self.memory.forget(object_id)
        self._doubles.forget(object_id)

    def run(
        self,
        frames: Iterable[np.ndarray],
        prompts: Mapping[int, Mapping[int, Prompt]],
    ) -> Iterator[FrameResult]:
        """Results of the frames of a new clip as they are consumed; earlier objects are forgotten.

        Args:
            frames: any iterable of (H, W, 3) uint8 RGB, read one at a time; see ``ahead``.
            prompts: frame index -> object id -> prompt.

        Raises:
            InputError: prompts are for frames that the clip does not have, as soon as its length
                is known; or as for ``step``.
        """
        if isinstance(frames, Sized):
            check_frames(prompts, len(frames))
        return self._run(frames, prompts)

    def _run(
        self, frames: Iterable[np.ndarray], prompts: Mapping[int, Mapping[int, Prompt]]
    ) -> Iterator[FrameResult]:
        self._forget_clip()  # what was added meanwhile starts with the first frame
        num_frames = 0
        # An iterable may fill one array again and again.
        with closing(self.ahead(frames, np.copy)) as coming:
            for index, (_, frame) in enumerate(coming):
                yield self.step(frame, prompts.get(index, {}))
                num_frames += 1
        check_frames(prompts, num_frames)

    def ahead(
        self, frames: Iterable[T], image: Callable[[T], np.ndarray]
    ) -> Generator[tuple[T, np.ndarray | FrameAhead], None, None]:
        """Every frame of a stream, and what ``step`` takes for it.

        Where operations have threads to share, up to ``FRAMES_AHEAD`` frames are read in a thread
        beyond the one whose turn it is, encoded, and, while memory stays as it is, asked about. No
        frame waits for a later one to be read. It may wait for work about later ones that have come
        already, and its own operations have a share of the threads: so a clip takes less time, and
        one result of a camera up to twice as long. Else each is read when it is asked for.

        Args:
            image: gives (H, W, 3) uint8 RGB of a frame, an array that is not filled again.
        """
        if self._to_share() > 1:
            return coming_frames(frames, image, FRAMES_AHEAD, self._work_ahead)
        return ((frame, image(frame)) for frame in frames)

    def _work_ahead(self, coming: Sequence[Coming[Any]]) -> None:
        """Begins what can be known now about the next frames.

        Between two masks that are remembered, frames have the same questions and can be asked
        side by side. One that is to be asked once is left to ``step``, which finds out whether
        the others have been the right ones.
        """
        size = self._output_size or self.encoder.fits
        self._threads = self._to_share()
        if self._threads == 1 or not self.object_ids or size is None:
            return
        share = self._share()
        pool = started_pool(self._threads // share, share)
        steady = self._expected(size)
        for place, frame in enumerate(coming):
            frame.encode(self.encoder, pool)
            frame.keep(tuple(steady))
            now = [question for question, num in steady.items() if num > max(1, place)]
            frame.ask(now, self.encoder, pool)

    def _expected(self, size: Size) -> dict[Question, float]:
        """Questions about the next frame, and for how many frames they likely stay the same."""
        ids = () if self._waiting else self.memory.object_ids
        if is_guided(self.encoder.model):  # the guide is asked in turn
            ids = tuple(i for i in ids if not self.memory.is_sought(i))
        weak = [i for i in ids if is_weak(self.memory, i, self.settings.memory_score)]
        questions = [*self._questions(ids, size), *self._questions_alone(weak, size)]
        if not self._remembers:
            return dict.fromkeys(questions, math.inf)
        interval = self.settings.memory_interval
        return {each: self.memory.steady(tuple(each.tracks), interval) for each in questions}

    @property
    def _remembers(self) -> bool:
        return self.settings.use_memory and "mask" in self.encoder.model.reference_kinds

    def _share(self) -> int:
        """Threads for each operation while several frames are worked at."""
        return max(1, self._threads // FRAMES_AHEAD)

    def _to_share(self) -> int:
        """How many threads there are to share out."""
        shared = self.side_by_side and self.encoder.shares_threads
        return torch.get_num_threads() if shared else 1

    def step(
        self,
        frame: np.ndarray | FrameAhead,
        prompts: Mapping[int, Prompt] | None = None,
        *,
        output_size: Size | None = None,
    ) -> FrameResult:
        """Segments the next frame.

        Args:
            frame: (H, W, 3) uint8 RGB, or one of ``ahead``.
            prompts: object id -> prompt for objects that start or are corrected on this frame; a
                mask is taken over as it is and defines the object.
            output_size: (h, w) of the result, the frame's own by default.

        Raises:
            InputError: frame or prompt does not fit. Nothing was changed: another frame or other
                prompts can follow.
        """
        image = frame.image if isinstance(frame, FrameAhead) else frame
        check_image(image)
        frame_size = (image.shape[0], image.shape[1])
        size = output_size or frame_size
        waiting = {**self._waiting, **(prompts or {})}
        for object_id, prompt in waiting.items():
            check_object(object_id, prompt)
            check_prompt(prompt, frame_size)
        if not waiting and not self.memory.object_ids:
            return FrameResult(np.zeros(size, np.uint8), scores={}, boxes={}, areas={})
        encoded = self.encoder.image(frame)
        self._threads, self._output_size = self._to_share(), output_size
        shared = encoded.asked and self._threads > 1
        beside_others = threads_of_operations(self._share()) if shared else nullcontext()
        with beside_others:
            given = self._take_prompts(encoded, waiting)
            scores, probabilities = self._predict(encoded, given, size)
            self._drop_other_sentences(encoded, waiting, probabilities)
            return self._finish(encoded, given, scores, probabilities)

    def _take_prompts(
        self, frame: EncodedFrame, waiting: Mapping[int, Prompt]
    ) -> dict[int, np.ndarray]:
        """Puts prompts into memory, all or none; returns the masks given on this frame."""
        follows_masks = "mask" in self.encoder.model.reference_kinds
        if any(p.points_at and p.text is None for p in waiting.values()) and not follows_masks:
            raise InputError(
                "this model follows no masks: it cannot follow what is shown by points or a box to "
                "the next frame"
            )
        encoded = {
            object_id: (
                self.encoder.text(prompt.text) if self._understands(prompt.text) else None,
                self.encoder.visual(frame, prompt),
                self.encoder.shown(frame, prompt),
            )
            for object_id, prompt in waiting.items()
        }
        for object_id, (text, visual, shown) in encoded.items():
            words, tentative = waiting[object_id].text, waiting[object_id].points_at
            self.memory.add(object_id, text, words, visual, shown=shown, tentative=tentative)
        self._waiting.clear()
        return {
            object_id: np.asarray(prompt.mask, bool)
            for object_id, prompt in waiting.items()
            if prompt.mask is not None and not prompt.points_at
        }

    def _understands(self, text: str | None) -> bool:
        """Whether there is a sentence that is asked; as in images, a chooser says which are not."""
        chooser: Any = getattr(self.encoder.model, "chooser", None)
        return text is not None and (chooser is None or chooser.understands(text))

    def _predict(
        self, frame: EncodedFrame, given: Mapping[int, np.ndarray], size: Size
    ) -> tuple[dict[int, float], Tensor]:
        """Score and probability map (O, H, W) of every known object, ascending by id."""
        ids = self.memory.object_ids
        maps: dict[int, Tensor] = {}
        for object_id, mask in given.items():
            source = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
            maps[object_id] = F.interpolate(
                source, size=size, mode="bilinear", align_corners=False
            )[0, 0]
        unknown = [object_id for object_id in ids if object_id not in given]
        guided = is_guided(self.encoder.model)
        sought = [i for i in unknown if guided and self.memory.is_sought(i)]
        followed = [object_id for object_id in unknown if object_id not in sought]
        answers = self._ask(frame, self._questions(followed, size))
        enough = self.settings.memory_score
        weak = [object_id for object_id in answers if is_weak(self.memory, object_id, enough)]
        for object_id, answer in self._ask(frame, self._questions_alone(weak, size)).items():
            if takes_over(self.memory, object_id, answer, answers[object_id]):
                answers[object_id] = answer
        answers |= self._ask_words(frame, self._due(sought), size)
        maps |= {object_id: probability for object_id, (_, probability) in answers.items()}
        device = frame.images.tensor.device
        scores = {object_id: float(object_id in given) for object_id in ids}
        for object_id in set(ids) - set(maps):  # shown once, not found there
            maps[object_id] = torch.zeros(size)
        probabilities = torch.stack([upload(maps[object_id], device) for object_id in ids])
        if answers:  # the only wait for them, whatever the number of objects
            found = torch.stack([score for score, _ in answers.values()]).tolist()
            scores |= zip(answers, found, strict=True)
        return scores, probabilities

    def _due(self, sought: Sequence[int]) -> list[int]:
        """Which of the objects that were not found yet the guide is asked about on this frame."""
        interval = self.settings.memory_interval if self._remembers else 1
        return [i for i in sought if self.memory.is_asked_again(i, interval)]

    def _ask_words(
        self, frame: EncodedFrame, object_ids: Sequence[int], size: Size
    ) -> dict[int, Answer]:
        """What sentences say by themselves, or the guide about them."""
        if not is_guided(self.encoder.model):
            return self._ask(frame, self._questions_alone(object_ids, size))
        words = [self.memory.words(object_id) for object_id in object_ids]
        found = ask_guide(self.encoder, frame, words, size)
        answers = dict(zip(object_ids, found, strict=True))
        threshold = self.settings.score_threshold
        doubted = [i for i, answer in answers.items() if is_doubted(answer, threshold)]
        own = self._ask(frame, self._questions_alone(doubted, size))
        return {i: weighed(answer, own.get(i), threshold) for i, answer in answers.items()}

    def _drop_other_sentences(
        self, frame: EncodedFrame, prompts: Mapping[int, Prompt], probabilities: Tensor
    ) -> None:
        """A sentence that does not mean what a mask of the user shows would only harm it.

        Args:
            prompts: object id -> what was given on this frame.
            probabilities: (O, H, W) of all objects.
        """
        both = [i for i in prompts if self.memory.has_text(i) and self.memory.was_shown(i)]
        size = (probabilities.shape[1], probabilities.shape[2])
        alone = self._ask_words(frame, both, size)
        for object_id, answer in alone.items():
            row = self.memory.object_ids.index(object_id)
            drop_other(self.memory, object_id, answer, probabilities[row] > MASK_THRESHOLD)

    def _questions(self, object_ids: Sequence[int], size: Size) -> list[Question]:
        """What is asked about objects; those that memory holds nothing of are left out."""
        batches = self.memory.batches(object_ids, self._batch_size(len(object_ids)))
        threshold = self.settings.score_threshold
        return [Question(self.memory.tracks(batch), size, threshold) for batch in batches]

    def _questions_alone(self, object_ids: Sequence[int], size: Size) -> list[Question]:
        """The same about their sentences alone."""
        return [question.alone() for question in self._questions(object_ids, size)]

    def _ask(self, frame: EncodedFrame, questions: Sequence[Question]) -> dict[int, Answer]:
        """What the model says about objects; what it was asked ahead is not asked again."""

        def ask(question: Question) -> dict[int, Answer]:
            return question.ask(self.encoder, frame)

        asked = {key: answers for key, (_, answers) in frame.asked.items()}
        ahead = {
            q: asked[q.key] for q in questions if q.key in asked and not asked[q.key].cancelled()
        }
        found = side_by_side(ask, [q for q in questions if q not in ahead], self._threads)
        found += [answers.result() for answers in ahead.values()]
        return {object_id: answer for each in found for object_id, answer in each.items()}

    def _batch_size(self, num: int) -> int:
        """Of the batches in which ``num`` objects are asked about: as many as threads, or more."""
        return even_size(num, self._threads, self.settings.objects_per_pass)

    def _finish(
        self,
        frame: EncodedFrame,
        given: Mapping[int, np.ndarray],
        scores: Mapping[int, float],
        probabilities: Tensor,
    ) -> FrameResult:
        """Merges the objects, remembers the visible ones and describes the frame."""
        ids = self.memory.object_ids
        claims = probabilities > MASK_THRESHOLD
        doubles = self._find_doubles(given, claims)
        kept = [row for row, object_id in enumerate(ids) if object_id not in doubles]
        competing = probabilities[kept] if doubles else probabilities
        label_map = merge(competing, [ids[row] for row in kept]).cpu().numpy()
        if self.settings.merge_rule == "separate":
            masks = dict(zip(ids, claims.cpu().numpy(), strict=True))
        else:
            masks = {object_id: label_map == object_id for object_id in ids}
        if self._remembers:
            own = {i: claims[ids.index(i)].cpu().numpy() for i in doubles}
            self._remember(
                frame, {i: m for i, m in (masks | own).items() if i not in given}, scores
            )
        self.memory.end_frame()
        keep = self.settings.keep_probabilities
        maps = probabilities.cpu().numpy() if keep else ()
        states = presences(
            masks,
            scores,
            claims,
            label_map,
            threshold=self.settings.score_threshold,
            seen=self.memory.was_seen,
        )
        for object_id in (i for i, mask in masks.items() if mask.any()):
            self.memory.mark_seen(object_id)
        return FrameResult(
            label_map=label_map,
            scores=dict(scores),
            boxes={i: mask_box(mask) for i, mask in masks.items()},
            areas={i: int(mask.sum()) for i, mask in masks.items()},
            masks=masks if self.settings.merge_rule == "separate" else {},
            probabilities=dict(zip(ids, maps, strict=True)) if keep else {},
            presence=states,
        )

    def _find_doubles(self, given: Mapping[int, np.ndarray], claims: Tensor) -> Mapping[int, int]:
        """As of ``Doubles.update``; none where every object or every frame stands alone."""
        if self.settings.merge_rule == "separate" or not self.settings.use_memory:
            return {}
        ids, memory = self.memory.object_ids, self.memory
        said = [i for i in ids if i not in given and memory.is_said(i)]
        seen = [i for i in ids if memory.was_seen(i)]
        return self._doubles.update(ids, claims[:, ::2, ::2], said=said, seen=seen)

    def _remember(
        self, frame: EncodedFrame, masks: Mapping[int, np.ndarray], scores: Mapping[int, float]
    ) -> None:
        """Takes the masks (H, W) that were found and are due into memory."""
        interval = self.settings.memory_interval
        due = [i for i, mask in masks.items() if mask.any() and self.memory.is_due(i, interval)]

        def remember(batch: Sequence[int]) -> None:
            references = self.encoder.masks(frame, [masks[i] for i in batch])
            for object_id, reference in zip(batch, references, strict=True):
                self.memory.update(object_id, reference, scores[object_id])

        side_by_side(remember, chunks(due, self._batch_size(len(due))), self._threads)
