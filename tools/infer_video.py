"""Segment and follow objects in a video, from sentences, masks or both.

python tools/infer_video.py --input clip.mp4 --text "the dog" --output out
python tools/infer_video.py --input frames/ --mask first.png --mask-at 57=better.png --output out
python tools/infer_video.py --input 0 --mask first.png --text "1=the dog" --output out

Objects: every id in a mask is one object; --point and --box show one more. Every --text is one
more object with the next free id; written "ID=sentence" it describes the object that has this id
in a mask. OUTPUT receives masks/FRAME.png (indexed, pixel = id; FRAME = the name of an image, or
the number of the frame in a video, from 0, with five digits), overlay.mp4 and results.json. Files
of an earlier run in OUTPUT are replaced.
"""

from __future__ import annotations

import argparse
import logging
import sys
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from unified import VideoPredictor
from unified.commands import run_command
from unified.inference import cli, places
from unified.inference.output import ClipWriter, check_writable, prepare_folder
from unified.inference.video_io import FrameReader


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        help="video, camera number, or images as files, folder or pattern",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to fill")
    parser.add_argument(
        "--text", action="append", default=[], metavar="SENTENCE", help="an object; repeatable"
    )
    parser.add_argument("--mask", metavar="PNG", help="mask of the first frame that is read")
    parser.add_argument(
        "--mask-at",
        action="append",
        default=[],
        metavar="FRAME=PNG",
        help="mask of a later frame: corrects known ids, adds new ones; repeatable",
    )
    places.add_place_arguments(parser, " on the first frame that is read")
    parser.add_argument(
        "--point-at",
        action="append",
        default=[],
        metavar="FRAME=ID:X,Y[,0]",
        help="a point of an object on any frame: corrects known ids, adds new ones; repeatable",
    )
    parser.add_argument("--start", type=int, default=0, help="first frame (default 0)")
    parser.add_argument("--end", type=int, help="frame after the last one (default: all)")
    parser.add_argument("--stride", type=int, default=1, help="read every so many frames")
    parser.add_argument(
        "--separate",
        action="store_true",
        help="objects do not compete: masks/<k>/FRAME.png, 0 or 255, k = 0, 1, ... by id",
    )
    parser.add_argument(
        "--save-logits",
        action="store_true",
        help="also logits/FRAME.npz: id -> (H, W) float16 probability before merging",
    )
    cli.add_model_arguments(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Streams the clip through the model into the output folder."""
    check_writable(options.output)
    mask_files = [cli.parse_mask_at(argument) for argument in options.mask_at]
    if options.mask:
        mask_files.insert(0, (options.start, options.mask))
    part = {"start": options.start, "end": options.end, "stride": options.stride}
    with FrameReader(*options.input, **part) as frames:
        prompts = cli.video_prompts(
            options.text,
            mask_files,
            frames,
            first=options.start,
            place=places.place_prompt(options.point, options.box),
            points=[places.parse_point_at(argument) for argument in options.point_at],
        )
        model = cli.load_model(options, chain(*(group.values() for group in prompts.values())))
        predictor = VideoPredictor(
            model,
            merge_rule="separate" if options.separate else "soft",
            keep_probabilities=options.save_logits,
            **cli.chosen_settings(options),
        )
        objects = cli.describe_prompts(prompts)
        header = {
            "tool": "infer_video",
            "input": options.input,
            **part,
            "size": frames.size,
            "fps": frames.fps,
            "objects": objects,
            "merge_rule": predictor.settings.merge_rule,
            **cli.describe_run(model, predictor.settings),
        }
        with tqdm(frames, total=frames.num_frames, unit="frame") as progress:
            results = (
                (frame, predictor.step(frame.image, prompts.get(frame.number)))
                for frame in progress
            )
            # A prompt that the model cannot follow is refused before any file is made.
            first = next(results)
            prepare_folder(options.output, options.input)
            with ClipWriter(
                options.output,
                header=header,
                fps=frames.fps,
                size=frames.size,
                captions={entry["id"]: entry["text"] or "" for entry in objects},
                separate=options.separate,
            ) as writer:
                for frame, result in chain([first], results):
                    writer.write(frame, result)
    cli.check_reached(prompts, frame.number)
    print(f"done: see {options.output}/overlay.mp4, masks/ and results.json")


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, 2 after bad input, 130 when stopped by Ctrl-C."""
    options = parse_arguments(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    stopped = f"the finished frames are in {options.output}"
    with logging_redirect_tqdm():
        return run_command(lambda: run(options), stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
