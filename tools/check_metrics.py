"""Compare the metrics with recorded numbers of the official evaluators, or measure their speed.

python tools/check_metrics.py DIR          # every *_expected.json of DIR
python tools/check_metrics.py --benchmark  # against a plain implementation, in one run
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unified.commands import MISUSE, run_command
from unified.errors import UnifiedError


def main(arguments: list[str] | None = None) -> int:
    """Prints one line per file; returns 0 if all agree, 1 if one does not, 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder with *_expected.json")
    parser.add_argument("--benchmark", action="store_true", help="measure speed and memory")
    options = parser.parse_args(arguments)
    if options.folder is None and not options.benchmark:
        parser.error("give the folder of recorded numbers, or --benchmark")
    return run_command(measure if options.benchmark else lambda: check(options.folder))


def measure() -> None:
    """Prints speed and memory."""
    from tests.unified.evaluation.benchmark import run_benchmark

    for line in run_benchmark():
        print(line, flush=True)


def check(folder: Path) -> int:
    """Prints the largest difference per file; one that cannot be used does not stop the others."""
    from tests.unified.evaluation.golden.check import check_file, find_recordings

    files = find_recordings(folder)
    width = max(len(path.name) for path in files)
    failed, unusable = 0, 0
    for path in files:
        try:
            found = check_file(path)
        except UnifiedError as error:
            unusable += 1
            print(f"{path.name:{width}}  unusable", flush=True)
            print(f"error: {error}", file=sys.stderr)
            continue
        failed += not found.passed
        print(f"{path.name:{width}}  {found.line()}", flush=True)
    print(f"{len(files) - failed - unusable} of {len(files)} files agree")
    return MISUSE if unusable else int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
