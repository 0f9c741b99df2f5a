"""Time a model by stage, on a clip of moving rectangles that is decoded, segmented and written.

    python tools/benchmark.py video --config-file configs/video_joint_r50.yaml --baseline
    python tools/benchmark.py video --frames 1000 --size 240x432 --json growth.json

Reports the median ms per frame and stage, one after the other, after two frames of warm-up;
"clock", the ms of a frame where the clip runs as in tools/infer_video.py, which reads, segments and
writes at once; the peak memory, with more than 100 frames also its growth since frame 100. Frames
are timed in whole periods of memory. --baseline runs the reference's algorithm too (of a SAM its
tracking by boxes), in turn on every frame; that remembers every frame, whatever the model does.
--clip takes folders of frames and label maps. A model without weights gets random ones that keep
every part busy; they find nothing, so no IoU is told. "systems" is a table of all (or of --model):
one sentence about a picture of the published size, in turn with the default model's.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unified.threads import set_thread_defaults

set_thread_defaults()

import torch

from unified.commands import run_command
from unified.engine import profiles
from unified.engine.benchmarking import measure
from unified.files import atomic_path
from unified.inference import benchmark, cli


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("mode", choices=("video", "image", "systems"))
    parser.add_argument("--frames", type=int, default=5, help="timed frames (default 5)")
    parser.add_argument("--objects", type=int, default=1, help="per frame (default 1)")
    parser.add_argument("--size", type=benchmark.picture_size, default=(480, 864), metavar="HxW")
    parser.add_argument("--baseline", action="store_true", help="also the reference's algorithm")
    parser.add_argument("--clip", type=Path, nargs=2, metavar=("FRAMES", "MASKS"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    cli.add_model_arguments(parser)
    return benchmark.check_options(parser, parser.parse_args(arguments))


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after bad input."""
    logging.basicConfig(level=logging.ERROR)
    options = parse_arguments(arguments)
    return run_command(lambda: write_report(options))


def write_report(options: argparse.Namespace) -> None:
    """Prints the report, and writes it to the file that was asked for."""
    with tempfile.TemporaryDirectory() as scratch:
        table = options.mode == "systems"
        report = print_table(options) if table else measure(options, Path(scratch))
    text = json.dumps(report, indent=1)
    if options.json:
        with atomic_path(options.json) as temporary:
            temporary.write_text(text + "\n")
    if options.mode != "systems":
        print(text)


def print_table(options: argparse.Namespace) -> dict[str, Any]:
    """Prints a row of every system as soon as it is measured; returns them all."""
    print(profiles.HEADER)
    rows = {}
    measured = profiles.measure_all(
        options.model, options.threads or torch.get_num_threads(), options.frames
    )
    for name, profile, found in measured:
        print(profiles.row(name, profile, found), flush=True)
        rows[name] = profiles.as_json(profile, found)
    return rows


if __name__ == "__main__":
    sys.exit(main())
