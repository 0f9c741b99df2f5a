"""One clip of ``tools/infer_video.py``, from the arguments to its folder."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from unified.dependencies import require
from unified.inference import cli
from unified.inference.background import Background
from unified.inference.clip_prompts import (
    check_reached,
    clip_captions,
    clip_prompts,
    describe_prompts,
)
from unified.inference.inputs import Clip
from unified.inference.output import ClipWriter
from unified.inference.places import Prompts
from unified.inference.results import earlier_results, prepare_folder
from unified.inference.sense import nonsense
from unified.inference.video_io import FrameReader
from unified.inference.video_predictor import VideoPredictor
from unified.structures import Prompt

logger = logging.getLogger(__name__)


def segment_clip(
    options: argparse.Namespace, clip: Clip, load: Callable[[Iterable[Prompt]], Any]
) -> str:
    """Streams a clip through the model into its folder; "" if an earlier run had done so.

    Args:
        load: gives the model that follows certain prompts.

    Returns:
        A line about what was found.

    Raises:
        InputError: the clip cannot be read, or the prompts do not fit it.
    """
    folder = options.output / clip.folder
    part = {"start": options.start, "end": options.end, "stride": options.stride}
    with FrameReader(*clip.sources, **part) as frames:
        prompts = clip_prompts(options, frames)
        model = load(chain(*(group.values() for group in prompts.values())))
        predictor = VideoPredictor(
            model,
            merge_rule="separate" if options.separate else "soft",
            keep_probabilities=options.save_logits,
            **cli.chosen_settings(options),
        )
        header = {
            "tool": "infer_video",
            "input": clip.sources,
            **part,
            "size": frames.size,
            "fps": frames.fps,
            "objects": _with_warnings(describe_prompts(prompts), model),
            "merge_rule": predictor.settings.merge_rule,
            **cli.describe_run(model, predictor.settings),
        }
        earlier = earlier_results(folder, header, "frames") if options.resume else None
        if earlier is not None and earlier["complete"]:
            return ""
        captions = clip_captions(header["objects"], options)
        last, summary = _write(predictor, frames, prompts, folder, header, clip, captions)
    check_reached(prompts, last)
    return summary


def _with_warnings(objects: list[dict[str, Any]], model: Any) -> list[dict[str, Any]]:
    """The objects; sentences that say nothing in English are warned about, here and in the log.

    Those that a chooser refuses are not asked; see ``VideoPredictor``.
    """
    tokenizer = getattr(getattr(model, "text_encoder", None), "tokenizer", None)
    if tokenizer is None or getattr(model, "chooser", None) is not None:
        return objects
    vocabulary = frozenset(tokenizer.get_vocab())
    for entry in objects:
        reason = nonsense(entry["text"], vocabulary) if entry["text"] else None
        if reason is not None:
            entry["warning"] = f"not understood: {reason}"
            logger.warning("%r may be answered with anything: %s", entry["text"], reason)
    return objects


def _write(
    predictor: VideoPredictor,
    frames: FrameReader,
    prompts: Prompts,
    folder: Path,
    header: Mapping[str, Any],
    clip: Clip,
    captions: Mapping[int, str],
) -> tuple[int, str]:
    """Fills the folder of a clip; returns the number of its last frame, and what was found."""
    shown = {"desc": clip.folder or None, "total": frames.num_frames, "unit": "frame"}
    with (
        closing(predictor.ahead(frames, lambda frame: frame.image)) as coming,
        require("tqdm").tqdm(coming, **shown) as progress,
    ):
        waits = predictor.compiled
        pulled = cli.until_compiled(progress, cli.FRAMES_TO_COMPILE) if waits else progress
        results = (
            (frame, predictor.step(image, prompts.get(frame.number))) for frame, image in pulled
        )
        # A prompt that the model cannot follow is refused before any file is made.
        first = next(results)
        prepare_folder(folder, clip.sources)
        writer = ClipWriter(
            folder,
            header=header,
            fps=frames.fps,
            size=frames.size,
            captions=captions,
            separate=header["merge_rule"] == "separate",
        )
        with writer:
            with Background() as background:
                for frame, result in chain([first], results):
                    background(writer.write, frame, result)
            summary = writer.summary()
    return frame.number, summary
