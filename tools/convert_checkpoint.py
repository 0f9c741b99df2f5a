"""Converts UniRef checkpoints between the official layout and ours.

    python tools/convert_checkpoint.py video_joint_r50.pth uniref_r50.safetensors
    python tools/convert_checkpoint.py uniref_r50.safetensors back.pth --to official

Nothing is lost: entries that our model does not use travel along and come back, aliases are made
again. Reads .pth, .safetensors and .pkl; the suffix of OUT chooses what is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.uniref.checkpoint import find_uniref_keys
from unified.checkpoint import FOREIGN_PREFIX, read_weights, write_weights
from unified.errors import CheckpointError, UnifiedError


def main() -> int:
    """Exit code 0 if every entry found its place, 1 if some are unexpected, 2 on errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument("--to", choices=("native", "official"), default="native")
    args = parser.parse_args()
    try:
        return convert(args.source, args.target, official=args.to == "official")
    except (UnifiedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def convert(source: Path, target: Path, *, official: bool) -> int:
    """Writes ``target`` and prints what happened to the entries that were not just renamed."""
    weights = read_weights(source)
    table = find_uniref_keys(weights)
    if table.is_foreign(weights) == official:
        raise CheckpointError(
            f"{source} already has the {'official' if official else 'native'} layout: "
            f"nothing to convert, choose --to {'native' if official else 'official'}"
        )
    if official:
        foreign = table.to_foreign(weights)
        write_weights(target, foreign)
        print(f"{len(weights)} entries -> {len(foreign)} in the official layout: {target}")
        return 0
    native, report = table.to_native(weights)
    write_weights(target, native)
    renamed = sum(not key.startswith(FOREIGN_PREFIX) for key in native)
    print(f"{len(weights)} entries -> {renamed} in the native layout: {target}")
    for title, keys in (
        ("aliases, stored once", report.aliases),
        ("unused, kept for the way back", report.unused),
        ("UNEXPECTED, kept for the way back", report.unexpected),
    ):
        print(f"{len(keys)} {title}")
        for key in keys:
            print(f"  {key}")
    return 1 if report.unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
