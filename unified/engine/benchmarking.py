"""What ``tools/benchmark.py`` measures of one model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from unified.engine.system import system
from unified.errors import InputError
from unified.inference import benchmark, cli, profiling
from unified.inference.image_predictor import ImagePredictor
from unified.inference.video_predictor import VideoPredictor

WARM_UP = 2  # the frame of the mask, and the one whose memory holds a single frame
GROWTH_FROM = 100
BASELINE = {"objects_per_pass": 1, "memory_interval": 1}  # in clips, whatever the model does
NOTE = "total: stages one after the other; clock: the clip as a stream, what can be side by side"

Start = Callable[[Any, str, int], Iterator[benchmark.Outcome]]
Summary = Callable[..., dict[str, Any]]


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Times the model, and the reference's algorithm if asked to."""
    if not options.weights:
        options.opts += ["MODEL.WEIGHTS", ""]
    benchmark.take_clip(options)
    model = cli.load_model(options)
    found = system(model.info.system)
    randomise = found.benchmark_weights if model.info.weights is None else None
    if randomise is not None:
        randomise(model)
    alone = options.mode == "image" and not options.baseline  # the reference has no mirror image
    options.mirror = alone and model.inference.image.mirror
    report: dict[str, Any] = {k: getattr(options, k) for k in ("mode", "size", "objects", "mirror")}
    weights = model.info.weights if randomise is None else "random"
    report |= {"model": model.info.name, "weights": weights, "options": options.opts}
    report["environment"] = profiling.environment(next(model.parameters()).device)
    period = 1 if options.mode == "image" else model.inference.video.memory_interval
    parts = {"stages": found.stages, "num_objects": options.objects, "period": period}
    parts["trained"] = randomise is None
    summary: Summary = partial(benchmark.summary, **parts)
    start: Start = partial(_outcomes, options, scratch)
    total = WARM_UP + -(-options.frames // period) * period
    profiling.forget_peak()
    if options.baseline:
        if found.baseline is None:
            raise InputError(f"{found.name} has no reference algorithm: leave out --baseline")
        report |= _compared(start, summary, model, found.baseline(model), total)
    else:
        laps = [outcome.lap for outcome in start(model, "ours", total)]
        report["ours"] = summary(laps[WARM_UP:], peak=profiling.memory("VmHWM"))
        if total > GROWTH_FROM:
            report["ours"]["growth_mb"] = laps[-1].resident - laps[GROWTH_FROM].resident
    if options.mode == "image":
        return report
    if options.baseline:
        report["baseline"] |= BASELINE
    return report | _clock(options, scratch, model, total)


def _compared(
    start: Start, summary: Summary, model: Any, baseline: Any, total: int
) -> dict[str, Any]:
    """Both, in turn on every frame."""
    list(start(model, "alone", WARM_UP + 1))
    ours_peak = profiling.memory("VmHWM")
    profiling.forget_peak()
    baseline.info, baseline.inference = model.info, model.inference
    runs = zip(start(model, "ours", total), start(baseline, "baseline", total), strict=True)
    pairs = [(a.lap, b.lap, benchmark.difference(a, b)) for a, b in runs]
    ours, theirs, differences = zip(*pairs, strict=True)
    found = {
        "ours": summary(ours[WARM_UP:], peak=ours_peak),
        "baseline": summary(theirs[WARM_UP:], peak=profiling.memory("VmHWM")),
        "largest_difference": {k: max(d[k] for d in differences) for k in differences[0]},
    }
    ours_ms, baseline_ms = (found[n]["milliseconds"]["total"] for n in ("ours", "baseline"))
    return found | {"speed_up": round(baseline_ms / ours_ms, 2)}


def _outcomes(
    options: argparse.Namespace, scratch: Path, model: Any, name: str, num_frames: int
) -> Iterator[benchmark.Outcome]:
    """Frame by frame, in a folder of that name."""
    (folder := scratch / name).mkdir()
    work: dict[str, Any] = {"num_frames": num_frames, "stages": system(model.info.system).stages}
    changes = _settings(options, model)
    if options.mode == "image":
        made = {"size": options.size, "num_objects": options.objects}
        return benchmark.segment_images(ImagePredictor(model, **changes), folder, **work, **made)
    changes["keep_probabilities"] = True
    changes |= BASELINE if name == "baseline" else {}
    predictor = VideoPredictor(model, **changes)
    predictor.side_by_side = False  # so that stages add up
    return benchmark.segment_clip(predictor, folder, _clip(options, folder, num_frames), **work)


def _clock(
    options: argparse.Namespace, scratch: Path, model: Any, num_frames: int
) -> dict[str, Any]:
    """What the report says about a clip that is run as it is."""
    (folder := scratch / "clock").mkdir()
    predictor = VideoPredictor(model, **_settings(options, model))
    taken = benchmark.clock_milliseconds(
        predictor,
        folder,
        _clip(options, folder, num_frames),
        num_frames=num_frames,
    )
    found = {"milliseconds": round(taken, 2), "frames_per_second": round(1000 / taken, 2)}
    return {"memory_interval": predictor.settings.memory_interval, "clock": found, "note": NOTE}


def _settings(options: argparse.Namespace, model: Any) -> dict[str, Any]:
    """As the inference tools, but small frames stay as they are, and every object is worked on."""
    changes: dict[str, Any] = {**cli.chosen_settings(options), "score_threshold": 0.0}
    changes["short_side"] = min(getattr(model.inference, options.mode).short_side, *options.size)
    return changes | ({"mirror": options.mirror} if options.mode == "image" else {})


def _clip(options: argparse.Namespace, folder: Path, num_frames: int) -> benchmark.Clip:
    """The user's, or one that is made in the folder."""
    made = {"size": options.size, "num_objects": options.objects}
    return benchmark.clip_of(options.clip, folder, num_frames=num_frames, **made)
