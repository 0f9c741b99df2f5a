"""How every command ends: what a user can mend is one line on stderr, never a traceback.

Exit statuses: 0 done; 2 nothing was done, as arguments or inputs are wrong; 3 some inputs failed,
the others are done; 130 stopped by Ctrl-C; 143 by SIGTERM, where a command heeds it.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from unified.dependencies import require
from unified.errors import UnifiedError
from unified.image_files import LIMIT, MAX_PIXELS

MISUSE = 2  # what argparse returns, too
PARTLY = 3  # some inputs failed
INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT or SIGTERM, as a shell reports it


class Terminated(KeyboardInterrupt):
    """SIGTERM, which queueing systems send, in a command that ends as after Ctrl-C."""


def run_command(work: Callable[[], int | None], *, stopped: str = "") -> int:
    """Runs ``work`` and returns the exit code of its command.

    Args:
        work: returns an exit code; None is 0.
        stopped: what Ctrl-C or SIGTERM left behind, or how to go on.

    Returns:
        The code of ``work``; 2 after an error that a user can mend or a file that cannot be read or
        written; 130 after Ctrl-C; 143 after SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names on disk may be no text in any encoding: they are shown escaped.
            stream.reconfigure(errors="backslashreplace")
    try:
        return work() or 0
    except UnifiedError as error:
        message = f"error: {error}"
    except OSError as error:
        known = error.filename is not None and error.strerror
        message = f"error: {error.filename}: {error.strerror}" if known else f"error: {error}"
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"stopped: {stopped}\n" if stopped else "stopped\n")
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    sys.stderr.write(f"{message}\n")
    return MISUSE


@contextmanager
def logs_beside_progress() -> Iterator[None]:
    """Within the block logs go to stderr, clear of progress bars; of equal lines only the first."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    with require("tqdm.contrib.logging").logging_redirect_tqdm():
        logging.root.handlers[-1].addFilter(_Once())  # many inputs may give the same warning
        yield


class _Once(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        known = message in self._seen
        self._seen.add(message)
        return not known


def share(text: str) -> float:
    """An argument between 0 and 1, both excluded."""
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Adds the limit of the images that a command reads, in all of its processes."""
    parser.add_argument(
        "--max-pixels",
        type=int,
        action=_SetLimit,
        metavar="NUM",
        help=f"images with more pixels are an error (default {MAX_PIXELS})",
    )


class _SetLimit(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, value: Any, option: Any = None) -> None:
        if value < 1:
            parser.error(f"{option} is {value}: expected a number of pixels")
        setattr(namespace, self.dest, value)
        os.environ[LIMIT] = str(value)
