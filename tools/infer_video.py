"""Segment and follow objects in a video, from sentences, masks or both.

python tools/infer_video.py --input clip.mp4 --text "the dog" --output out
python tools/infer_video.py --input frames/ --mask first.png --mask-at 57=better.png --output out
python tools/infer_video.py --input 0 --mask first.png --text "1=the dog" --output out

Objects: every id in a mask is one object; --point and --box show one more. Every --text is one
more object with the next free id; written "ID=sentence" it describes the object that has this id
in a mask. OUTPUT receives masks/FRAME.png (indexed, pixel = id; FRAME = the name of an image, or
the number of the frame in a video, from 0, with five digits), overlay.mp4 and results.json. Of
several clips each gets a sub-folder with these. Files of an earlier run in OUTPUT are replaced,
sub-folders of clips that are not asked about now stay; --resume skips the clips that it finished.
A clip that cannot be read does not end the run: it is listed at the end. Exit status: 0; 2 if
nothing was done; 3 if some clips failed; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unified.threads import set_thread_defaults

set_thread_defaults()

from unified.commands import logs_beside_progress, run_command
from unified.inference import cli
from unified.inference.batch import Batch
from unified.inference.clip_prompts import add_prompt_arguments, check_one_clip
from unified.inference.clip_run import segment_clip
from unified.inference.inputs import find_clips
from unified.inference.prepared import prepared
from unified.inference.results import RESULTS, ResultsFile, check_writable
from unified.inference.settings import inference_settings
from unified.structures import Prompt


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    what = (
        "videos, camera numbers, images, folders or patterns of them, or a list of all that (.txt)"
    )
    cli.add_input_arguments(parser, what)
    add_prompt_arguments(parser)
    parser.add_argument("--start", type=int, default=0, help="first frame (default 0)")
    parser.add_argument("--end", type=int, help="frame after the last one (default: all)")
    parser.add_argument("--stride", type=int, default=1, help="read every so many frames")
    parser.add_argument(
        "--separate",
        action="store_true",
        help="objects do not compete: masks/<id>/FRAME.png, 0 or 255",
    )
    parser.add_argument(
        "--save-logits",
        action="store_true",
        help="also logits/FRAME.npz: id -> (H, W) float16 probability before merging",
    )
    cli.add_model_arguments(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Segments one clip after the other; returns the exit status."""
    check_writable(options.output)
    clips = find_clips(options.input)
    check_one_clip(options, len(clips))
    batch = Batch("clip", len(clips))
    models: list[Any] = []

    def load(prompts: Iterable[Prompt]) -> Any:
        """Once, when the first clip was found to be readable."""
        if not models:
            model = cli.load_model(options, prompts)
            settings = replace(inference_settings(model).video, **cli.chosen_settings(options))
            if settings.compile:
                cli.warn_of_compiled_clips(model)
            models.append(prepared(model, settings.precision, compile=settings.compile))
        return models[0]

    rows = []
    for clip in clips:
        title = clip.sources[0]
        done = batch.attempt(title, partial(segment_clip, options, clip, load))
        if done:
            batch.show(title, done)
        elif done is not None:
            batch.finished.remove(title)
            batch.earlier += 1
        reason = batch.failed.get(title)
        found = {"folder": clip.folder} if reason is None else {"error": reason}
        rows.append({"clip": title, **found})
    if len(clips) > 1:  # not before: the list of another run stays where this one is refused
        header = {"tool": "infer_video", "input": options.input}
        with ResultsFile(options.output / RESULTS, header, "clips") as summary:
            for row in rows:
                summary.add(row)
    if not batch.failed:
        made = "overlay.mp4, masks/ and results.json"
        made = made if len(clips) == 1 else "results.json, and the folder of each clip beside it"
        print(f"done: see {options.output}/{made}")
    return batch.report()


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 2 after bad input; 3 if some clips failed; 130 when stopped by Ctrl-C."""
    options = parse_arguments(arguments)
    stopped = f"the finished frames are in {options.output}"
    with logs_beside_progress():
        return run_command(lambda: run(options), stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
