"""Train a chain of stages, each from the weights of the one before.

    python tools/train_stages.py --stages configs/stages_r50.yaml --num-gpus 8

Run the same command again to go on where it stopped, at the stage and the step. Keys and values at
the end override the configuration of every stage; OUTPUT_DIR is the folder of the chain.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unified.threads import set_thread_defaults

set_thread_defaults()

from unified.commands import add_max_pixels, run_command
from unified.dependencies import require


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", required=True, help="yaml file that lists the stages")
    for name in ("--num-gpus", "--num-machines", "--machine-rank", "--dist-url"):
        parser.add_argument(name, help="as in tools/train_net.py")
    add_max_pixels(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for all stages")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chain; 2 after bad input, 130 when stopped by Ctrl-C, 143 by SIGTERM."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return run_command(lambda: run(args), stopped="run the same command to go on")


def run(args: argparse.Namespace) -> int:
    """Reads the chain and runs it."""
    require("detectron2.engine")
    from unified.engine.interruption import ended_in_order
    from unified.engine.stages import read_stages, run_stages

    passed = []
    for name in ("num_gpus", "num_machines", "machine_rank", "dist_url"):
        if getattr(args, name) is not None:
            passed += [f"--{name.replace('_', '-')}", getattr(args, name)]
    # A chain that is ended ends its training too, or the next one would write beside it.
    with ended_in_order():
        return run_stages(read_stages(args.stages, args.opts), passed)


if __name__ == "__main__":
    sys.exit(main())
