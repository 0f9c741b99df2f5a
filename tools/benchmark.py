"""Time a model by stage, on a clip of moving rectangles that is decoded, segmented and written.

    python tools/benchmark.py video --config-file configs/video_joint_r50.yaml --baseline
    python tools/benchmark.py video --frames 1000 --size 240x432 --json growth.json

Reports the median ms per frame and stage after two frames of warm-up, and the peak memory; with
more than 100 frames also the growth since frame 100. --baseline runs the reference's algorithm too
(of a SAM its tracking by boxes), in turn on every frame. --clip takes folders of frames and label
maps. A model without weights gets some that keep every part busy. "systems" is a table of all (or
of --model): one sentence about a picture of the published size, in turn with the default model's.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unified.threads import set_thread_defaults

set_thread_defaults()

from unified import ImagePredictor, VideoPredictor
from unified.commands import run_command
from unified.engine import profiles
from unified.engine.system import system
from unified.errors import InputError
from unified.files import atomic_path
from unified.inference import benchmark, cli, profiling

WARM_UP = 2  # the frame of the mask, and the one whose memory holds a single frame
GROWTH_FROM = 100


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("mode", choices=("video", "image", "systems"))
    parser.add_argument("--frames", type=int, default=5, help="timed frames (default 5)")
    parser.add_argument("--objects", type=int, default=1, help="per frame (default 1)")
    parser.add_argument("--size", type=benchmark.picture_size, default=(480, 864), metavar="HxW")
    parser.add_argument("--baseline", action="store_true", help="also the reference's algorithm")
    parser.add_argument("--clip", type=Path, nargs=2, metavar=("FRAMES", "MASKS"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    cli.add_model_arguments(parser)
    parser.set_defaults(threads=2)
    return benchmark.check_options(parser, parser.parse_args(arguments))


def run(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Times the model, and the reference's algorithm if asked to."""
    if not options.weights:
        options.opts += ["MODEL.WEIGHTS", ""]
    benchmark.take_clip(options)
    model = cli.load_model(options)
    found = system(model.info.system)
    if model.info.weights is None:
        found.benchmark_weights(model)
    alone = options.mode == "image" and not options.baseline  # the reference has no mirror image
    options.mirror = alone and model.inference.image.mirror
    report: dict[str, Any] = {k: getattr(options, k) for k in ("mode", "size", "objects", "mirror")}
    report |= {"model": model.info.name, "options": options.opts}
    report["environment"] = profiling.environment(next(model.parameters()).device)
    start = partial(outcomes, options, scratch)
    summary = partial(benchmark.summary, stages=found.stages, num_objects=options.objects)
    total = WARM_UP + options.frames
    profiling.forget_peak()
    if found.baseline is None and options.baseline:
        raise InputError(f"{found.name} has no reference algorithm: leave out --baseline")
    if found.baseline is None or not options.baseline:
        laps = [outcome.lap for outcome in start(model, "ours", total)]
        report["ours"] = summary(laps[WARM_UP:], peak=profiling.memory("VmHWM"))
        if total > GROWTH_FROM:
            report["ours"]["growth_mb"] = laps[-1].resident - laps[GROWTH_FROM].resident
        return report
    list(start(model, "alone", WARM_UP + 1))
    ours_peak = profiling.memory("VmHWM")
    profiling.forget_peak()
    baseline = found.baseline(model)
    baseline.info, baseline.inference = model.info, model.inference
    runs = zip(start(model, "ours", total), start(baseline, "baseline", total), strict=True)
    pairs = [(a.lap, b.lap, benchmark.difference(a, b)) for a, b in runs]
    ours, theirs, differences = zip(*pairs, strict=True)
    report["ours"] = summary(ours[WARM_UP:], peak=ours_peak)
    report["baseline"] = summary(theirs[WARM_UP:], peak=profiling.memory("VmHWM"))
    report["largest_difference"] = {k: max(d[k] for d in differences) for k in differences[0]}
    baseline_ms, ours_ms = (report[n]["milliseconds"]["total"] for n in ("baseline", "ours"))
    report["speed_up"] = round(baseline_ms / ours_ms, 2)
    return report


def outcomes(
    options: argparse.Namespace, scratch: Path, model: Any, name: str, num_frames: int
) -> Iterator[benchmark.Outcome]:
    """Frame by frame, in a folder of that name."""
    (folder := scratch / name).mkdir()
    work: dict[str, Any] = {"num_frames": num_frames, "stages": system(model.info.system).stages}
    made = {"size": options.size, "num_objects": options.objects}
    # As the inference tools, but small frames stay as they are, and every object is worked on.
    changes: dict[str, Any] = {**cli.chosen_settings(options), "score_threshold": 0.0}
    changes["short_side"] = min(getattr(model.inference, options.mode).short_side, *options.size)
    if options.mode == "image":
        changes["mirror"] = options.mirror
        return benchmark.segment_images(ImagePredictor(model, **changes), folder, **work, **made)
    changes["keep_probabilities"] = True
    changes |= {"objects_per_pass": 1, "memory_interval": 1} if name == "baseline" else {}
    clip = benchmark.clip_of(options.clip, folder, num_frames=num_frames, **made)
    return benchmark.segment_clip(VideoPredictor(model, **changes), folder, clip, **work)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after bad input."""
    logging.basicConfig(level=logging.ERROR)
    options = parse_arguments(arguments)
    return run_command(lambda: write_report(options))


def write_report(options: argparse.Namespace) -> None:
    """Prints the report, and writes it to the file that was asked for."""
    with tempfile.TemporaryDirectory() as scratch:
        report = print_table(options) if options.mode == "systems" else run(options, Path(scratch))
    text = json.dumps(report, indent=1)
    if options.json:
        with atomic_path(options.json) as temporary:
            temporary.write_text(text + "\n")
    if options.mode != "systems":
        print(text)


def print_table(options: argparse.Namespace) -> dict[str, Any]:
    """Prints a row of every system as soon as it is measured; returns them all."""
    print(profiles.HEADER)
    rows = {}
    measured = profiles.measure_all(options.model, options.threads, options.frames)
    for name, profile, found in measured:
        print(profiles.row(name, profile, found), flush=True)
        rows[name] = profiles.as_json(profile, found)
    return rows


if __name__ == "__main__":
    sys.exit(main())
