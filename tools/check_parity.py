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

from projects.uniref.parity import check_file, kind_of, read_arrays
from projects.uniref.parity.training import check_train_file
from unified.commands import run_command
from unified.dependencies import require
from unified.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if every array of every file is within its allowance, 1 if not, 2 on errors."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    args = parse_args(arguments)
    return run_command(lambda: check_all(args))


def check_all(args: argparse.Namespace) -> int:
    """Checks file after file; returns 0 if all passed."""
    require("detectron2.config")  # what unified.engine needs, imported below
    manifest = None if args.manifest is None else read_manifest(args.manifest)
    failures = sum(check(path, manifest, args) for path in args.files)
    print(f"{failures} arrays failed" if failures else "all arrays passed")
    return 1 if failures else 0


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--manifest", type=Path, help="{official key: [shape, dtype]} as JSON")
    parser.add_argument(
        "--config-file", type=Path, help="model; by default from the manifest or the file's name"
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


def check(path: Path, manifest: dict[str, list] | None, args: argparse.Namespace) -> int:
    """Prints the comparison of one file; returns the number of failures."""
    from unified.engine.config import load_config, system

    arrays = read_arrays(path)
    config = args.config_file or choose_config(path, arrays, manifest)
    kind = kind_of(arrays)
    print(f"{path.name}: {kind}, {config.stem}")
    cfg = load_config(config, args.opts)
    replay = check_train_file if kind == "train" else check_file
    if "in/boxes0" in arrays and any("fusion" in key for key in manifest or {}):
        print("  the manifest is of a later stage: keys of the detector are used")
        manifest = None
    results = replay(path, system("UniRef").build(cfg), manifest)
    for result in results:
        print(f"  {result}")
    return sum(not result.passed for result in results)


def choose_config(path: Path, arrays: dict, manifest: dict[str, list] | None) -> Path:
    """Swin-L if the manifest or the name says so; the detector for box-supervised training."""
    from unified.engine.models import CONFIGS

    keys = manifest or {}
    swin = "swin" in path.stem or any(".layers.0.blocks.0.attn" in key for key in keys)
    detector = "in/boxes0" in arrays or (bool(keys) and not any("fusion" in key for key in keys))
    stage = "pretrain_objects365" if detector else "video_joint"
    return CONFIGS / f"{stage}_{'swin_l' if swin else 'r50'}.yaml"


if __name__ == "__main__":
    sys.exit(main())
