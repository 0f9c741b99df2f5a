"""Time the ways to run one model on clips, side by side: as it is, compiled, exported.

    python tools/benchmark_ways.py --size 480x854 --compile --exported exported

Prints a table with rows for 1, 3 and 10 objects, or others: medians of the time of the processor
(of all threads together) and of the clock, from a frame to its label map. The ways take turns on
every frame, so that all meet the same machine. Folders for --exported come from tools/export.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unified.threads import set_thread_defaults

set_thread_defaults()

from unified.commands import run_command
from unified.export.side_by_side import HEADER, measure, ways_of
from unified.files import atomic_path
from unified.inference import cli
from unified.inference.benchmark import picture_size
from unified.inference.profiling import environment


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("--frames", type=int, default=5, help="timed frames (default 5)")
    parser.add_argument(
        "--objects", type=int, nargs="+", default=[1, 3, 10], metavar="N", help="rows of the table"
    )
    parser.add_argument("--size", type=picture_size, default=(480, 854), metavar="HxW")
    parser.add_argument("--exported", type=Path, nargs="+", default=[], metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table there")
    cli.add_model_arguments(parser)
    options = parser.parse_args(arguments)
    if min(options.frames, *options.objects) < 1:
        parser.error("--frames and --objects are at least 1")
    return options


def run(options: argparse.Namespace) -> None:
    """Prints the table row by row, and writes it to the file that was asked for."""
    model = cli.load_model(options)
    ways = ways_of(model, options.exported, cli.chosen_settings(options))
    print(HEADER)
    rows = []
    for num in options.objects:
        for row in measure(ways, num_objects=num, size=options.size, num_frames=options.frames):
            print(row, flush=True)
            rows.append(asdict(row))
    where = environment(next(model.parameters()).device)
    if options.json:
        content = {"model": model.info.name, "size": options.size, "environment": where}
        with atomic_path(options.json) as temporary:
            temporary.write_text(json.dumps({**content, "rows": rows}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after bad input."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    options = parse_arguments(arguments)
    return run_command(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
