"""The prompts of a clip on the command line: sentences, masks, points and a box, at any frame."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unified.errors import InputError
from unified.inference.checks import check_prompt
from unified.inference.cli import check_texts
from unified.inference.places import (
    Prompts,
    add_place_arguments,
    add_places,
    describe_place,
    not_read,
    parse_point_at,
    place_name,
    place_prompt,
)
from unified.inference.video_io import FrameReader
from unified.label_maps import MAX_OBJECT_ID, split_label_map
from unified.mask_files import read_label_map
from unified.structures import Point, Prompt


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what shows and describes the objects."""
    later: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--text", **later, metavar="SENTENCE", help="an object; repeatable")
    parser.add_argument(
        "--text-at",
        **later,
        metavar="FRAME=SENTENCE",
        help="an object that is looked for from a later frame on; repeatable",
    )
    parser.add_argument("--mask", metavar="PNG", help="mask of the first frame that is read")
    parser.add_argument(
        "--mask-at",
        **later,
        metavar="FRAME=PNG",
        help="mask of a later frame: corrects known ids, adds new ones; repeatable",
    )
    parser.add_argument(
        "--add-mask",
        **later,
        metavar="FRAME=PNG",
        help="mask of any frame whose objects are all new: they get the next free ids; repeatable",
    )
    add_place_arguments(parser, " on the first frame that is read")
    parser.add_argument(
        "--point-at",
        **later,
        metavar="FRAME=ID:X,Y[,0]",
        help="a point of an object on any frame: corrects known ids, adds new ones; repeatable",
    )


def check_one_clip(options: argparse.Namespace, num_clips: int) -> None:
    """Raises InputError if places of one clip are given for several."""
    names = ("mask", "mask_at", "add_mask", "point", "point_at", "box")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    if given and num_clips > 1:
        raise InputError(
            f"--input names {num_clips} clips, and {given[0]} shows an object in one: give one "
            "clip at a time, or sentences"
        )


def clip_prompts(options: argparse.Namespace, frames: FrameReader) -> Prompts:
    """What the arguments say about a clip; see ``video_prompts``.

    Raises:
        InputError: as for ``video_prompts``.
    """
    masks = [parse_at("--mask-at", argument) for argument in options.mask_at]
    if options.mask:
        masks.insert(0, (options.start, options.mask))
    return video_prompts(
        options.text,
        masks,
        frames,
        first=options.start,
        place=place_prompt(options.point, options.box),
        points=[parse_point_at(argument) for argument in options.point_at],
        added=[parse_at("--add-mask", argument) for argument in options.add_mask],
        texts_at=[parse_at("--text-at", argument, "sentence") for argument in options.text_at],
    )


def parse_at(option: str, argument: str, what: str = "file.png") -> tuple[int, str]:
    """``57=file.png`` as (57, "file.png"), and the like."""
    frame, equals, value = argument.partition("=")
    if not (equals and value and frame.isdecimal()):
        raise InputError(f"{option} {argument} is not of the form FRAME={what}, such as 57={what}")
    return int(frame), value


def video_prompts(
    texts: Sequence[str],
    masks: Sequence[tuple[int, str]],
    frames: FrameReader,
    *,
    first: int,
    place: Prompt | None = None,
    points: Sequence[tuple[int, int, Point]] = (),
    added: Sequence[tuple[int, str]] = (),
    texts_at: Sequence[tuple[int, str]] = (),
) -> Prompts:
    """The prompts of a clip from sentences, mask files, points and a box.

    Every id of a mask is one object; for points and box see ``add_places``. A sentence is one more
    object, with the next id after those of all others; written ``ID=sentence`` it describes the
    object that has this id there.

    Args:
        texts: sentences that hold from the ``first`` frame on, in the order given.
        masks: frame number and file.
        frames: the clip, for its size and its frame numbers.
        first: number of the first frame.
        place, points: as for ``add_places``.
        added: frame number and file; its objects get the next ids after those of all other places.
        texts_at: frame number and sentence, after ``texts``.

    Raises:
        InputError: nothing to segment, an unusable prompt, or more than 255 ids.
    """
    if not (texts or masks or place or points or added or texts_at):
        raise InputError("nothing to segment: give --text, --mask, --point or --box")
    prompts: Prompts = {first: {}}
    for frame, path in masks:
        if prompts.get(frame):
            raise InputError(f"frame {frame} has two masks: put both objects into one file")
        prompts[frame] = _masks(path, frame, frames)
    add_places(prompts, place, points, frames, first=first)
    for frame, path in added:
        objects = _masks(path, frame, frames).values()
        ids = _next_ids(prompts, len(objects), f"mask {path}")
        prompts.setdefault(frame, {}).update(zip(ids, objects, strict=True))
    known = {object_id for group in prompts.values() for object_id in group}
    for frame, text in [*((first, text) for text in texts), *texts_at]:
        if frame not in frames:
            raise not_read(f"text {text!r}", frame)
        _add_text(prompts, prompts.setdefault(frame, {}), text, known)
    for group in prompts.values():
        for prompt in group.values():
            check_prompt(prompt, frames.size)
    return prompts


