"""Compare the metrics with recorded numbers of the official evaluators, or measure their speed.

python tools/check_metrics.py DIR          # every *_expected.json of DIR
python tools/check_metrics.py --benchmark  # against a plain implementation, in one run
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unified.errors import UnifiedError


def main(arguments: list[str] | None = None) -> int:
    """Prints one line per file; returns 0 if all agree, 1 if one does not, 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder with *_expected.json")
    parser.add_argument("--benchmark", action="store_true", help="measure speed and memory")
    options = parser.parse_args(arguments)
    try:
        if options.benchmark:
            from unified.evaluation.benchmark import run_benchmark

            for line in run_benchmark():
                print(line, flush=True)
            return 0
        if options.folder is None:
            parser.error("give the folder of recorded numbers, or --benchmark")
        return check(options.folder)
    except UnifiedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def check(folder: Path) -> int:
    """Prints the largest difference per file."""
    from unified.evaluation.golden import check_folder

    agreements = check_folder(folder)
    width = max(len(agreement.file) for agreement in agreements)
    for a in agreements:
        line = (
            f"{a.file:{width}}  {'pass' if a.passed else 'FAIL'}  largest difference "
            f"{a.difference:.1e} of {a.num_values} values (tolerance {a.tolerance:.0e})"
        )
        print(line if a.passed else f"{line}, at: {a.where}")
    failed = sum(not a.passed for a in agreements)
    print(f"{len(agreements) - failed} of {len(agreements)} files agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
