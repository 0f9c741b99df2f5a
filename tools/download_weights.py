"""Downloads published weights by name, checks them, and prints where they are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unified.commands import run_command
from unified.engine.system import find_systems
from unified.weights import WEIGHTS, download


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="see --list")
    parser.add_argument("--list", action="store_true", help="name all weights, their licence, home")
    options = parser.parse_args(arguments)
    if not options.list and not options.names:
        parser.error("name one or more weights, or use --list")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return run_command(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Lists, downloads, and prints where each is."""
    find_systems()  # they bring weights of their own
    if options.list:
        rows = [("name", "licence", "home")]
        rows += [(name, entry.licence, entry.home) for name, entry in WEIGHTS.items()]
        names, licences, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
        for name, licence, home in rows:
            print(f"{name:{names}}  {licence:{licences}}  {home}")
    for name in options.names:
        print(f"{name}: {download(name)}")


if __name__ == "__main__":
    sys.exit(main())