def _masks(path: str, frame: int, frames: FrameReader) -> dict[int, Prompt]:
    """Object id -> its mask, of a file for one frame."""
    if frame not in frames:
        raise not_read(f"mask {path}", frame)
    masks = split_label_map(read_label_map(path, size=frames.size))
    return {object_id: Prompt(mask=mask) for object_id, mask in masks.items()}


def _add_text(prompts: Prompts, group: dict[int, Prompt], text: str, known: set[int]) -> None:
    """Adds a sentence to the prompts of its frame; ``known`` are the ids that it can describe."""
    match = re.match(r"(\d+)=(.*)", text, re.DOTALL)
    sentence = match[2] if match else text
    check_texts([sentence])
    if match and int(match[1]) not in known:
        raise InputError(
            f"text {text!r} describes object {match[1]}, but the masks hold "
            f"{sorted(known) or 'none'}: leave the number out for a new object"
        )
    object_id = int(match[1]) if match else _next_ids(prompts, 1, f"text {text!r}")[0]
    given = group.get(object_id, Prompt())
    if given.text is not None:
        raise InputError(f"object {object_id} has two texts, {given.text!r} and {sentence!r}")
    group[object_id] = replace(given, text=sentence)


def _next_ids(prompts: Prompts, num: int, what: str) -> range:
    """The ids after those of all objects.

    Raises:
        InputError: there are not as many.
    """
    last = max((object_id for group in prompts.values() for object_id in group), default=0)
    if last + num > MAX_OBJECT_ID:
        raise InputError(
            f"no object id is left for {what}: ids go to {MAX_OBJECT_ID}, renumber the objects of "
            "the mask from 1"
        )
    return range(last + 1, last + 1 + num)


def describe_prompts(prompts: Prompts) -> list[dict[str, Any]]:
    """What defined each object, for results.json, ascending by id."""
    objects: dict[int, dict[str, Any]] = {}
    first = min(prompts)
    for frame, group in sorted(prompts.items()):
        for object_id, prompt in group.items():
            entry = objects.setdefault(object_id, {"id": object_id, "text": None, "masks_at": []})
            entry["text"] = entry["text"] or prompt.text
            if prompt.text is not None and frame > first:
                entry.setdefault("texts_at", {})[frame] = prompt.text
            if prompt.mask is not None:
                entry["masks_at"].append(frame)
            if places := describe_place(prompt):
                entry.setdefault("shown_at", {})[frame] = places
    return [objects[object_id] for object_id in sorted(objects)]


def clip_captions(
    objects: Sequence[Mapping[str, Any]], options: argparse.Namespace
) -> dict[int, str]:
    """Object id -> what the overlay calls it: its sentence, or else what showed it first.

    Args:
        objects: what ``describe_prompts`` says about them.
    """
    files: dict[int, list[str]] = {options.start: [options.mask]} if options.mask else {}
    for option, arguments in (("--mask-at", options.mask_at), ("--add-mask", options.add_mask)):
        for frame, path in (parse_at(option, argument) for argument in arguments):
            files.setdefault(frame, []).append(path)
    captions = {}
    for entry in objects:
        masks = files[entry["masks_at"][0]] if entry["masks_at"] else []
        if entry["text"]:
            name = entry["text"]
        elif masks:  # which of two files for one frame an object comes from is not known here
            name = f"mask {Path(masks[0]).name}" if len(masks) == 1 else "mask"
        else:
            name = place_name(next(iter(entry["shown_at"].values())))
        captions[entry["id"]] = name
    return captions


def check_reached(prompts: Prompts, last: int) -> None:
    """Raises InputError if the clip ended before a prompt's frame (some do not tell before)."""
    if max(prompts) > last:
        raise InputError(
            f"the clip ended with frame {last}, before the prompt for frame {max(prompts)} was used"
        )
