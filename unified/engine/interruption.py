"""Ctrl-C in training: the step that runs is finished, so that it can be saved."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


class Interruption:
    """A wish to stop, which is granted between steps; a second one is granted at once.

    Args:
        decides: False in processes that another one ends: what they would stop in the middle of is
            done together.

    Attributes:
        in_step: a step is half done.
    """

    def __init__(self, *, decides: bool) -> None:
        self.in_step = False
        self._decides, self._asked = decides, False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within the block Ctrl-C is heeded like this. Only main threads get signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def begin_step(self) -> None:
        """Ctrl-C waits from here on."""
        self.in_step = True

    def end_step(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C came during the step; from here on it does at once."""
        if self._decides:
            self.in_step = False
            if self._asked:
                raise KeyboardInterrupt

    def _ask(self, number: int, _: Any) -> None:
        if self._asked or not self.in_step:
            raise KeyboardInterrupt
        self._asked = True
        if self._decides:
            logger.info("stopping after this step; Ctrl-C again stops without saving it")
