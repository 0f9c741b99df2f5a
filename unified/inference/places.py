"""Points and boxes on the command line of the inference tools."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unified.errors import InputError
from unified.inference.video_io import FrameReader
from unified.label_maps import MAX_OBJECT_ID
from unified.structures import Box, Point, Prompt

# frame number -> object id -> prompt
Prompts = dict[int, dict[int, Prompt]]


def add_place_arguments(parser: argparse.ArgumentParser, where: str) -> None:
    """Adds the points and the box that show one object."""
    parser.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="X,Y[,0]",
        help=f"a pixel of the object{where}, with ,0 one beside it; repeatable",
    )
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help=f"around the object{where}, in pixels")


def parse_point(text: str) -> Point:
    """``x,y`` on the object or ``x,y,0`` beside it."""
    numbers = _numbers(text)
    if len(numbers) not in (2, 3) or numbers[2:] not in ([], [0], [1]):
        raise InputError(f"point {text} is not of the form x,y (on the object) or x,y,0 (beside)")
    _check_pixels(f"point {text}", numbers[:2])
    return Point(numbers[0], numbers[1], inside=numbers[2:] != [0])


def parse_box(text: str) -> Box:
    """``x0,y0,x1,y1``."""
    numbers = _numbers(text)
    if len(numbers) != 4:
        raise InputError(f"box {text} is not of the form x0,y0,x1,y1, such as 10,20,110,80")
    _check_pixels(f"box {text}", numbers)
    x0, y0, x1, y1 = numbers
    return x0, y0, x1, y1


def _check_pixels(what: str, numbers: Sequence[float]) -> None:
    """Raises InputError for what is written as shares of an image."""
    if all(0 <= number <= 1 for number in numbers) and any(number % 1 for number in numbers):
        raise InputError(
            f"{what} lies within the first pixel: give pixels, not shares of the image"
        )


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def place_prompt(points: Sequence[str], box: str | None) -> Prompt | None:
    """The one object that --point and --box show, or None."""
    if not points and box is None:
        return None
    places = tuple(parse_point(point) for point in points)
    return Prompt(points=places, box=None if box is None else parse_box(box))


def describe_place(prompt: Prompt) -> dict[str, Any]:
    """Points and box of a prompt for results.json; nothing where there are none."""
    places: dict[str, Any] = {}
    if prompt.points:
        places["points"] = [[p.x, p.y, int(p.inside)] for p in prompt.points]
    if prompt.box is not None:
        places["box"] = list(prompt.box)
    return places


def place_name(places: Mapping[str, Any]) -> str:
    """What an overlay calls an object that is shown by a box or points, as ``describe_place``."""
    return "box" if "box" in places else "points" if len(places["points"]) > 1 else "point"


def parse_point_at(argument: str) -> tuple[int, int, Point]:
    """``57=2:120,80`` as frame 57, object 2 and its point."""
    match = re.fullmatch(r"(\d+)=(\d+):(.+)", argument)
    if match is None or not 1 <= int(match[2]) <= MAX_OBJECT_ID:
        raise InputError(
            f"--point-at {argument} is not of the form FRAME=ID:x,y or FRAME=ID:x,y,0 with an id "
            f"from 1 to {MAX_OBJECT_ID}, such as 57=2:120,80"
        )
    return int(match[1]), int(match[2]), parse_point(match[3])


def add_places(
    prompts: Prompts,
    place: Prompt | None,
    points: Sequence[tuple[int, int, Point]],
    frames: FrameReader,
    *,
    first: int,
) -> None:
    """Adds what --point, --box and --point-at show to the prompts of a clip.

    Args:
        place: one more object on the ``first`` frame, with the next free id.
        points: frame number, object id and point; of a known object, or a new one.

    Raises:
        InputError: a frame is not read, or no id is left.
    """
    for frame, object_id, point in points:
        if frame not in frames:
            raise not_read(f"point {point.x:g},{point.y:g}", frame)
        group = prompts.setdefault(frame, {})
        prompt = group.get(object_id, Prompt())
        group[object_id] = replace(prompt, points=(*prompt.points, point))
    if place is not None:
        object_id = 1 + max((i for group in prompts.values() for i in group), default=0)
        if object_id > MAX_OBJECT_ID:
            raise InputError(f"no object id is left for --point and --box: {MAX_OBJECT_ID} is used")
        prompts[first][object_id] = place


def not_read(what: str, frame: int) -> InputError:
    return InputError(
        f"{what} is for frame {frame}, which is not among the frames that are read: "
        "check --start, --end, --stride and the length of the clip"
    )
