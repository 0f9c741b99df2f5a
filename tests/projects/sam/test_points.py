"""Points and boxes on images and clips, alone and with sentences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from projects.sam.model import SamUniFusion
from tests.projects.sam.tiny import make_model, opened
from unified import ImagePredictor, VideoPredictor
from unified.errors import InputError
from unified.structures import Point, Prompt

SIZE = (30, 50)
GIVEN = {"short_side": 64, "max_size": 64}
POINTS = (Point(20, 10), Point(40, 25, inside=False))
BOX = (5.0, 4.0, 30.0, 20.0)


def frames(num: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return list(rng.integers(0, 255, (num, *SIZE, 3), dtype=np.uint8))


def visible(model: SamUniFusion) -> SamUniFusion:
    """Masks of about half of the picture."""
    return opened(model)


@pytest.mark.parametrize("prompt", [Prompt(points=POINTS), Prompt(points=POINTS, box=BOX)])
@torch.no_grad()
def test_prompts_are_in_pixels_of_the_picture(prompt: Prompt) -> None:
    """The picture of 30 x 50 is seen at 38 x 64: places move along."""
    model = visible(make_model())
    predictor = ImagePredictor(model, **GIVEN)
    predictor.set_image(frames(1)[0])
    _, score = predictor.predict(prompt)
    assert predictor._frame is not None
    scale = torch.tensor([64 / 50, 38 / 30])
    points = torch.tensor([[[20.0, 10.0], [40.0, 25.0]]]) * scale
    boxes = None if prompt.box is None else torch.tensor([BOX]) * scale.repeat(2)
    reference = model.encode_points(points, torch.tensor([[1, 0]]), boxes)
    expected = model.segment(predictor._frame.features, [reference])
    assert score == pytest.approx(float(expected.scores[0, 0]), abs=1e-5)


def test_a_sentence_with_a_point_is_another_prompt() -> None:
    predictor = ImagePredictor(visible(make_model()), **GIVEN)
    predictor.set_image(frames(1)[0])
    maps = [
        predictor.predict_prob(Prompt(text=text, points=POINTS))[0]
        for text in (None, "the red man", "a dog")
    ]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in (maps[:2], maps[1:]))


def test_what_is_pointed_at_is_followed() -> None:
    model = visible(make_model())
    given = {"score_threshold": -1.0, "merge_rule": "separate", **GIVEN}
    clip = frames(3)
    prompts = {0: {1: Prompt(points=POINTS[:1]), 2: Prompt(box=BOX)}, 2: {1: Prompt(points=POINTS)}}
    results = list(VideoPredictor(model, **given).run(clip, prompts))
    assert [sorted(result.scores) for result in results] == [[1, 2]] * 3
    still = ImagePredictor(model, **GIVEN)
    still.set_image(clip[0])
    boxed = still.predict_prob(Prompt(box=BOX))
    assert results[0].scores[2] == pytest.approx(boxed[1], abs=1e-5)
    if results[0].areas[2]:
        start = {0: {2: Prompt(mask=results[0].masks[2])}}
        again = list(VideoPredictor(model, **given).run(clip[:2], start))
        assert np.array_equal(again[1].masks[2], results[1].masks[2])


def test_without_masks_there_is_no_memory_of_points() -> None:
    bare = SamUniFusion(make_model().sam).eval()
    predictor = ImagePredictor(bare, **GIVEN)
    predictor.set_image(frames(1)[0])
    assert predictor.predict(Prompt(points=POINTS))[0].shape == SIZE
    with pytest.raises(InputError, match="it cannot follow what is shown by points or a box"):
        VideoPredictor(bare, **GIVEN).step(frames(1)[0], {1: Prompt(points=POINTS)})
