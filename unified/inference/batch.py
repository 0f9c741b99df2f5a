"""Many inputs in one run: one that fails is listed at the end, the others are done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from unified.commands import MISUSE, PARTLY
from unified.dependencies import require
from unified.errors import InputError, OtherRunError

NAMES_SHOWN = 20  # of the inputs of one run
T = TypeVar("T")


class Batch:
    """What became of each input of a run.

    Args:
        unit: what one input is, such as "image".
        num: how many there are. The error of an only one ends the run.
    """

    def __init__(self, unit: str, num: int) -> None:
        self.unit, self.num = unit, num
        self.finished: list[str] = []
        self.failed: dict[str, str] = {}
        self.earlier = 0  # that an earlier run had finished
        self._num_shown = 0

    def attempt(self, name: str, work: Callable[[], T]) -> T | None:
        """What ``work`` returns for one input, or None: then ``failed`` says why.

        Raises:
            InputError: the only input failed.
            OtherRunError: the folder holds another run's results, which no input may replace.
        """
        try:
            result = work()
        except OtherRunError:
            raise
        except InputError as error:
            if self.num == 1:
                raise
            self.failed[name] = str(error)
            return None
        self.finished.append(name)
        return result

    def show(self, name: str, found: str) -> None:
        """Prints a line about what was found in an input; of many inputs for the first alone."""
        self._num_shown += 1
        lines = [f"{name}: {found}"] if self._num_shown <= NAMES_SHOWN else []
        if self._num_shown == NAMES_SHOWN < self.num:
            lines.append("and so on: results.json lists what was found")
        for line in lines:
            require("tqdm").tqdm.write(line)

    def report(self, skipped: Sequence[Path] = ()) -> int:
        """Says on stderr what was finished, skipped and failed; returns the exit status.

        Args:
            skipped: files of other kinds that were found among the inputs.
        """
        lines = []
        if self.earlier:
            lines.append(f"already done: {self._count(self.earlier)}")
        if skipped:
            names = ", ".join(path.name for path in skipped[:NAMES_SHOWN])
            more = len(skipped) - NAMES_SHOWN
            rest = f" and {more} more" if more > 0 else ""
            lines.append(f"skipped, not of a kind that is read: {names}{rest}")
        if self.failed:
            lines.append(f"finished: {self._count(len(self.finished))}")
            lines.append(f"failed: {self._count(len(self.failed))}")
            for name, reason in self.failed.items():
                lines.append(f"  {reason}" if name in reason else f"  {name}: {reason}")
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        if not self.failed:
            return 0
        return PARTLY if self.finished or self.earlier else MISUSE

    def _count(self, number: int) -> str:
        return f"{number} {self.unit}{'' if number == 1 else 's'}"
