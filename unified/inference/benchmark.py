"""The work that is timed: a clip, segmented frame by frame and written to disk.

Of moving rectangles, or of a user's own frames whose objects are known.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unified.errors import InputError
from unified.inference.background import Background
from unified.inference.cli import MIN_SIDE
from unified.inference.image_io import read_image, write_image
from unified.inference.image_predictor import ImagePredictor
from unified.inference.output import ClipWriter, write_image_result
from unified.inference.profiling import StageTimer, median_milliseconds, memory, stage_names
from unified.inference.results import prepare_folder
from unified.inference.video_io import FrameReader, VideoWriter
from unified.inference.video_predictor import VideoPredictor
from unified.label_maps import merge_by_score
from unified.mask_files import VOID, read_ids
from unified.structures import Prompt, Size

PERIOD = 40  # frames until the rectangles are back where they were


@dataclass(frozen=True)
class Lap:
    """What one frame took: seconds per stage, MB resident after it; and its mean IoU in a clip."""

    seconds: Mapping[str, float]
    resident: float
    iou: float | None = None


@dataclass(frozen=True)
class Outcome:
    """One frame's result: label map (H, W), probabilities (O, H, W) and scores (O,) by object."""

    label_map: np.ndarray
    probabilities: np.ndarray
    scores: np.ndarray
    lap: Lap


@dataclass(frozen=True)
class Clip:
    """Frames whose objects are known.

    Attributes:
        source: what ``FrameReader`` reads.
        size: (H, W) of the frames.
        masks: number of a frame -> its objects, (O, H, W) bool.
    """

    source: Path
    size: Size
    masks: Callable[[int], np.ndarray]


def check_options(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> argparse.Namespace:
    """The options; ends the program after a number below 1, or one that the mode does not use."""
    if min(options.frames, options.objects) < 1:
        parser.error("--frames and --objects are at least 1")
    if options.compile:
        parser.error(
            "what is compiled has no stages to time: use tools/benchmark_ways.py --compile"
        )
    if options.clip and options.mode == "image":
        parser.error("image takes no --clip")
    others = vars(options).keys() - {"mode", "model", "frames", "threads", "json"}
    for name in sorted(others if options.mode == "systems" else ()):
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"systems takes no --{name.replace('_', '-')}: choose by --model alone")
    return options


def picture_size(text: str) -> Size:
    """The (h, w) that HxW of a command line says."""
    if not re.fullmatch(r"\d+x\d+", text) or min(map(int, text.split("x"))) < MIN_SIDE:
        raise argparse.ArgumentTypeError(f"expected HxW of at least {MIN_SIDE}, got {text}")
    height, width = map(int, text.split("x"))
    return height, width


