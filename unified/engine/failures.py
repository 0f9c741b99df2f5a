"""One process fails, all end: word of it goes round beside the collectives that would hang."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from unified.commands import MISUSE
from unified.errors import UnifiedError

LOST = "process 0 was lost: continue with --resume"
_FAILURE, _READY = "failure", "ready"
_PERIOD, _PATIENCE = 0.5, 15.0  # seconds between looks, and until the others count as lost
_GRACE = 2.0  # seconds in which the one that failed is the first of its machine to end


class FailureWatch:
    """Ends this process when another one of the job has failed.

    A process that waits in a collective cannot be told otherwise: gloo and NCCL give up after half
    an hour. The first process that fails leaves its message in a store, which a thread of every
    other one looks at.

    Args:
        rank: of this process among ``world`` ones, ``local_world`` of them on each machine.
    """

    def __init__(self, *, rank: int, world: int, local_world: int) -> None:
        self.rank, self.world, self.local_world = rank, world, local_world
        # The group's own store, which all have reached; by a connection that nothing else blocks.
        self.store = PrefixStore("failures", _get_default_store().clone())
        self.store.set_timeout(timedelta(seconds=_PATIENCE))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def fail(self, error: BaseException) -> int:
        """Tells the others, waits until they know, and returns the exit code."""
        code = MISUSE if isinstance(error, UnifiedError) else 1
        text = str(error) if code == MISUSE else f"{type(error).__name__}: {error}"
        if not isinstance(error, Exception):
            text = "it was stopped: continue with --resume"
        message = f"{self.rank} {code} {text}"
        try:
            first = self.store.compare_set(_FAILURE, "", message).decode()
        except RuntimeError:
            _say(LOST)
            os._exit(1)
        if first != message:
            self._thread.join()  # another process was first, so this one is about to end
        self._ended.set()
        if code == MISUSE:  # of other errors the traceback follows
            _say(f"process {self.rank}: {text}")
        self._wait_for_others()
        return code

    def finish(self) -> None:
        """Ends the watch when every process has done its work."""
        dist.barrier()
        self._ended.set()
        self.store.add(_READY, 1)
        if self.rank == 0:  # the store is in this process
            self._wait_for_others(self.world)

    def _wait_for_others(self, num: int | None = None) -> None:
        """Until the others are ready to end, or the process with the store has ended."""
        end = time.monotonic() + _PATIENCE
        with suppress(RuntimeError):
            while self.store.add(_READY, 0) < (num or self.world - 1) and time.monotonic() < end:
                time.sleep(_PERIOD / 10)

    def _look(self) -> None:
        while not self._ended.wait(_PERIOD):
            try:
                if not self.store.check([_FAILURE]):
                    continue
                message = self.store.get(_FAILURE).decode()
            except RuntimeError:
                if not self._ended.is_set():
                    _say(LOST)
                    os._exit(1)
                return
            rank, code, text = message.split(" ", 2)
            if int(rank) != self.rank:
                self._end_after(int(rank), int(code), text)
            return

    def _end_after(self, failed: int, code: int, text: str) -> None:
        """Ends this process, without clean-up that would wait for those that no longer answer."""
        elsewhere = failed // self.local_world != self.rank // self.local_world
        if elsewhere and self.rank % self.local_world == 0:
            _say(f"process {failed}: {text}")
        self.store.add(_READY, 1)
        self._wait_for_others()
        if not elsewhere:
            time.sleep(_GRACE)
        os._exit(code)


def _say(message: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
