"""Work beside that of the caller, such as writing a frame while the next one is segmented."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """Runs calls in a thread of its own, one after the other, in the order given.

    A call waits until the one before has ended, and raises what that raised; leaving the context
    waits for the last one.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._last: Future[Any] | None = None

    def __call__(self, work: Callable[..., object], *args: object) -> None:
        """Starts a call."""
        self._wait()
        self._last = self._pool.submit(work, *args)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:  # else the error of the caller is told
            self._wait()
