"""Short sentences from names and places of annotated objects: what the chooser learns from besides
those that people wrote."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

NAMES = {
    "couch": ("couch", "sofa"),
    "tv": ("tv", "television", "screen"),
    "cell phone": ("cell phone", "phone"),
    "motorcycle": ("motorcycle", "motorbike", "bike"),
    "bicycle": ("bicycle", "bike"),
    "airplane": ("airplane", "plane"),
    "dining table": ("table",),
    "potted plant": ("plant", "potted plant"),
    "sports ball": ("ball",),
    "wine glass": ("glass", "wine glass"),
}
ENDS = (
    ("left {}", "right {}"),
    ("leftmost {}", "rightmost {}"),
    ("{} on the left", "{} on the right"),
    ("the {} on the far left", "the {} on the far right"),
    ("first {} from left", "first {} from right"),
)
MIDDLE = ("middle {}", "{} in the middle", "center {}")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
TOP = ("top {}", "{} at the top", "upper {}")
BOTTOM = ("bottom {}", "{} at the bottom", "lower {}")
LARGEST = ("biggest {}", "largest {}", "the big {}", "closest {}")
SMALLEST = ("smallest {}", "the small {}")
MOST, MOST_TOGETHER = 6, 4  # things of a class that are told apart, that are named together
ASIDE = 0.33  # a single thing this near to a side is on the left or right
APART_X, APART_Y = 0.05, 0.08  # least steps between centres, shares of the picture
LARGER = 1.6  # least ratio of areas
NUM_ABSENT = 4  # per picture

Said = tuple[str, list[int]]
"""A sentence and the annotations that it means."""


@dataclass(frozen=True)
class _Thing:
    """An annotation: centre as shares of width and height, area in pixels."""

    number: int
    x: float
    y: float
    area: float


def short_sentences(
    coco: Mapping[str, Any], images: Collection[int], seed: int
) -> list[dict[str, Any]]:
    """Entries like those of ``datasets/expressions`` about annotated images.

    Nothing is said of a class of which a crowd is in the image.

    Args:
        coco: the content of a COCO-style file.
        images: ids of those to speak of.
    """
    rng = random.Random(seed)
    names = {category["id"]: category["name"] for category in coco["categories"]}
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    entries = []
    for image, things, crowds in _by_image(coco, images):
        said: list[Said] = []
        for category, alike in things.items():
            if category not in crowds:
                said += _about(alike, NAMES.get(names[category], (names[category],)), rng)
        absent = [category for category in names if category not in things]
        for category in rng.sample(absent, min(NUM_ABSENT, len(absent))):
            article = rng.choice(("the ", "", "a "))
            name = rng.choice(NAMES.get(names[category], (names[category],)))
            if category not in crowds:
                said.append((article + name, []))
        entries += [
            {
                "image_id": image,
                "file_name": files[image],
                "annotation_ids": meant,
                "sentence": sentence,
                "absent": None if meant else "thing",
            }
            for sentence, meant in said
        ]
    return entries


def _by_image(
    coco: Mapping[str, Any], images: Collection[int]
) -> Iterator[tuple[int, Mapping[int, list[_Thing]], Collection[int]]]:
    """Id of each image, its things by category, and the categories of its crowds."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    things: dict[int, dict[int, list[_Thing]]] = defaultdict(lambda: defaultdict(list))
    crowds: dict[int, set[int]] = defaultdict(set)
    for entry in coco["annotations"]:
        image, category = entry["image_id"], entry["category_id"]
        if entry["iscrowd"]:
            crowds[image].add(category)
        elif image in images:
            x, y, width, height = entry["bbox"]
            across, down = sizes[image]
            centre = (x + width / 2) / across, (y + height / 2) / down
            things[image][category].append(_Thing(entry["id"], *centre, entry["area"]))
    for image, found in things.items():
        yield image, found, crowds[image]


def _about(things: Sequence[_Thing], names: Sequence[str], rng: random.Random) -> list[Said]:
    """What tells things of one class apart, and what means all of them."""

    def say(turns: Sequence[str], *meant: _Thing) -> Said:
        return rng.choice(turns).format(rng.choice(names)), [thing.number for thing in meant]

    if len(things) == 1:
        only = things[0]
        said = [say(("the {}", "{}", "{}"), only)]
        if only.x < ASIDE:
            said.append((f"{rng.choice(names)} on the left", [only.number]))
        elif only.x > 1 - ASIDE:
            said.append((f"{rng.choice(names)} on the right", [only.number]))
        return said
    if len(things) > MOST:
        return []
    said = _in_order(things, names, rng)
    low = sorted(things, key=lambda thing: thing.y)
    if min(b.y - a.y for a, b in pairwise(low)) > APART_Y:
        said += [say(TOP, low[0]), say(BOTTOM, low[-1])]
    large = sorted(things, key=lambda thing: -thing.area)
    if large[0].area > LARGER * large[1].area:
        said.append(say(LARGEST, large[0]))
    if large[-1].area * LARGER < large[-2].area:
        said.append(say(SMALLEST, large[-1]))
    if len(things) <= MOST_TOGETHER:
        last = "both {}s" if len(things) == 2 else "{}s"
        said.append(say(("all {}s", "the {}s", "all the {}s", last), *things))
    return said


def _in_order(things: Sequence[_Thing], names: Sequence[str], rng: random.Random) -> list[Said]:
    """Things of one class from left to right, if their centres are apart."""
    row = sorted(things, key=lambda thing: thing.x)
    if min(b.x - a.x for a, b in pairwise(row)) <= APART_X:
        return []
    left, right = rng.choice(ENDS)
    said = [
        (left.format(rng.choice(names)), [row[0].number]),
        (right.format(rng.choice(names)), [row[-1].number]),
    ]
    if len(row) == 3:
        said.append((rng.choice(MIDDLE).format(rng.choice(names)), [row[1].number]))
    if len(row) > 2:
        place = rng.randrange(1, len(row) - 1)
        side, counted = ("left", place) if rng.random() < 0.5 else ("right", len(row) - 1 - place)
        turn = rng.choice(("{} {} from the {}", "{} {} from {}"))
        sentence = turn.format(ORDINALS[counted], rng.choice(names), side)
        said.append((sentence, [row[place].number]))
    return said
