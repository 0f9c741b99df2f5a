"""Frames of a stream that are read, encoded and asked about before their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from unified.inference.answers import Question
from unified.inference.frames import EncodedFrame, FrameAhead, FrameEncoder
from unified.inference.workers import then

T = TypeVar("T")


class Coming(Generic[T]):
    """A frame before its turn, which may not have been read yet.

    Args:
        read: gives the frame and its pixels, None after the last one.
    """

    def __init__(self, read: Future[tuple[T, np.ndarray] | None]) -> None:
        self.read = read
        self._encoded: Future[EncodedFrame | None] | None = None
        self._state: object = None
        self._asked: dict[Hashable, tuple[Question, Future[Any]]] = {}
        self._unwanted: list[Future[Any]] = []

    def encode(self, encoder: FrameEncoder, pool: Executor) -> None:
        """Has it encoded in a pool as soon as it was read, once."""

        def work(item: tuple[T, np.ndarray] | None) -> EncodedFrame | None:
            return None if item is None else encoder.ahead(item[1])

        if self._encoded is None:
            self._state = encoder.state  # before the model is used, which may change meanwhile
            self._encoded = then(self.read, pool, work)

    def ask(self, questions: Sequence[Question], encoder: FrameEncoder, pool: Executor) -> None:
        """Has questions asked in a pool as soon as it is encoded, each once."""

        def work(question: Question, frame: EncodedFrame | None) -> Any:
            return None if frame is None else question.ask(encoder, frame)

        assert self._encoded is not None, "a frame is encoded before it is asked about"
        for question in questions:
            if question.key not in self._asked:
                answers = then(self._encoded, pool, partial(work, question))
                self._asked[question.key] = question, answers

    def keep(self, questions: Sequence[Question]) -> None:
        """Drops what was asked beside these, which nobody will want to know."""
        for key in self._asked.keys() - {question.key for question in questions}:
            answers = self._asked.pop(key)[1]
            if not answers.cancel():
                self._unwanted.append(answers)

    def in_turn(self, image: np.ndarray) -> np.ndarray | FrameAhead:
        """What ``VideoPredictor.step`` takes."""
        if self._encoded is None:
            return image
        return FrameAhead(image, self._encoded, self._state, dict(self._asked))

    def drop(self) -> list[Future[Any]]:
        """Ends what has not begun; returns what has."""
        work = [self.read, *self._unwanted, *(answers for _, answers in self._asked.values())]
        work += [] if self._encoded is None else [self._encoded]
        return [each for each in work if not each.cancel()]


def coming_frames(
    frames: Iterable[T],
    image: Callable[[T], np.ndarray],
    num: int,
    plan: Callable[[Sequence[Coming[T]]], None],
) -> Generator[tuple[T, np.ndarray | FrameAhead], None, None]:
    """Every frame in its turn; ``num`` beyond it are read in a thread.

    An error of reading is raised when the frame is asked for. What was begun about a frame and was
    not wanted in its turn is dropped; to close the iterator waits for what cannot be stopped.

    Args:
        plan: called before each turn with the frames that come, the one whose turn it is first.
    """
    source = ((frame, image(frame)) for frame in frames)
    coming: deque[Coming[T]] = deque()
    going_on: list[Future[Any]] = []
    with ThreadPoolExecutor(1) as reader:
        try:
            while True:
                while len(coming) <= num:
                    coming.append(Coming(reader.submit(next, source, None)))
                plan(coming)
                found = coming[0].read.result()
                if found is None:
                    return
                yield found[0], coming[0].in_turn(found[1])
                going_on += coming.popleft().drop()
                going_on = [work for work in going_on if not work.done()]
        finally:
            wait([*going_on, *(work for each in coming for work in each.drop())])
