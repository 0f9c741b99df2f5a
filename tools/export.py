"""Write a model as programs that run without its Python, for CPUs.

python tools/export.py --format onnx --what video --output exported
python tools/infer_video.py --model exported --input clip.mp4 --mask first.png --output out

OUTPUT receives the image encoder, text encoder, mask encoder and the step that segments as
separate programs, the vocabulary and manifest.json. Sizes are fixed: larger images are scaled to
fit, smaller ones are padded.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import unified
from unified.commands import run_command
from unified.errors import InputError
from unified.export.manifest import SUFFIXES
from unified.inference.results import check_writable


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="NAME", help="default: the small one")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint, ours or the official layout")
    parser.add_argument("--format", choices=tuple(SUFFIXES), default="torch")
    parser.add_argument("--what", choices=("image", "video"), default="image")
    parser.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="largest image that the model sees; default: what it makes of a 16:9 picture, for "
        "images wide or upright",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to fill")
    return parser.parse_args(arguments)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 32):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH of at least 32x32, got {text}")
    return int(height), int(width)


def run(options: argparse.Namespace) -> None:
    """Loads the model and writes its programs."""
    from unified.export.programs import export_model

    check_writable(options.output)
    named = options.model is None or options.model in unified.models()
    if not named and Path(options.model).is_dir():
        raise InputError(f"{options.model} is a folder: name the model that is to be exported")
    model: Any = unified.load(options.model, options.weights, device="cpu")
    if model.info.weights is None:
        raise InputError(f"the model {model.info.name} has no trained weights: give --weights FILE")
    manifest = export_model(
        model, options.output, format=options.format, what=options.what, size=options.size
    )
    height, width = manifest.size
    print(
        f"done: {options.output} holds {len(manifest.programs)} programs for inputs of "
        f"{height} x {width}; use it as --model {options.output}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, 2 after bad input, 130 when stopped by Ctrl-C."""
    options = parse_arguments(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    return run_command(lambda: run(options), stopped=f"nothing was changed in {options.output}")


if __name__ == "__main__":
    sys.exit(main())
