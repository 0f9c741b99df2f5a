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
With --detect the model says what there is, up to 100 objects: all of them in detections.json,
elsewhere without those that better ones cover by more than half (--separate keeps them).
Files of an earlier run in OUTPUT are replaced.
"""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from unified import ImagePredictor
from unified.commands import run_command
from unified.inference import cli, places
from unified.inference.classes import ClassPredictor, class_names
from unified.inference.image_io import find_images, read_image
from unified.inference.output import (
    DETECTIONS,
    RESULTS,
    ResultsFile,
    check_writable,
    coco_results,
    prepare_folder,
    uncovered,
    write_detections,
    write_image_result,
)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument(
        "--input", required=True, nargs="+", help="images as files, folder or pattern"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to fill")
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
        help="objects do not compete: masks/<stem>/<k>.png, 0 or 255, k = 0, 1, ... as given",
    )
    cli.add_model_arguments(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Segments one image after the other into the output folder."""
    check_writable(options.output)
    paths = find_images(options.input)
    cli.check_stems(paths)
    names = None if options.classes is None else class_names(options.classes)
    place = places.place_prompt(options.point, options.box)
    prompts, objects = [], []
    if not options.detect:
        prompts, objects = cli.image_prompts(names or options.text, options.support, place)
    read_image(paths[0])  # before the model is loaded, which takes longer
    cli.check_places(prompts, paths)
    model = cli.load_model(options, prompts)
    settings = cli.chosen_settings(options) | ({"mirror": False} if options.detect or names else {})
    predictor = (
        ClassPredictor(model, names, **settings) if names else ImagePredictor(model, **settings)
    )
    header = {
        "tool": "infer_image",
        "input": options.input,
        "objects": objects,
        "merge_rule": "separate" if options.separate else "score",
        **cli.describe_run(model, predictor.settings),
    }
    other = "like the examples" if options.support else "the place shown"
    captions = {entry["id"]: entry["text"] or other for entry in objects}
    with ExitStack() as stack, tqdm(paths, unit="image") as progress:
        results: ResultsFile | None = None
        detections: list[dict[str, Any]] = []
        for path in progress:
            image = read_image(path)
            predictor.set_image(image)
            answers = [predictor.predict(prompt) for prompt in prompts]
            if isinstance(predictor, ImagePredictor) and options.detect:
                found = predictor.detect()
                detections += coco_results(path.stem, found)
                shown = found if options.separate else uncovered(found)
                answers = [(x.mask, x.score) for x in shown]
                captions = {i: f"category {x.category + 1}" for i, x in enumerate(shown, start=1)}
            if results is None:
                # Only now, so that a prompt which the model cannot follow leaves no file.
                prepare_folder(options.output, options.input)
                results = ResultsFile(options.output / RESULTS, header, "images")
                stack.enter_context(results)
                if options.detect:
                    stack.callback(write_detections, options.output / DETECTIONS, detections)
            masks, scores = [mask for mask, _ in answers], [score for _, score in answers]
            seen = [place for place, mask in enumerate(masks, start=1) if mask.any() or not names]
            legend = {place: captions[place] for place in seen}  # few of many classes are there
            rows = write_image_result(
                options.output, path.stem, image, masks, scores, legend, options.separate
            )
            results.add({"image": str(path), "size": image.shape[:2], "objects": rows})
    print(f"done: see {options.output}/overlay, masks and results.json")


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, 2 after bad input, 130 when stopped by Ctrl-C."""
    options = parse_arguments(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    stopped = f"the finished images are in {options.output}"
    with logging_redirect_tqdm():
        return run_command(lambda: run(options), stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