def moving_rectangles(number: int, size: Size, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Frame ``number`` (H, W, 3) uint8 on a still noisy ground, and the objects (O, H, W) bool."""
    height, width = size
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    image = np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1)[:height, :width].copy()
    masks = np.zeros((num_objects, height, width), bool)
    phase = abs(number % PERIOD - PERIOD / 2) / PERIOD  # 0 to 1/2 and back
    for index, mask in enumerate(masks):
        top = int(height * (0.1 + 0.3 * phase))
        left = int(width * (index + 0.1 + phase) / (num_objects + 0.5))
        box = np.s_[top : top + height // 3, left : left + max(4, width // (2 * num_objects + 1))]
        mask[box] = True
        image[box] = rng.integers(0, 255, 3)
    return image, masks


def take_clip(options: argparse.Namespace) -> None:
    """Sets the size and the number of objects to those of the clip, if one is given."""
    if options.clip:
        clip = known_clip(*options.clip)
        options.size, options.objects = clip.size, len(clip.masks(0))


def clip_of(known: Sequence[Path] | None, folder: Path, **made: Any) -> Clip:
    """The clip of two folders, frames and label maps, or one that is made in ``folder``."""
    return known_clip(*known) if known else rectangle_clip(folder, **made)


def rectangle_clip(folder: Path, *, num_frames: int, size: Size, num_objects: int) -> Clip:
    """Moving rectangles as a video in ``folder``."""
    path = folder / "clip.mp4"
    with VideoWriter(path, fps=24, size=size) as writer:
        for number in range(num_frames):
            writer.write(moving_rectangles(number, size, num_objects)[0])
    return Clip(path, size, lambda number: moving_rectangles(number, size, num_objects)[1])


def known_clip(frames: Path, masks: Path) -> Clip:
    """A user's folder of frames, and one with a label map for each, in the same order.

    Raises:
        InputError: there is no map, or no object in the first one; of ``masks`` of the clip, there
            are more frames than maps.
    """
    files = sorted(masks.glob("*.png"))
    present = np.setdiff1d(read_ids(files[0]), [0]) if files else np.array([])
    # 255 beside other ids is void; alone it is the object of black and white masks.
    ids = present if present.tolist() == [VOID] else np.setdiff1d(present, [VOID])
    if not ids.size:
        raise InputError(f"{masks} needs a label map for each frame, with objects in the first")

    def objects(number: int) -> np.ndarray:
        if number >= len(files):
            raise InputError(
                f"{masks} holds {len(files)} label maps, and the clip goes on: add more"
            )
        label_map = read_ids(files[number])
        return np.stack([label_map == i for i in ids])

    height, width = objects(0).shape[1:]
    return Clip(frames, (height, width), objects)


def segment_clip(
    predictor: VideoPredictor,
    folder: Path,
    clip: Clip,
    *,
    num_frames: int,
    stages: Mapping[str, str],
) -> Iterator[Outcome]:
    """Outcomes of a clip in which every object is prompted on the first frame.

    Args:
        predictor: keeps probabilities, and does one thing after the other, so that stages add up.
        folder: an empty one, for the results.
        num_frames: the clip is no further read.
        stages: of the model's methods, see ``StageTimer.watch``.
    """
    timer, prompts = StageTimer(), _first_prompts(predictor, clip)
    with (
        FrameReader(clip.source, end=num_frames) as reader,
        _writer(folder / "output", clip, prompts) as writer,
    ):
        frames = iter(reader)
        while True:
            with timer.stage("decode"):
                frame = next(frames, None)
            if frame is None:
                return
            with timer.watch(predictor.encoder.model, stages), timer.stage("merge"):
                result = predictor.step(frame.image, {} if frame.number else prompts)
            probabilities = np.stack([result.probabilities[i] for i in prompts])
            with timer.stage("write"):
                writer.write(frame, replace(result, probabilities={}))
            iou = _mean_iou(result.label_map, clip.masks(frame.number))
            yield Outcome(
                label_map=result.label_map,
                probabilities=probabilities,
                scores=np.array([result.scores[i] for i in prompts]),
                lap=Lap(timer.lap(), memory("VmRSS"), iou),
            )


def clock_milliseconds(
    predictor: VideoPredictor, folder: Path, clip: Clip, *, num_frames: int
) -> float:
    """Mean ms of the clock for a frame of a clip that is run as ``tools/infer_video.py`` does.

    From the answer about the first frame, before which no other is worked at, until all others are
    written.

    Args:
        folder: an empty one, for the results.
        num_frames: the clip is no further read; at least 2.
    """
    prompts, start = _first_prompts(predictor, clip), 0.0
    with (
        FrameReader(clip.source, end=num_frames) as reader,
        closing(predictor.ahead(reader, lambda frame: frame.image)) as coming,
        _writer(folder / "output", clip, prompts) as writer,
    ):
        with Background() as background:
            for frame, image in coming:
                result = predictor.step(image, {} if frame.number else prompts)
                start = start or time.perf_counter()
                background(writer.write, frame, result)
        taken = time.perf_counter() - start
    return 1000 * taken / frame.number


def _first_prompts(predictor: VideoPredictor, clip: Clip) -> dict[int, Prompt]:
    """Of all objects, on the first frame."""
    kinds = predictor.encoder.model.reference_kinds
    return {i: prompt(kinds, mask) for i, mask in enumerate(clip.masks(0), start=1)}


def _writer(folder: Path, clip: Clip, prompts: Mapping[int, Prompt]) -> ClipWriter:
    prepare_folder(folder)
    captions = dict.fromkeys(prompts, "object")
    return ClipWriter(folder, header={}, fps=24, size=clip.size, captions=captions)


def _mean_iou(label_map: np.ndarray, masks: np.ndarray) -> float:
    """Of objects (O, H, W) with the ids 1 to O; 1 where an object is rightly not there."""
    found = label_map == np.arange(1, len(masks) + 1)[:, None, None]
    shared, covered = (found & masks).sum(axis=(1, 2)), (found | masks).sum(axis=(1, 2))
    return float(np.where(covered, shared / np.maximum(covered, 1), 1.0).mean())


def segment_images(
    predictor: ImagePredictor,
    folder: Path,
    *,
    num_frames: int,
    size: Size,
    num_objects: int,
    stages: Mapping[str, str],
) -> Iterator[Outcome]:
    """Outcomes of single images; every object is prompted on the image itself."""
    kinds = predictor.encoder.model.reference_kinds
    output = folder / "output"
    prepare_folder(output)
    timer = StageTimer()
    ids = range(1, num_objects + 1)
    for number in range(num_frames):
        image, masks = moving_rectangles(number, size, num_objects)
        path = folder / f"{number}.jpg"
        write_image(path, image)
        with timer.stage("decode"):
            image = read_image(path)
        with timer.watch(predictor.encoder.model, stages), timer.stage("merge"):
            predictor.set_image(image)
            found = [predictor.predict_prob(prompt(kinds, mask)) for mask in masks]
            probabilities, scores = zip(*found, strict=True)
            binary = [probability > 0.5 for probability in probabilities]
            label_map = merge_by_score(binary, scores)
        with timer.stage("write"):
            captions = dict.fromkeys(ids, "object")
            write_image_result(
                output,
                str(number),
                image,
                binary,
                scores,
                captions,
                texts={},
                threshold=predictor.settings.score_threshold,
            )
        yield Outcome(
            label_map=label_map,
            probabilities=np.stack(probabilities),
            scores=np.array(scores),
            lap=Lap(timer.lap(), memory("VmRSS")),
        )


def summary(
    laps: Sequence[Lap],
    *,
    stages: Mapping[str, str],
    num_objects: int,
    peak: float,
    period: int = 1,
    trained: bool = True,
) -> dict[str, Any]:
    """Median ms by stage, objects per second, the peak of memory in MB, and the mean IoU in %.

    Args:
        trained: whether masks, and hence the IoU, mean anything.
        period: see ``median_milliseconds``.

    Raises:
        InputError: there is no lap.
    """
    if not laps:
        raise InputError("no frame is left to time after warm-up: give a clip of 3 frames or more")
    table = median_milliseconds([lap.seconds for lap in laps], stage_names(stages), period)
    per_second = round(1000 * num_objects / table["total"], 3)
    found = {"milliseconds": table, "objects_per_second": per_second, "peak_mb": round(peak, 1)}
    ious = [lap.iou for lap in laps if lap.iou is not None and trained]
    return found | ({"iou": round(100 * float(np.mean(ious)), 2)} if ious else {})


def prompt(kinds: frozenset[str], mask: np.ndarray) -> Prompt:
    """A mask where the model knows masks, else a sentence."""
    return Prompt(mask=mask) if "mask" in kinds else Prompt(text="the moving rectangle")


def difference(ours: Outcome, theirs: Outcome) -> dict[str, float]:
    """How far two results of one frame are apart: pixels of the label map, largest errors."""
    return {
        "different_pixels": int((ours.label_map != theirs.label_map).sum()),
        "probability": float(np.abs(ours.probabilities - theirs.probabilities).max()),
        "score": float(np.abs(ours.scores - theirs.scores).max()),
    }
