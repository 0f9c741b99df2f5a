"""Check predictions for an evaluation server and write the zip it wants.

    python tools/submit.py mevis --pred out --out mevis.zip --data MeViS/valid
    python tools/submit.py davis17-testdev --check mine.zip --data DAVIS

Only with --data is it known which videos, frames and objects must be there, and their sizes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unified.commands import add_max_pixels, run_command
from unified.errors import InputError
from unified.evaluation.reading import read_split
from unified.evaluation.report import counted
from unified.evaluation.results import read_youtube_vis
from unified.evaluation.submission import (
    SERVERS,
    Files,
    Server,
    find_server,
    open_files,
    write_submission,
)
from unified.evaluation.submission_check import Fault, check_results, check_submission
from unified.evaluation.submission_videos import read_videos

MAX_SHOWN = 50


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if all is well, 1 if faults were found (no zip then), 2 on unusable input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("server", help=", ".join(SERVERS))
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pred", type=Path, help="folder of predictions, or results.json")
    source.add_argument("--check", type=Path, metavar="ZIP", help="only check this zip")
    add("--out", type=Path, help="zip to write")
    add("--data", type=Path, help="data set folder with JPEGImages, or its instances JSON")
    add("--meta", type=Path, help="meta_expressions.json; default: that of --data")
    add("--split", type=Path, help="videos to submit: text, or JSON; default: those of the server")
    add_max_pixels(parser)
    options = parser.parse_args(arguments)
    if options.pred is not None and options.out is None:
        parser.error("--pred needs --out file.zip")
    return run_command(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Opens what is to be submitted, and submits it."""
    server = find_server(options.server)
    if options.check is not None and options.check.suffix != ".zip":
        raise InputError(
            f"{options.check} is no zip: --check looks at what goes to the server, --pred "
            "checks and zips a folder or results.json"
        )
    with open_files(server, options.pred or options.check) as files:
        return submit(server, files, options)


def submit(server: Server, files: Files, options: argparse.Namespace) -> int:
    """Checks, and writes if there is no fault."""
    if faults := find_faults(server, files, options):
        show(faults, files)
        return 1
    if options.pred is None:
        print(f"{options.check}: no fault found")
    else:
        number = write_submission(server, files, options.out)
        print(f"{options.out}: {counted(number, 'file')}, no fault found")
    if options.data is None:
        print("not checked: whether all videos, frames and objects are there. Give --data for that")
    return 0


def find_faults(server: Server, files: Files, options: argparse.Namespace) -> list[Fault]:
    """Checks a submission of this kind."""
    if server.content == "results":
        truth = None if options.data is None else read_youtube_vis(options.data)
        return check_results(files, truth)
    videos = None
    if options.data is not None:
        names = read_split(options.split, None).names
        videos = read_videos(server, options.data, options.meta, names)
    return check_submission(server, files, videos, num_workers=os.cpu_count() or 1, progress=True)


def show(faults: list[Fault], files: Files) -> None:
    """Prints the first faults and their number."""
    for fault in faults[:MAX_SHOWN]:
        print(f"fault: {fault}")
    if len(faults) > MAX_SHOWN:
        print(f"... and {len(faults) - MAX_SHOWN} more")
    end = ", no zip was written" if files.archive is None else ""
    print(f"{files.root}: {counted(len(faults), 'fault')}{end}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
