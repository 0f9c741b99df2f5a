"""Sentences, composites and pseudo-clips of small made scenes."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from projects.uniref.lite.data.attributes import name_colours
from projects.uniref.lite.data.motion import Backdrop, make_clip
from projects.uniref.lite.data.pictures import Scene, Thing
from projects.uniref.lite.data.scenes import compose, cut_out
from projects.uniref.lite.data.sentences import (
    Expression,
    absent_expressions,
    expressions,
    group_expressions,
    wording,
)
from projects.uniref.lite.data.vocabulary import COLOURS

SWATCHES = {
    "red": (200, 25, 30),
    "orange": (240, 130, 20),
    "yellow": (240, 215, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 210),
    "purple": (140, 50, 165),
    "pink": (245, 150, 185),
    "brown": (105, 65, 35),
    "black": (20, 20, 22),
    "white": (240, 240, 240),
    "gray": (125, 125, 125),
}


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_named_as_people_name_them(colour: str) -> None:
    image = np.full((8, 8, 3), SWATCHES[colour], dtype=np.uint8)
    names, is_grey = name_colours(image)
    assert (names == COLOURS.index(colour)).all()
    assert is_grey == (colour in ("black", "white", "gray"))


def _scene(*things: tuple[str, str, tuple[int, int, int, int]]) -> Scene:
    """A dull picture with rectangles: class, colour, (x0, y0, x1, y1)."""
    image = np.full((100, 200, 3), (90, 110, 150), dtype=np.uint8)
    result = []
    for name, colour, (x0, y0, x1, y1) in things:
        mask = np.zeros((100, 200), dtype=bool)
        mask[y0:y1, x0:x1] = True
        image[mask] = SWATCHES[colour]
        result.append(Thing(name, mask))
    return Scene(image, tuple(result), frozenset({"dog", "cat", "car", "truck", "cup"}))


# 4 pixels from the border, so that a mirror would show them twice
_CORNERS = ((4, 4, 40, 30), (160, 4, 196, 30), (4, 70, 40, 96), (160, 70, 196, 96))


def _texts(found: dict[Expression, int], index: int) -> set[tuple[str, str, str]]:
    return {(c.colour, c.noun, c.rest) for c, number in found.items() if number == index}


def test_one_sentence_one_thing() -> None:
    scene = _scene(
        ("dog", "black", (10, 40, 50, 80)),
        ("dog", "white", (140, 30, 190, 90)),
        ("cup", "red", (65, 50, 85, 80)),
    )
    found = expressions(scene)
    assert ("", "dog", "") not in _texts(found, 0) | _texts(found, 1)
    assert ("black", "dog", "") in _texts(found, 0)
    assert {("", "dog", "left"), ("", "dog", "leftmost")} <= _texts(found, 0)
    assert ("", "dog", "left of the cup") in _texts(found, 0)
    assert ("", "dog", "right of the cup") not in _texts(found, 0)
    assert {("", "cup", ""), ("red", "cup", "")} <= _texts(found, 2)
    assert {c.noun for c in group_expressions(scene)} == {"dog", "animal", "pet"}


def test_what_might_be_called_so_keeps_a_sentence_from_being_unique() -> None:
    scene = _scene(("car", "red", (10, 30, 60, 80)), ("truck", "blue", (120, 20, 190, 80)))
    assert ("", "car", "") not in _texts(expressions(scene), 0)
    assert ("red", "car", "") in _texts(expressions(scene), 0)


def test_unreferred_things_block_and_are_not_described() -> None:
    scene = _scene(("dog", "black", (10, 40, 50, 80)), ("dog", "white", (140, 30, 190, 90)))
    hidden = Thing("dog", scene.things[1].mask, referable=False)
    found = expressions(Scene(scene.image, (scene.things[0], hidden), scene.complete))
    assert set(found.values()) <= {0} and ("", "dog", "") not in _texts(found, 0)
    assert not any(expression.kind in ("order", "size") for expression in found)


def test_absent_things_are_not_there() -> None:
    scene = _scene(("dog", "black", (10, 40, 50, 80)), ("car", "red", (120, 20, 190, 80)))
    found = absent_expressions(scene, ("dog", "cat", "car", "truck", "cup", "zebra"))
    named = {expression.noun for expression in found if expression.kind == "absent class"}
    assert named == {"cat", "cup"}  # a truck may be meant by "car"; nobody looked for zebras
    coloured = {(c.colour, c.noun) for c in found if c.kind == "absent colour"}
    assert ("green", "dog") in coloured
    assert not {("black", "dog"), ("red", "car"), ("pink", "car")} & coloured


def test_cutouts_cover_what_is_behind_them() -> None:
    rng = np.random.default_rng(0)
    scene = _scene(("dog", "black", (60, 20, 140, 90)))
    pasted = compose(scene, [cut_out(scene, 0)] * 3, rng)
    masks = np.stack([thing.mask for thing in pasted.things])
    assert masks.sum(axis=0).max() == 1
    front = pasted.things[-1].mask
    black = np.abs(pasted.image[front].astype(int) - SWATCHES["black"]).max(axis=1)
    assert np.median(black) < 25


def test_no_second_copy_of_a_thing_is_seen_beyond_the_border() -> None:
    things = [(f"thing {n}", "red", box) for n, box in enumerate(_CORNERS)]
    scene = _scene(*things)
    for seed in range(40):
        clip = make_clip(scene, range(4), (), np.random.default_rng(seed), 6)
        for labels in clip.label_maps:
            for number in range(1, 5):
                # the number of components counts the background
                assert cv2.connectedComponents((labels == number).astype(np.uint8))[0] <= 2
        backdrop = Backdrop(scene, np.random.default_rng(seed), 6)
        for frame in range(6):
            for coordinates, length in zip(backdrop.maps(frame), (200, 100), strict=True):
                assert coordinates.min() >= 0 and coordinates.max() <= length - 1


def test_small_things_on_large_ones_keep_their_pixels_in_clips() -> None:
    scene = _scene(("tie", "red", (95, 40, 105, 70)), ("dog", "black", (60, 20, 140, 90)))
    scene = Scene(scene.image, scene.things, frozenset({"tie", "dog"}))
    assert (scene.things[1].mask >= scene.things[0].mask).all()
    clip = make_clip(scene, (0, 1), (), np.random.default_rng(0), 3)
    for labels, seen in zip(clip.label_maps, clip.scenes, strict=True):
        assert set(np.unique(labels).tolist()) == {0, 1, 2}
        for number, thing in enumerate(seen.things, start=1):
            assert np.array_equal(thing.mask, labels == number)


def test_wordings_are_lower_case_words() -> None:
    rng = np.random.default_rng(0)
    scene = _scene(
        ("dog", "black", (10, 40, 50, 80)),
        ("dog", "white", (140, 30, 190, 90)),
        ("cup", "red", (65, 50, 85, 80)),
    )
    for expression in [
        *expressions(scene),
        *group_expressions(scene),
        *absent_expressions(scene, ("cat",)),
    ]:
        for _ in range(5):
            assert re.fullmatch(r"[a-z]+( [a-z]+)*", wording(expression, rng))
