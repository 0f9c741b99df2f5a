"""Datasets on disk: check them, convert them, or make small ones in the released formats.

python tools/data.py list
python tools/data.py check refcoco-unc-val        # or all
python tools/data.py make refytvos-train --root /data/tiny --size 50
python tools/data.py convert mevis-train
python tools/data.py vocabulary refcoco-unc-train --output datasets/refcoco.txt
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unified.commands import MISUSE, add_max_pixels, run_command
from unified.data.catalog import CATALOG, data_root, find_dataset, own_names
from unified.data.check import SECONDS, check_dataset, is_installed
from unified.data.convert import convert_dataset
from unified.errors import InputError, UnifiedError
from unified.layout import DATASETS_GUIDE


def check(names: Sequence[str]) -> int:
    """Checks datasets; prints a line per set that is there and returns the exit code."""
    installed = [name for name in CATALOG if is_installed(name)]
    wanted = [*installed, *own_names()] if names == ["all"] else names
    if not wanted:
        raise InputError(f"no dataset is installed below {data_root()}: see {DATASETS_GUIDE}")
    wrong = 0
    for name in wanted:
        start = time.perf_counter()
        try:
            result = check_dataset(name, SECONDS / len(wanted))
        except UnifiedError as error:
            print(f"error: {error}", file=sys.stderr)
            wrong += 1
            continue
        seconds = time.perf_counter() - start
        print(
            f"{name}: ok, {result.num_records} samples, {result.num_files} files exist, "
            f"{result.num_opened} of them opened, {seconds:.1f} s"
        )
        if result.gaps:
            print(f"  perhaps missing: {result.gaps[0]} ({len(result.gaps)} gaps in all)")
        sys.stdout.writelines(f"  {remark}\n" for remark in result.remarks)
    if names == ["all"]:
        absent = len(CATALOG) - len(installed)
        print(f"{len(wanted) - wrong} sets ok, {wrong} wrong, {absent} absent")
    return MISUSE if wrong else 0


def list_names() -> int:
    """Prints the names of the catalog and of own data by task, and whether they are on disk."""
    names = [*CATALOG, *own_names()]
    width = max(map(len, names))
    rows = sorted((find_dataset(name) for name in names), key=lambda row: row.task)
    for row in rows:
        state = "on disk" if is_installed(row.name) else "absent"
        print(f"{row.task:9}  {row.name:{width}}  {row.split:5}  {state}")
    print(f"below {data_root()}")
    return 0


def make(names: Sequence[str], size: int, seed: int) -> int:
    """Writes the releases that the datasets belong to; never beside data that was not made."""
    from unified.data.synthetic.releases import RELEASES, write_releases

    if size < 1:
        raise InputError(f"--size is {size}: expected 1 or more")
    rows = CATALOG.values() if names == ["all"] else [find_dataset(name) for name in names]
    for row in rows:
        if row.release not in RELEASES:
            raise InputError(f"{row.name} cannot be made: it is own data")
    marker = data_root() / "MADE.txt"
    if not marker.exists() and any(map(is_installed, CATALOG)):
        raise InputError(f"{data_root()} holds data that was not made: give another --root")
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text("Made by tools/data.py make; every set in here may be replaced by it.\n")
    for release in write_releases((row.release for row in rows), data_root(), size, seed):
        print(f"{release}: written below {data_root()}", flush=True)
    return 0


def convert(names: Sequence[str]) -> int:
    """Converts datasets and prints what was written."""
    for name in names:
        print(f"{name}: {convert_dataset(name)}")
    return 0


def vocabulary(names: Sequence[str], output: Path) -> int:
    """Writes the words of datasets' sentences, for systems that read with a vocabulary."""
    from unified.data.vocabulary import write_vocabulary

    print(f"{output}: {len(write_vocabulary(names, output))} words")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (
        ("list", "print all names by task, and which are on disk"),
        ("check", "name the first file that is missing or wrong"),
        ("make", "write a small made set in exactly the released format"),
        ("convert", "rewrite large files so that they load faster"),
        ("vocabulary", "write the list of words of all sentences"),
    ):
        sub = commands.add_parser(command, help=text)
        if command != "list":
            sub.add_argument("names", nargs="+", metavar="NAME", help="dataset names, or all")
        is_make = command == "make"
        text = "folder of all datasets" + ("" if is_make else " (default: DETECTRON2_DATASETS)")
        sub.add_argument("--root", required=is_make, help=text)
        if is_make:
            sub.add_argument("--size", type=int, default=20, help="pictures or clips to train on")
            sub.add_argument("--seed", type=int, default=0, help="another seed, another world")
        if command == "check":
            add_max_pixels(sub)
        if command == "vocabulary":
            sub.add_argument("--output", type=Path, required=True, metavar="FILE")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    args = parse(arguments)
    if args.root is not None:
        os.environ["DETECTRON2_DATASETS"] = args.root
    commands = {
        "list": list_names,
        "check": lambda: check(args.names),
        "make": lambda: make(args.names, args.size, args.seed),
        "convert": lambda: convert(args.names),
        "vocabulary": lambda: vocabulary(args.names, args.output),
    }
    return run_command(commands[args.command])


if __name__ == "__main__":
    sys.exit(main())
