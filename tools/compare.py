"""Train one configuration once for every value of a key, with equal budgets, and print a table.

    python tools/compare.py --runs configs/fusions_tiny.yaml

Run the same command again to go on where it stopped. Keys and values at the end override the
configuration of every run; OUTPUT_DIR is the folder of all of them.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unified.commands import run_command
from unified.dependencies import require


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, help="yaml file that says what is compared")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for all runs")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains and prints; 2 after bad input, 130 when stopped by Ctrl-C, 143 by SIGTERM."""
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return run_command(lambda: run(args), stopped="run the same command to go on")


def run(args: argparse.Namespace) -> int:
    """Reads what is compared, trains it and prints the table."""
    require("detectron2.engine")
    from unified.engine.comparison import read_comparison, run_comparison, table
    from unified.engine.interruption import ended_in_order

    comparison = read_comparison(args.runs, args.opts)
    with ended_in_order():
        code = run_comparison(comparison)
    if code == 0:
        print("\n".join(table(comparison)))
    return code


if __name__ == "__main__":
    sys.exit(main())
