"""A sheet of random sentences of a set with the masks that a model gives for them, right and wrong.

    python tools/sheet.py --set my_val --output sheet.jpg

The set is one for referring segmentation, as in DATASETS.TEST. Green: IoU above 0.5, or rightly
refused; red: another thing, or none; the outline is what is meant.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import unified
from unified import ImagePredictor
from unified.commands import add_max_pixels, run_command
from unified.data.catalog import load_records
from unified.data.samples import view_of
from unified.errors import InputError
from unified.inference.image_io import read_image, write_image
from unified.inference.overlay import contour
from unified.structures import Prompt

CELL, TITLE, FONT, COLUMNS = (240, 200), 46, 13, 5  # (w, h) of a picture, lines above it
RIGHT, WRONG, TINT = (0, 130, 0), (190, 0, 0), 0.55
OUTLINE = (255, 255, 255)


def cell(predictor: ImagePredictor, record: Any) -> Image.Image:
    """One picture with its sentence, what is found and whether that is right."""
    image = read_image(record["file_name"])
    (sentence,) = record["expressions"]
    predictor.set_image(image)
    found = predictor.instance(Prompt(text=sentence))
    truth = view_of(record, image)[0].masks.any(axis=0)
    union = (found.mask | truth).sum()
    iou = (found.mask & truth).sum() / union if union else 1.0
    colour = RIGHT if iou > 0.5 else WRONG
    said = f"{found.score:.2f}" if found.mask.any() else "refused"
    said += f", IoU {iou:.2f}" if found.mask.any() and truth.any() else ""
    said += "" if truth.any() else ", nothing is meant"
    drawn = image.astype(float)
    drawn[found.mask] = (1 - TINT) * drawn[found.mask] + TINT * np.array(colour)
    drawn[contour(np.asarray(truth, np.uint8), width=2)] = OUTLINE
    picture = Image.fromarray(drawn.astype(np.uint8))
    picture.thumbnail(CELL)
    sheet = Image.new("RGB", (CELL[0], CELL[1] + TITLE), "white")
    sheet.paste(picture, (0, TITLE))
    font = ImageFont.load_default(FONT)
    lines = textwrap.wrap(sentence, 36, max_lines=2)
    draw = ImageDraw.Draw(sheet)
    draw.text((2, 0), "\n".join(lines), fill="black", font=font)
    draw.text((2, 2 * FONT + 4), said, fill=colour, font=font)
    return sheet


def make(options: argparse.Namespace) -> None:
    """Draws the sheet and writes it."""
    records = load_records(options.set)
    if not records or "expressions" not in records[0]:
        raise InputError(f"{options.set} has no sentences: give a set for referring segmentation")
    rng = np.random.default_rng(options.seed)
    number = min(options.number, len(records))
    chosen = sorted(rng.choice(len(records), number, replace=False).tolist())
    model: Any = unified.load(options.model, options.weights, options.device, options.opts)
    predictor = ImagePredictor(model)
    cells = [cell(predictor, records[index]) for index in chosen]
    rows = -(-number // COLUMNS)
    width, height = cells[0].size
    sheet = Image.new("RGB", (COLUMNS * (width + 6), rows * (height + 6)), "white")
    for place, each in enumerate(cells):
        sheet.paste(each, (place % COLUMNS * (width + 6), place // COLUMNS * (height + 6)))
    write_image(options.output, np.asarray(sheet))
    print(f"{number} of {len(records)} sentences of {options.set}: {options.output}")


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", required=True, metavar="SET", help="of sentences, for tests")
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", metavar="NAME|YAML", help="default: the small one")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="of the config")
    parser.add_argument("--output", required=True, type=Path, metavar="JPG")
    parser.add_argument("--device", default="auto")
    add_max_pixels(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: make(options))


if __name__ == "__main__":
    sys.exit(main())
