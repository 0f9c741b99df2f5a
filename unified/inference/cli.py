"""What the inference tools share: arguments, prompts from them, and the head of results.json."""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import unified
from unified.commands import add_max_pixels
from unified.errors import InputError
from unified.inference.frames import check_prompt
from unified.inference.image_io import image_size, read_image
from unified.inference.places import Prompts, add_places, describe_place, not_read
from unified.inference.settings import PRECISIONS, ModelInput, as_json
from unified.inference.video_io import FrameReader
from unified.label_maps import MAX_OBJECT_ID, split_label_map
from unified.mask_files import read_label_map
from unified.masks import MASK_THRESHOLD
from unified.structures import Point, Prompt, Support

MIN_SIDE = 32


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which model runs, where, and at what size."""
    add_max_pixels(parser)
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--model", metavar="NAME", help="default: the small one; an unknown name lists all"
    )
    which.add_argument("--config-file", metavar="YAML", help="a configuration instead of a name")
    group.add_argument("--weights", metavar="FILE", help="checkpoint, ours or the official layout")
    group.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="override config keys"
    )
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, ...")
    group.add_argument(
        "--max-size",
        type=_model_side,
        metavar="PIXELS",
        help="longest side the model sees, for speed; masks keep the size of the input",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="half precision is faster where the processor has it, and masks are near those of "
        "float32, not the same (docs/runs.md#half-precision in the source tree)",
    )


def _model_side(text: str) -> int:
    if not text.isdecimal() or int(text) < MIN_SIDE:
        raise argparse.ArgumentTypeError(f"expected a number of at least {MIN_SIDE}, got {text}")
    return int(text)


def load_model(options: argparse.Namespace, prompts: Iterable[Prompt] = ()) -> Any:
    """The model that the arguments name.

    Args:
        prompts: it is going to be asked.

    Raises:
        InputError: it does not follow them; no weights were read.
    """
    name = options.config_file or options.model
    named = {} if name is None else {"name_or_config": name}
    return unified.load(
        **named,
        weights=options.weights,
        device=options.device,
        options=options.opts,
        kinds=sorted({kind for prompt in prompts for kind in _kinds(prompt)}),
    )


def _kinds(prompt: Prompt) -> Iterator[str]:
    """What a model must follow to be asked this."""
    if prompt.text is not None:
        yield "text"
    if prompt.mask is not None or prompt.supports:
        yield "mask"
    if prompt.points:
        yield "point"
    if prompt.box is not None:
        yield "box"


def chosen_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the arguments change in how the model is asked."""
    given = {name: getattr(options, name) for name in ("max_size", "precision")}
    return {name: value for name, value in given.items() if value is not None}


