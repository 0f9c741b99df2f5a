"""Points and boxes as prompts, for a model that follows masks but neither of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.toy.model import MakeToy, Toy
from unified import ImagePredictor, VideoPredictor
from unified.errors import InputError
from unified.inference.memory import VideoMemory
from unified.structures import Point, Prompt

SIZE = (60, 80)
SIZES = {"short_side": 64, "max_size": 128}
BOX = (10.0, 5.0, 34.2, 25.0)


def frames(num: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 255, (num, *SIZE, 3), dtype=np.uint8))


def rectangle() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[5:25, 10:35] = True
    return mask


def test_a_box_is_the_mask_of_its_rectangle(segmenter: Toy) -> None:
    predictor = ImagePredictor(segmenter, **SIZES)
    predictor.set_image(frames(1)[0])
    for text in (None, "the red dog"):
        boxed, masked = (
            predictor.predict_prob(Prompt(text=text, **shown))
            for shown in ({"box": BOX}, {"mask": rectangle()})
        )
        assert np.array_equal(boxed[0], masked[0]) and boxed[1] == masked[1]


def test_the_mirror_image_sees_the_mirrored_box(segmenter: Toy) -> None:
    predictor = ImagePredictor(segmenter, mirror=True, **SIZES)
    predictor.set_image(frames(1)[0])
    boxed, masked = (
        predictor.predict_prob(prompt)[0]
        for prompt in (Prompt(box=(10, 5, 35, 25)), Prompt(mask=rectangle()))
    )
    assert np.array_equal(boxed, masked)


def test_what_is_found_in_a_box_defines_the_object(segmenter: Toy) -> None:
    """Not the rectangle itself: it is asked for on its own frame, and the answer remembered."""
    clip = frames(3)
    given = {"score_threshold": 0.0, "merge_rule": "separate", **SIZES}
    boxed = list(VideoPredictor(segmenter, **given).run(clip, {0: {1: Prompt(box=BOX)}}))
    predictor = ImagePredictor(segmenter, **SIZES)
    predictor.set_image(clip[0])
    assert boxed[0].areas[1] > 0 and not np.array_equal(boxed[0].masks[1], rectangle())
    found = Prompt(mask=boxed[0].masks[1])
    masked = list(VideoPredictor(segmenter, **given).run(clip, {0: {1: found}}))
    for one, other in zip(boxed[1:], masked[1:], strict=True):
        assert np.array_equal(one.masks[1], other.masks[1]) and one.scores == other.scores


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(points=(Point(80, 3),)), r"the point 80,3 is outside the image of 80 x 60 pixels"),
        (Prompt(points=(Point(3, -1),)), r"the point 3,-1 is outside .* y from 0 to 59"),
        (Prompt(box=(10, 5, 10, 25)), r"the box 10,5,10,25 has no area"),
        (Prompt(box=(30, 5, 10, 25)), r"has no area: give x0,y0,x1,y1 with x0 below x1"),
        (Prompt(box=(10, 5, 81, 25)), r"the box 10,5,81,25 does not lie within the image of 80 x"),
        (Prompt(points=(Point(3, 3, inside=False),)), r"give at least one that is on it"),
        (Prompt(points=(Point(3, 3),)), r"follows mask and text references, not point"),
    ],
)
def test_bad_places_get_one_clear_line(segmenter: Toy, prompt: Prompt, message: str) -> None:
    picture = frames(1)[0]
    still, moving = ImagePredictor(segmenter, **SIZES), VideoPredictor(segmenter, **SIZES)
    still.set_image(picture)
    with pytest.raises(InputError, match=message):
        still.predict(prompt)
    with pytest.raises(InputError, match=message):
        moving.step(picture, {1: prompt})
    assert moving.object_ids == ()


def test_a_model_of_sentences_follows_no_box(build_segmenter: MakeToy) -> None:
    predictor = ImagePredictor(build_segmenter(kinds=("text",)), **SIZES)
    predictor.set_image(frames(1)[0])
    with pytest.raises(InputError, match="follows text references, not box"):
        predictor.predict(Prompt(box=BOX))


def test_what_was_never_found_is_left_out_of_the_batches() -> None:
    memory = VideoMemory()
    memory.add(1, tentative=True)
    assert memory.batches([1], 8) == []
