"""What the video loop remembers of each object: at most three frames, however long the video is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unified.structures import Reference, References, join_levels, stack_levels

LOST = 3  # frames


@dataclass(frozen=True)
class Track:
    """References to one object, each L levels of batch 1.

    Attributes:
        text: its sentence, for the whole video.
        words: of that sentence.
        first: the frame (or the supports) that defined it.
        corrected: the last frame on which the user corrected it with a mask.
        latest: the last frame on which it was seen; the one of the last mask of the user, or
            ``first``, until then.
        shown: points or a box on this frame.
        tentative: the next mask of the object defines it.
        found_with: the score with which the sentence alone found it on the ``first`` frame; None
            if the user showed it there.
        age: frames since ``latest``, or since the object is known.
    """

    text: References | None = None
    words: str = ""
    first: References | None = None
    corrected: References | None = None
    latest: References | None = None
    shown: References | None = None
    tentative: bool = False
    found_with: float | None = None
    age: int = 0

    @property
    def told(self) -> tuple[References | None, ...]:
        """All that answers depend on."""
        return self.text, self.first, self.corrected, self.latest, self.shown

    @property
    def frames(self) -> tuple[References, ...]:
        """The frames remembered, each once: attending to the same tokens twice changes nothing."""
        kept = (self.first, self.corrected, self.latest)
        return tuple({id(frame): frame for frame in kept if frame is not None}.values())

    def due_in(self, interval: int) -> int:
        """Frames until a mask found is remembered: the first one, then every ``interval`` frames.

        0 stands for the next frame, less for frames on which none was found.
        """
        begun = self.latest is not None and not self.tentative
        return (interval if begun else 0) - self.age

    @property
    def layout(self) -> tuple[bool, int]:
        """Objects of one layout can share a batch without much padding."""
        return self.text is not None, len(self.frames)


class VideoMemory:
    """Slots per object: the first frame and the latest, and a correction if there is one.

    Source: UniRef++ (arXiv:2312.15715), section 3.5, which knows no corrections.
    """

    def __init__(self) -> None:
        self._tracks: dict[int, Track] = {}
        self._seen: set[int] = set()

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Known objects, ascending."""
        return tuple(sorted(self._tracks))

    def add(
        self,
        object_id: int,
        text: References | None = None,
        words: str | None = None,
        mask: References | None = None,
        *,
        shown: References | None = None,
        tentative: bool = False,
    ) -> None:
        """Makes an object known, or corrects a known one.

        A sentence replaces the one before. A mask is remembered beside the first one that the user
        gave, and replaces what a sentence found.

        Args:
            words: of the sentence ``text``.
            shown: points or a box on this frame, which are forgotten after it.
            tentative: the frames known so far are forgotten, the mask found next takes the place
                of ``mask``.
        """
        track = self._tracks.get(object_id, Track())
        if text is not None:
            age = 0 if track.latest is None else track.age
            track = replace(track, text=text, words=words or "", age=age)
        if mask is not None or tentative:
            was_shown = track.first is not None and track.found_with is None
            if was_shown and not track.tentative and not tentative:
                track = replace(track, corrected=mask, latest=mask)
            else:
                track = replace(track, first=mask, corrected=None, latest=mask, found_with=None)
            track = replace(track, shown=shown, tentative=tentative, age=0)
        self._tracks[object_id] = track

    def update(self, object_id: int, mask: References, score: float) -> None:
        """The object was seen again; an object known by text alone is now defined by its mask.

        Args:
            score: of the answer that the mask is of.
        """
        track = self._tracks[object_id]
        if track.first is None and not track.tentative:
            track = replace(track, first=mask, found_with=score)
        elif track.tentative:
            track = replace(track, first=mask)
        self._tracks[object_id] = replace(track, latest=mask, tentative=False, age=0)

    def steady(self, object_ids: Sequence[int], interval: int) -> float:
        """How many frames, from the next one on, will likely be asked with what is known now.

        Those until a mask is remembered; an object that was not found ``LOST`` times when it was
        due is not expected. Prompts are not foreseen, nor is that a sentence means something else.
        """
        waits = [self._tracks[object_id].due_in(interval) for object_id in object_ids]
        return min((max(0, wait) + 1 for wait in waits if wait > -LOST), default=math.inf)

    def is_due(self, object_id: int, interval: int) -> bool:
        """Whether a mask found now is remembered: the first one, then every ``interval`` frames."""
        return self._tracks[object_id].due_in(interval) <= 0

    def is_sought(self, object_id: int) -> bool:
        """Whether an object is known by its sentence alone."""
        track = self._tracks[object_id]
        return track.text is not None and not track.frames and track.shown is None

    def is_asked_again(self, object_id: int, interval: int) -> bool:
        """Whether a sentence that found nothing is asked now: every ``interval`` frames."""
        return self._tracks[object_id].age % interval == 0

    def words(self, object_id: int) -> str:
        """Those of the sentence of an object."""
        return self._tracks[object_id].words

    def found_with(self, object_id: int) -> float | None:
        """The score of the sentence that memory rests on; None if it rests on no sentence."""
        return self._tracks[object_id].found_with

    def confirm(self, object_id: int, score: float) -> None:
        """The sentence alone found the same object again."""
        track = self._tracks[object_id]
        assert track.found_with is not None
        self._tracks[object_id] = replace(track, found_with=max(track.found_with, score))

    def was_shown(self, object_id: int) -> bool:
        """Whether memory rests on a mask or examples of the user."""
        track = self._tracks[object_id]
        return track.first is not None and track.found_with is None and not track.tentative

    def is_said(self, object_id: int) -> bool:
        """Whether a sentence alone says what it is: the user has shown nothing of it."""
        track = self._tracks[object_id]
        pointed_at = track.tentative or track.shown is not None
        return track.text is not None and not pointed_at and not self.was_shown(object_id)

    def drop_text(self, object_id: int) -> None:
        """The sentence does not mean the object that the user showed."""
        self._tracks[object_id] = replace(self._tracks[object_id], text=None)

    def restart(self, object_id: int) -> None:
        """The sentence means something else than what is remembered: the next mask defines it."""
        track = self._tracks[object_id]
        self._tracks[object_id] = replace(track, first=None, latest=None, found_with=None)

    def end_frame(self) -> None:
        """Points and boxes hold for one frame, and what is remembered is one frame older."""
        for object_id, track in self._tracks.items():
            self._tracks[object_id] = replace(track, shown=None, age=track.age + 1)

    def has_text(self, object_id: int) -> bool:
        """Whether a sentence describes the object."""
        return self._tracks[object_id].text is not None

    def mark_seen(self, object_id: int) -> None:
        """The object has a pixel on this frame."""
        self._seen.add(object_id)

    def was_seen(self, object_id: int) -> bool:
        """Whether the object had a pixel on an earlier frame."""
        return object_id in self._seen

    def forget(self, object_id: int) -> None:
        """Drops an object; unknown ids are fine."""
        self._tracks.pop(object_id, None)
        self._seen.discard(object_id)

    def batches(self, object_ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
        """Groups of at most ``size`` ids whose references can be batched.

        Ids without any reference are left out.
        """
        groups: dict[tuple[tuple[bool, int], int], list[int]] = defaultdict(list)
        for object_id in object_ids:
            track = self._tracks[object_id]
            if track.text is not None or track.frames or track.shown is not None:
                alone = 0 if track.shown is None else object_id  # points differ in number
                groups[track.layout, alone].append(object_id)
        return [chunk for ids in groups.values() for chunk in chunks(ids, size)]

    def tracks(self, batch: Sequence[int]) -> dict[int, Track]:
        """What is known now of the objects of a batch."""
        return {object_id: self._tracks[object_id] for object_id in batch}


def references(tracks: Sequence[Track]) -> tuple[tuple[Reference, ...], ...]:
    """The kinds of reference to objects of one layout, text before masks; rows are objects.

    Frames are joined after objects are stacked: so what objects share of a frame stays shared.
    """
    texts = [track.text for track in tracks if track.text is not None]
    slots = [stack_levels(slot) for slot in zip(*(track.frames for track in tracks), strict=True)]
    shown = [track.shown for track in tracks if track.shown is not None]
    kinds = [stack_levels(texts)] if texts else []
    kinds += [join_levels(slots)] if slots else []
    return (*kinds, stack_levels(shown)) if shown else tuple(kinds)


def chunks(ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """The ids by ``size`` at a time."""
    return [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
