"""Segment objects in images, from sentences or from example images with masks, or all there are.

python tools/infer_image.py --input photo.jpg --text "the cat" --text "the cup" --output out
python tools/infer_image.py --input photos/ --support a.jpg:a.png b.jpg:b.png --output out
python tools/infer_image.py --model NAME --input a.jpg --classes "cat, sofa, person" --output out
python tools/infer_image.py --input photos/ --detect --output out

Objects: every --text is one object; every --support is one object, shown in one or more examples,
each image.jpg:mask.png. They get the ids 1, 2, ... in the order given. --point and --box show one
object, alone or with one --text or --support. OUTPUT receives
masks/<stem>.png (indexed, pixel = id, the highest score wins), overlay/<stem>.jpg and results.json.
With --classes, and a model that compares pixels with texts, every pixel gets the class that fits it
best, or 0 where none does.
An object whose score is below INFERENCE.IMAGE_SCORE_THRESHOLD is absent: its mask is empty.
A chooser answers sentences where the model has one; --opts INFERENCE.CHOOSER "" does without.
With --detect the model says what there is, up to 100 objects: all of them in detections.json,
elsewhere without those that better ones cover by more than half (--separate keeps them).
Files of an earlier run in OUTPUT are replaced; with --resume it goes on, and images that its
results.json lists are skipped. Folders are read with their sub-folders, which OUTPUT then has too.
An image that cannot be read does not end the run: it is listed at the end. Exit status: 0; 2 if
nothing was done; 3 if some images failed; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unified.threads import set_thread_defaults

set_thread_defaults()

from tqdm import tqdm

from unified import ImagePredictor
from unified.commands import logs_beside_progress, run_command
from unified.inference import cli, places
from unified.inference.batch import Batch
from unified.inference.classes import ClassPredictor
from unified.inference.image_io import read_image
from unified.inference.image_run import Question, read_question, segment_pictures
from unified.inference.inputs import find_pictures
from unified.inference.output import ImageWriter
from unified.inference.results import check_writable, earlier_results


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    cli.add_input_arguments(parser, "images as files, folders, patterns or a list of them (.txt)")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--text", action="append", default=[], metavar="SENTENCE", help="an object; repeatable"
    )
    prompt.add_argument(
        "--support",
        action="append",
        nargs="+",
        default=[],
        metavar="IMAGE:MASK",
        help="an object, shown in the given examples; repeat the option for another object",
    )
    prompt.add_argument("--classes", metavar="NAMES", help="a class for every pixel: 'cat, sofa'")
    prompt.add_argument("--detect", action="store_true", help="all objects")
    places.add_place_arguments(parser, "")
    parser.add_argument(
        "--separate",
        action="store_true",
        help="objects do not compete: masks/<stem>/<id>.png, 0 or 255",
    )
    cli.add_model_arguments(parser)
    return parser.parse_args(arguments)


def build_predictor(
    model: Any, question: Question, options: argparse.Namespace
) -> ImagePredictor | ClassPredictor:
    """What answers the question; all objects and classes are looked for without a mirror image."""
    settings = cli.chosen_settings(options)
    if options.detect or question.names:
        settings = {**settings, "mirror": False}
    if question.names:
        return ClassPredictor(model, question.names, **settings)
    return ImagePredictor(model, **settings)


def run(options: argparse.Namespace) -> int:
    """Segments one image after the other into the output folder; returns the exit status."""
    check_writable(options.output)
    pictures, skipped = find_pictures(options.input)
    question = read_question(options)
    if len(pictures) == 1:  # before the model is loaded, which takes longer
        read_image(pictures[0].path)
    cli.check_places(question.prompts, [picture.path for picture in pictures])
    model = cli.load_model(options, question.prompts)
    predictor = build_predictor(model, question, options)
    header = {
        "tool": "infer_image",
        "objects": question.objects,
        "merge_rule": "separate" if options.separate else "score",
        "input": options.input,
        "chooser": getattr(model, "chooser", None) is not None,
        **cli.describe_run(model, predictor.settings),
    }
    earlier = earlier_results(options.output, header, "images") if options.resume else None
    batch, separate = Batch("image", len(pictures)), options.separate
    more = {"inputs": options.input, "earlier": earlier, "detections": options.detect}
    with (
        ImageWriter(options.output, header=header, separate=separate, **more) as writer,
        tqdm(pictures, unit="image") as progress,
    ):
        shown = (
            cli.until_compiled(progress, cli.IMAGES_TO_COMPILE) if predictor.compiled else progress
        )
        segment_pictures(shown, predictor, question, writer, batch, separate=separate)
    print(f"done: see {options.output}/overlay, masks and results.json")
    return batch.report(skipped)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 2 after bad input; 3 if some images failed; 130 when stopped by Ctrl-C."""
    options = parse_arguments(arguments)
    stopped = f"the finished images are in {options.output}, --resume goes on"
    with logs_beside_progress():
        return run_command(lambda: run(options), stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
