"""Points and boxes as they are written on the command line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from unified.errors import InputError
from unified.inference.cli import image_prompts
from unified.inference.clip_prompts import describe_prompts, video_prompts
from unified.inference.places import parse_box, parse_point, parse_point_at, place_prompt
from unified.inference.video_io import FrameReader
from unified.structures import Point


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index:05d}.jpg"), np.zeros((20, 30, 3), np.uint8))
    return tmp_path


def test_points_and_boxes_are_read() -> None:
    assert parse_point("3,4.5") == parse_point("3,4.5,1") == Point(3, 4.5)
    assert parse_point("3,4,0") == Point(3, 4, inside=False)
    assert parse_box("1,2,30,40") == (1, 2, 30, 40)
    assert parse_point_at("57=2:120,80,0") == (57, 2, Point(120, 80, inside=False))
    assert place_prompt([], None) is None


@pytest.mark.parametrize("text", ["3", "3,4,2", "3;4", "a,b", "3,4,0,1"])
def test_what_is_no_point_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"is not of the form x,y \(on the object\)"):
        parse_point(text)


def test_what_is_no_box_and_no_point_of_a_frame_is_named() -> None:
    with pytest.raises(InputError, match="box 1,2,3 is not of the form x0,y0,x1,y1"):
        parse_box("1,2,3")
    for text in ("57:3,4", "57=0:3,4", "57=256:3,4", "x=1:3,4"):
        with pytest.raises(InputError, match="is not of the form FRAME=ID:x,y"):
            parse_point_at(text)


def test_shares_of_an_image_are_no_pixels() -> None:
    """As other tools write them; the object of the first pixel would be found."""
    for wrong in (lambda: parse_point("0.5,0.5"), lambda: parse_box("0.1,0,1,0.8")):
        with pytest.raises(InputError, match="lies within the first pixel: give pixels, not shar"):
            wrong()
    assert parse_point("0,1") == Point(0, 1)


def test_places_of_an_image_show_one_object() -> None:
    place = place_prompt(["3,4", "9,9,0"], "1,2,30,40")
    (prompt,), (entry,) = image_prompts(["the dog"], [], place)
    assert (prompt.text, len(prompt.points), prompt.box) == ("the dog", 2, (1, 2, 30, 40))
    assert entry == {
        "id": 1,
        "text": "the dog",
        "supports": [],
        "points": [[3, 4, 1], [9, 9, 0]],
        "box": [1, 2, 30, 40],
    }
    (alone,), _ = image_prompts([], [], place)
    assert alone.text is None and alone.box == prompt.box
    with pytest.raises(InputError, match="show one object"):
        image_prompts(["the dog", "the cat"], [], place)


def test_places_of_a_clip_are_objects_of_their_frames(clip: Path) -> None:
    place = place_prompt([], "1,2,20,15")
    points = [parse_point_at(text) for text in ("0=1:3,4", "0=1:9,9,0", "2=1:5,6", "2=4:7,8")]
    with FrameReader(str(clip)) as frames:
        prompts = video_prompts(
            ["1=the dog", "a cat"], [], frames, first=0, place=place, points=points
        )
        assert sorted(prompts) == [0, 2] and sorted(prompts[0]) == [1, 5, 6]
        assert prompts[0][1].text == "the dog" and len(prompts[0][1].points) == 2
        assert prompts[0][5].box == (1, 2, 20, 15) and prompts[0][6].text == "a cat"
        assert sorted(prompts[2]) == [1, 4]
        first, *_ = describe_prompts(prompts)
        assert first["shown_at"] == {
            0: {"points": [[3, 4, 1], [9, 9, 0]]},
            2: {"points": [[5, 6, 1]]},
        }
        with pytest.raises(InputError, match=r"point 3,4 is for frame 9, which is not among"):
            video_prompts([], [], frames, first=0, points=[parse_point_at("9=1:3,4")])
