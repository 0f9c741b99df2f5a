"""How every command ends: what a user can mend is one line on stderr, never a traceback.

Exit statuses: 0 done; 2 nothing was done, as arguments or inputs are wrong; 3 some inputs failed,
the others are done; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from unified.errors import UnifiedError
from unified.image_files import LIMIT, MAX_PIXELS

MISUSE = 2  # what argparse returns, too
PARTLY = 3  # some inputs failed
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def run_command(work: Callable[[], int | None], *, stopped: str = "") -> int:
    """Runs ``work`` and returns the exit code of its command.

    Args:
        work: returns an exit code; None is 0.
        stopped: what Ctrl-C left behind, or how to go on.

    Returns:
        The code of ``work``; 2 after an error that a user can mend or a file that cannot be read or
        written; 130 after Ctrl-C.
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
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped: {stopped}\n" if stopped else "stopped\n")
        return INTERRUPTED
    sys.stderr.write(f"{message}\n")
    return MISUSE


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
