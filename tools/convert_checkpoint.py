"""Converts checkpoints between published layouts and ours, and makes small files of ours.

    python tools/convert_checkpoint.py published.pth ours.safetensors
    python tools/convert_checkpoint.py ours.safetensors back.pth --to official
    python tools/convert_checkpoint.py model_final.pth small.safetensors --half \\
        --without text_encoder.bert.

Nothing is lost: entries that our model does not use travel along and come back, aliases are made
again. ``--half`` stores float16, which loads as float32; parts left out by ``--without`` are taken
from where the configuration says, as before training. Reads .pth, .safetensors and .pkl; the suffix
of OUT chooses what is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unified.checkpoint import FOREIGN_PREFIX, KeyTable, Weights, read_weights, write_weights
from unified.commands import run_command
from unified.engine.system import find_systems
from unified.errors import CheckpointError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if every entry found its place, 1 if some are unexpected, 2 on errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument(
        "--to", default="native", metavar="LAYOUT", help="native (ours, the default), official, ..."
    )
    parser.add_argument("--half", action="store_true", help="float16 instead of float32")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="PREFIX", help="entries of ours to leave out"
    )
    args = parser.parse_args(arguments)
    if args.to != "native" and (args.half or args.without):
        parser.error("--half and --without make files of our layout, not published ones")
    if args.half or args.without:
        work = partial(shrink, args.source, args.target, half=args.half, without=args.without)
    else:
        work = partial(convert, args.source, args.target, args.to)
    return run_command(work)


def shrink(source: Path, target: Path, *, half: bool, without: Sequence[str]) -> int:
    """Writes weights of our layout as a smaller file of our layout."""
    weights = read_weights(source)
    foreign = next((name for name, table in tables(weights) if table.is_foreign(weights)), None)
    if foreign is not None:
        raise CheckpointError(f"{source} has the {foreign} layout: convert it to ours first")
    for prefix in without:
        if not any(key.startswith(prefix) for key in weights):
            raise CheckpointError(f"{source} has no entry that starts with {prefix!r}")
    kept = {k: v for k, v in weights.items() if not k.startswith(tuple(without))}
    if half:
        kept = {k: v.half() if v.is_floating_point() else v for k, v in kept.items()}
    write_weights(target, kept)
    size = target.stat().st_size / 1e6
    print(f"{len(kept)} of {len(weights)} entries, {size:.1f} MB: {target}")
    return 0


def tables(weights: Weights) -> list[tuple[str, KeyTable]]:
    """Layout and table of every system and layout that a file may belong to."""
    layouts = [layout for found in find_systems().values() for layout in found.layouts]
    pairs = [(layout.name, layout.find(weights)) for layout in layouts]
    return [(name, table) for name, table in pairs if table is not None]


def choose(source: Path, weights: Weights, layout: str) -> KeyTable:
    """The table that leads from the layout of the file to the wanted one.

    Raises:
        CheckpointError: there is none.
    """
    known = tables(weights)
    if layout == "native":
        usable = [table for _, table in known if table.is_foreign(weights)]
    else:
        usable = [t for name, t in known if name == layout and not t.is_foreign(weights)]
    if usable:
        return usable[0]
    if not known:
        raise CheckpointError(
            f"{source} holds weights of no system here: its first key is {next(iter(weights))}; "
            f"published layouts are known for {', '.join(published()) or 'none'}"
        )
    here = next((name for name, table in known if table.is_foreign(weights)), "native")
    others = [name for name, _ in known] if here == "native" else ["native"]
    problem = f"is not converted to {layout}"
    if here == layout:
        problem = "is what was asked for: nothing to convert"
    raise CheckpointError(
        f"{source} has the {here} layout, which {problem}; choose --to {' or '.join(others)}"
    )


def published() -> list[str]:
    """System and name of every layout that is known."""
    return [f"{n} ({lay.name})" for n, found in find_systems().items() for lay in found.layouts]


def convert(source: Path, target: Path, layout: str) -> int:
    """Writes ``target`` and prints what happened to the entries that were not just renamed."""
    weights = read_weights(source)
    table = choose(source, weights, layout)
    if layout != "native":
        foreign = table.to_foreign(weights)
        write_weights(target, foreign)
        print(f"{len(weights)} entries -> {len(foreign)} in the {layout} layout: {target}")
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
