"""Ctrl-C and SIGTERM in training: the step that runs is finished, so that it can be saved."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import multiprocessing

from unified.commands import Terminated

logger = logging.getLogger(__name__)


class Interruption:
    """A wish to stop, which is granted between steps; a second Ctrl-C is granted at once.

    Args:
        decides: False in processes that another one ends: what they would stop in the middle of is
            done together.

    Attributes:
        in_step: a step is half done.
        asked: what is raised at its end.
    """

    def __init__(self, *, decides: bool) -> None:
        self.in_step = False
        self._decides = decides
        self.asked: type[KeyboardInterrupt] | None = None

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within the block signals are heeded like this. Only main threads get them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, self._interrupt),
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._terminate),
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def begin_step(self) -> None:
        """A wish to stop waits from here on."""
        self.in_step = True

    def end_step(self) -> None:
        """Raises what was asked for during the step; from here on it is raised at once.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Terminated: after SIGTERM.
        """
        if self._decides:
            self.in_step = False
            if self.asked is not None:
                raise self.asked

    def ask(self, kind: type[KeyboardInterrupt]) -> None:
        """Asks to stop, as a signal does.

        Raises:
            KeyboardInterrupt: no step is half done.
        """
        if not self.in_step:
            raise kind
        if self._decides and self.asked is None:
            logger.info("stopping after this step; Ctrl-C stops without saving it")
        self.asked = kind

    def _interrupt(self, *_: Any) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.ask(KeyboardInterrupt)

    def _terminate(self, *_: Any) -> None:
        heed_no_more()
        self.ask(Terminated)


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Within the block SIGTERM raises ``Terminated``: what is written at the end is written.

    Not in processes that ``launch`` starts: it ends those that lost a partner, which may hang where
    no exception reaches them.
    """
    if multiprocessing.parent_process() is not None:
        yield
        return

    def end(*_: Any) -> None:
        heed_no_more()
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def heed_no_more() -> None:
    """What is written after SIGTERM is not interrupted.

    The whole group of processes may get it, and more than once; then workers of a data loader end,
    and its handler for that raises an error.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