def describe_run(model: Any, settings: ModelInput) -> dict[str, Any]:
    """Model, weights, how it is asked, and versions, for results.json."""
    info = model.info
    return {
        "inference": as_json(settings),
        "thresholds": {"mask": MASK_THRESHOLD, "score": settings.score_threshold},
        "model": info.name,
        "config": info.config,
        "weights": {"file": info.weights, "sha256": info.sha256},
        "device": str(next(model.parameters()).device),
        "versions": {
            "unified": unified.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def check_places(prompts: Iterable[Prompt], paths: Sequence[Path]) -> None:
    """Raises InputError if points or a box do not lie on one of the images, from their headers."""
    placed = [prompt for prompt in prompts if prompt.points or prompt.box]
    for path in paths if placed else ():
        for prompt in placed:
            try:
                check_prompt(prompt, image_size(path))
            except InputError as error:
                raise InputError(f"image {path}: {error}") from None


def check_texts(texts: Sequence[str]) -> None:
    """Raises InputError for a sentence without a word."""
    for text in texts:
        if not re.search(r"\w", text):
            raise InputError(f"text {text!r} has no words: describe the object, such as 'the dog'")


def image_prompts(
    texts: Sequence[str], support_sets: Sequence[Sequence[str]], place: Prompt | None = None
) -> tuple[list[Prompt], list[dict[str, Any]]]:
    """One prompt per sentence or support set, and what results.json says about each.

    Args:
        place: points and box of the one object there is, alone or with its text or supports.

    Raises:
        InputError: there is none, or one cannot be used.
    """
    if place is not None:
        return _placed(texts, support_sets, place)
    if not texts and not support_sets:
        raise InputError("nothing to segment: give --text, --support, --point, --box or --detect")
    check_texts(texts)
    prompts = [Prompt(text=text) for text in texts] + [read_supports(s) for s in support_sets]
    objects: list[dict[str, Any]] = [
        *({"text": text, "supports": []} for text in texts),
        *({"text": None, "supports": list(pairs)} for pairs in support_sets),
    ]
    return prompts, [{"id": place, **entry} for place, entry in enumerate(objects, start=1)]


def _placed(
    texts: Sequence[str], support_sets: Sequence[Sequence[str]], place: Prompt
) -> tuple[list[Prompt], list[dict[str, Any]]]:
    if len(texts) + len(support_sets) > 1:
        raise InputError(
            "--point and --box show one object, and several texts or supports are given: ask for "
            "one at a time"
        )
    prompts: list[Prompt] = [Prompt()]
    objects: list[dict[str, Any]] = [{"id": 1, "text": None, "supports": []}]
    if texts or support_sets:
        prompts, objects = image_prompts(texts, support_sets)
    prompt = replace(prompts[0], points=place.points, box=place.box)
    return [prompt], [{**objects[0], **describe_place(prompt)}]


def check_stems(paths: Sequence[Path]) -> None:
    """Raises InputError if two images would write the same files."""
    first: dict[str, Path] = {}
    for path in paths:
        if path.stem in first:
            raise InputError(
                f"{first[path.stem]} and {path} would both write {path.stem}.png: rename one"
            )
        first[path.stem] = path


def read_supports(pairs: Sequence[str]) -> Prompt:
    """The prompt of one support set, each pair given as ``image.jpg:mask.png``.

    Every pixel of the mask above 0 is the object.
    """
    supports = []
    for pair in pairs:
        image_path, colon, mask_path = pair.rpartition(":")
        if not (colon and image_path and mask_path):
            raise InputError(f"support {pair!r} is not of the form image.jpg:mask.png")
        image = read_image(image_path)
        mask = read_label_map(mask_path, size=image.shape[:2]) > 0
        supports.append(Support(image=image, mask=mask))
    return Prompt(supports=tuple(supports))


def parse_mask_at(argument: str) -> tuple[int, str]:
    """``57=file.png`` as (57, "file.png")."""
    frame, equals, path = argument.partition("=")
    if not (equals and path and frame.isdecimal()):
        raise InputError(
            f"--mask-at {argument} is not of the form FRAME=file.png, such as 57=a.png"
        )
    return int(frame), path


def video_prompts(
    texts: Sequence[str],
    masks: Sequence[tuple[int, str]],
    frames: FrameReader,
    *,
    first: int,
    place: Prompt | None = None,
    points: Sequence[tuple[int, int, Point]] = (),
) -> Prompts:
    """The prompts of a clip from sentences, mask files, points and a box.

    Every id of a mask is one object; for points and box see ``add_places``. A sentence is one more
    object, with the next id after those of all others; written ``ID=sentence`` it describes the
    object that has this id there. Sentences hold from the ``first`` frame on.

    Args:
        texts: sentences in the order given.
        masks: frame number and file.
        frames: the clip, for its size and its frame numbers.
        first: number of the first frame.
        place, points: as for ``add_places``.

    Raises:
        InputError: nothing to segment, an unusable prompt, or more than 255 ids.
    """
    if not (texts or masks or place or points):
        raise InputError("nothing to segment: give --text, --mask, --point or --box")
    prompts: Prompts = {first: {}}
    for frame, path in masks:
        if frame not in frames:
            raise not_read(f"mask {path}", frame)
        if prompts.get(frame):
            raise InputError(f"frame {frame} has two masks: put both objects into one file")
        label_map = read_label_map(path, size=frames.size)
        prompts[frame] = {
            object_id: Prompt(mask=mask) for object_id, mask in split_label_map(label_map).items()
        }
    add_places(prompts, place, points, frames, first=first)
    known = {object_id for group in prompts.values() for object_id in group}
    following = max(known, default=0) + 1
    for text in texts:
        match = re.match(r"(\d+)=(.*)", text, re.DOTALL)
        object_id, sentence = (int(match[1]), match[2]) if match else (following, text)
        check_texts([sentence])
        if match and object_id not in known:
            raise InputError(
                f"text {text!r} describes object {object_id}, but the masks hold "
                f"{sorted(known) or 'none'}: leave the number out for a new object"
            )
        following += not match
        if object_id > MAX_OBJECT_ID:
            raise InputError(
                f"no object id is left for text {text!r}: ids go to {MAX_OBJECT_ID}, renumber the "
                "objects of the mask from 1"
            )
        given = prompts[first].get(object_id, Prompt())
        if given.text is not None:
            raise InputError(f"object {object_id} has two texts, {given.text!r} and {sentence!r}")
        prompts[first][object_id] = replace(given, text=sentence)
    for group in prompts.values():
        for prompt in group.values():
            check_prompt(prompt, frames.size)
    return prompts


def describe_prompts(prompts: Prompts) -> list[dict[str, Any]]:
    """What defined each object, for results.json, ascending by id."""
    objects: dict[int, dict[str, Any]] = {}
    for frame, group in sorted(prompts.items()):
        for object_id, prompt in group.items():
            entry = objects.setdefault(object_id, {"id": object_id, "text": None, "masks_at": []})
            entry["text"] = entry["text"] or prompt.text
            if prompt.mask is not None:
                entry["masks_at"].append(frame)
            if places := describe_place(prompt):
                entry.setdefault("shown_at", {})[frame] = places
    return [objects[object_id] for object_id in sorted(objects)]


def check_reached(prompts: Prompts, last: int) -> None:
    """Raises InputError if the clip ended before a prompt's frame (some do not tell before)."""
    if max(prompts) > last:
        raise InputError(
            f"the clip ended with frame {last}, before the prompt for frame {max(prompts)} was used"
        )
