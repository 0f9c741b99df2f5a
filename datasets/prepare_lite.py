"""Training and validation sets of the lite model, as own data, from labelled images and clips.

python datasets/prepare_lite.py --coco images instances.json \\
    --objects pet=pets horse=horses person=persons clothing regions --clips DAVIS2016 \\
    --hold-out-images 100 --hold-out-classes bus,toilet --hold-out-clips blackswan,libby \\
    --out lite_data --seed 0 --size 3000 --longest-side 352

Then ``DETECTRON2_DATASETS=lite_data`` makes the names of ``lite_data/own/*.yaml`` known.
A folder of objects has ``images`` and ``masks``. With a noun every mask is one object of that class
("pet" tells cats from dogs by the capital of the file name, as in Oxford-IIIT Pet); with
``labels.json`` mask values are its classes; with neither they are regions of no known class.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.uniref.lite.data.pictures import ObjectFolder
from projects.uniref.lite.data.sets import Options, build_sets
from unified.commands import add_max_pixels, run_command
from unified.errors import InputError


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--coco", nargs=2, required=True, type=Path, metavar=("IMAGES", "JSON"), help="COCO style"
    )
    parser.add_argument(
        "--objects", nargs="*", default=[], metavar="[NOUN=]DIR", help="folders of masked objects"
    )
    parser.add_argument("--clips", type=Path, help="DAVIS-style folder, with or without sentences")
    parser.add_argument("--hold-out-images", type=int, default=0, help="COCO images not trained on")
    parser.add_argument("--hold-out-classes", default="", help="left out of few-shot training")
    parser.add_argument("--hold-out-clips", default="", help="names, not trained on")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    add_max_pixels(parser)
    parser.add_argument("--seed", type=int, default=0, help="another seed, other sets")
    parser.add_argument("--size", type=int, default=1000, help="composites; 0.4 times it clips")
    parser.add_argument("--longest-side", type=int, default=384, help="of stored pictures, pixels")
    return parser.parse_args(arguments)


def read_options(args: argparse.Namespace) -> Options:
    """The options of the command line.

    Raises:
        InputError: a number is out of range, or the noun of a folder is empty.
    """
    for name, low in (("size", 1), ("longest_side", 64), ("hold_out_images", 0), ("seed", 0)):
        if getattr(args, name) < low:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is {getattr(args, name)}: expected {low} or more")
    return Options(
        coco_images=args.coco[0],
        coco_annotations=args.coco[1],
        objects=tuple(ObjectFolder.parse(text) for text in args.objects),
        clips=args.clips,
        hold_out_images=args.hold_out_images,
        hold_out_classes=_names(args.hold_out_classes),
        hold_out_clips=_names(args.hold_out_clips),
        size=args.size,
        longest_side=args.longest_side,
        seed=args.seed,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes all sets and prints what is in them."""
    args = parse(arguments)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Builds the sets and prints what is in each."""
    start = time.perf_counter()
    cv2.setNumThreads(1)  # its pictures are small: threads would wait for each other
    options = read_options(args)
    with tqdm(total=options.num_steps(), unit="picture") as progress:
        summary = build_sets(options, args.out, progress.update)
    for name, content in summary.items():
        print(f"{name}: {json.dumps(content)}")
    print(f"written to {args.out} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
