"""Replays recorded runs of the reference implementation and compares every recorded array.

    python tools/check_parity.py golden_det.npz golden_video_vos.npz [--manifest manifest_r50.json]

The weights are made from the key names of the official layout and loaded through the rename table,
as an official checkpoint would be. One line per array: largest error, allowed error, verdict.
Allowed is ten times the recorded float32 noise (noise.json beside the file), or 2e-5 of the array's
largest magnitude if that is more. Training steps: errors of losses and gradients are shares of the
recorded values; matches are exact.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unified.commands import run_command
from unified.dependencies import require
from unified.engine.system import Recording, find_systems
from unified.errors import InputError
from unified.parity import read_arrays


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if every array of every file is within its allowance, 1 if not, 2 on errors."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    args = parse_args(arguments)
    return run_command(lambda: check_all(args))


def check_all(args: argparse.Namespace) -> int:
    """Checks file after file; returns 0 if all passed."""
    require("detectron2.config")  # what unified.engine needs, imported below
    manifest = None if args.manifest is None else read_manifest(args.manifest)
    failures = sum(
        check(Recording(path, read_arrays(path), manifest, args.config_file, args.opts))
        for path in args.files
    )
    print(f"{failures} arrays failed" if failures else "all arrays passed")
    return 1 if failures else 0


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--manifest", type=Path, help="{official key: [shape, dtype]} as JSON")
    parser.add_argument(
        "--config-file", type=Path, help="instead of the one that the file asks for"
    )
    parser.add_argument("--opts", nargs="+", default=[], help="KEY VALUE pairs for the config")
    return parser.parse_args(arguments)


def read_manifest(path: Path) -> dict[str, list]:
    """Keys with shape and dtype.

    Raises:
        InputError: the file is missing or of another form.
    """
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"manifest {path} cannot be read as JSON: {error}") from error
    if not isinstance(manifest, dict) or not all(
        isinstance(entry, list) and len(entry) == 2 for entry in manifest.values()
    ):
        raise InputError(f"manifest {path} is not of the form {{key: [shape, dtype]}}")
    return manifest


def check(recording: Recording) -> int:
    """Prints the comparison of one file; returns the number of failures.

    Raises:
        InputError: no system knows such a file.
    """
    systems = find_systems()
    for name, found in systems.items():
        for kind, replay in found.replays.items():
            if replay.fits(recording):
                print(f"{recording.path.name}: {name}, {kind}")
                results = replay.run(recording)
                for result in results:
                    print(f"  {result}")
                return sum(not result.passed for result in results)
    known = "; ".join(f"{n}: {', '.join(s.replays)}" for n, s in systems.items() if s.replays)
    raise InputError(
        f"{recording.path} is no recorded run that a system here can compute again ({known}): it "
        f"holds {', '.join(sorted(recording.arrays)[:6])}"
    )


if __name__ == "__main__":
    sys.exit(main())
