"""Maps of classes from the instances of a COCO file, to score what names pixels.

python datasets/prepare_semantic.py instances.json --out truth
python tools/infer_image.py --model groupvit --classes "$(cat truth/classes.txt)" \\
    --input images --output out
python tools/evaluate.py --task semantic --gt truth/maps --pred out/masks --classes 81

``maps/<stem>.png``: 0 where there is no instance, else the place of its category in the file, from
1 on; of overlapping instances the smaller one. Crowds are 255, which does not count.
``classes.txt`` names the categories in this order. Source: the COCO-Object set of GroupViT, made
from instances.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path, PureWindowsPath  # which splits at / and at backslashes
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unified.commands import run_command
from unified.data.formats.files import by_id, read_json, segmentation_mask
from unified.errors import InputError
from unified.label_maps import write_label_map

IGNORE = 255


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("instances", type=Path, metavar="JSON", help="COCO style")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--limit", type=int, help="number of images; all by default")
    return parser.parse_args(arguments)


def class_map(image: dict[str, Any], annotations: list[dict], places: dict[int, int]) -> np.ndarray:
    """(H, W) uint8 of one image, small instances over large ones."""
    size = (image["height"], image["width"])
    labels = np.zeros(size, np.uint8)
    for annotation in sorted(annotations, key=lambda a: -a["area"]):
        owner = f"annotation {annotation['id']}"
        value = IGNORE if annotation.get("iscrowd") else places[annotation["category_id"]]
        labels[segmentation_mask(annotation["segmentation"], *size, owner)] = value
    return labels


def run(options: argparse.Namespace) -> None:
    """Writes the maps of all images and the names of the classes."""
    content = read_json(options.instances, "instances", ("images", "annotations", "categories"))
    categories = [*by_id(content["categories"], "categories", options.instances).values()]
    images = by_id(content["images"], "images", options.instances)
    if len(categories) >= IGNORE:
        raise InputError(f"{len(categories)} categories are too many for a map of bytes")
    places = {category["id"]: place for place, category in enumerate(categories, start=1)}
    owned = defaultdict(list)
    for number, annotation in by_id(
        content["annotations"], "annotations", options.instances
    ).items():
        if annotation["category_id"] not in places:
            raise InputError(
                f"{options.instances}: annotation {number} is of category "
                f"{annotation['category_id']}, which is not among the categories of the file"
            )
        owned[annotation["image_id"]].append(annotation)
    for image in tqdm([*images.values()][: options.limit], unit="image"):
        path = options.out / f"maps/{PureWindowsPath(image['file_name']).stem}.png"
        write_label_map(path, class_map(image, owned[image["id"]], places))
    names = ", ".join(category["name"] for category in categories)
    (options.out / "classes.txt").write_text(names + "\n")
    print(f"{options.out}: maps of {len(categories)} classes and 0 for the rest")


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 on bad input."""
    options = parse(arguments)
    return run_command(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
