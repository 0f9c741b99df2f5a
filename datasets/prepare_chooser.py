"""Sets of sentences that the chooser of the lite model is trained on, as own data.

    python datasets/prepare_chooser.py --coco images instances.json --out chooser_data
    DETECTRON2_DATASETS=chooser_data python tools/train_chooser.py --sets my_written my_short \\
        --choose my_choose --output chooser.safetensors

``my_written`` and ``my_choose`` are the sentences of datasets/expressions for training and for
choosing. ``my_short`` has short ones, made from names and places of the objects in the pictures for
training. The COCO-style file has the images that those sentences are about.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.uniref.lite.data.short import short_sentences
from unified.commands import run_command
from unified.data.formats.files import read_json, require, write_json
from unified.errors import InputError

WRITTEN = Path(__file__).resolve().with_name("expressions")


def write_sets(images: Path, annotations: Path, out: Path, seed: int) -> int:
    """Writes own data of three sets; returns how many short sentences were made.

    Args:
        images: folder of the COCO images.
        annotations: their COCO-style file.
        out: a folder that does not exist yet.

    Raises:
        InputError: ``out`` exists, or an input is missing or no COCO-style file.
    """
    if out.exists():
        raise InputError(f"{out} exists: give another --out, or delete it first")
    require(images, "a folder of images")
    coco = read_json(annotations, "COCO-style objects", ("images", "annotations", "categories"))
    written = read_json(WRITTEN / "train.json", "sentences about images", ("expressions",))
    taught = {entry["image_id"] for entry in written["expressions"]}
    made = short_sentences(coco, taught, seed)
    if not made:
        raise InputError(f"{annotations} has no objects in images of {WRITTEN / 'train.json'}")
    files = {
        "my_written": WRITTEN / "train.json",
        "my_short": out / "short.json",
        "my_choose": WRITTEN / "choose.json",
    }
    (out / "own").mkdir(parents=True)
    write_json(files["my_short"], {"expressions": made})
    for name, sentences in files.items():
        content = {
            "task": "ris",
            "split": "train",
            "images": str(images.resolve()),
            "annotations": str(annotations.resolve()),
            "expressions": str(sentences.resolve()),
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (out / f"own/{name}.yaml").write_text(text, encoding="utf-8")
    return len(made)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--coco", nargs=2, required=True, type=Path, metavar=("IMAGES", "JSON"), help="COCO style"
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other short sentences")
    args = parser.parse_args(arguments)

    def work() -> None:
        made = write_sets(*args.coco, args.out, args.seed)
        print(f"{made} short sentences and three sets: {args.out}")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
