"""Sentences of a clip that mean one thing: who has its pixels."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from tests.unified.inference.test_weak_sentences import FRAMES, LEFT, SIZE, Scripted
from unified import VideoPredictor
from unified.inference.doubles import Doubles
from unified.structures import Prompt


def claims(*widths: int) -> torch.Tensor:
    """One row per object, which takes so many columns of ten."""
    return torch.stack([torch.arange(10).expand(4, -1) < width for width in widths])


def test_the_one_that_was_seen_first_keeps_the_pixels() -> None:
    assert Doubles().update([1, 2], claims(10, 9), said=[1, 2], seen=[]) == {2: 1}
    assert Doubles().update([1, 2], claims(10, 9), said=[1, 2], seen=[2]) == {1: 2}
    assert Doubles().update([1, 2, 3], claims(10, 9, 9), said=[1, 2, 3], seen=[]) == {2: 1, 3: 1}


def test_what_the_user_showed_is_nobodys_double() -> None:
    assert Doubles().update([1, 2], claims(10, 10), said=[1], seen=[1]) == {1: 2}
    assert Doubles().update([1, 2], claims(10, 10), said=[], seen=[]) == {}


def test_doubles_part_when_they_hardly_overlap() -> None:
    doubles = Doubles()
    assert doubles.update([1, 2], claims(10, 6), said=[1, 2], seen=[]) == {}
    assert doubles.update([1, 2], claims(10, 9), said=[1, 2], seen=[]) == {2: 1}
    assert doubles.update([1, 2], claims(10, 6), said=[1, 2], seen=[1]) == {2: 1}
    assert doubles.update([1, 2], claims(10, 4), said=[1, 2], seen=[1]) == {}
    assert doubles.update([1, 2], claims(10, 6), said=[1, 2], seen=[1, 2]) == {}


def test_another_object_with_the_id_of_a_double_is_none() -> None:
    doubles = Doubles()
    assert doubles.update([1, 2], claims(10, 9), said=[1, 2], seen=[]) == {2: 1}
    doubles.forget(2)
    assert doubles.update([1, 2], claims(10, 6), said=[1, 2], seen=[1]) == {}


def test_nothing_is_the_double_of_nothing() -> None:
    assert Doubles().update([1, 2], claims(0, 0), said=[1, 2], seen=[]) == {}


def test_two_sentences_about_one_thing_have_one_id_in_a_clip(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both are remembered whole, and it is said once."""
    predictor = VideoPredictor(Scripted().eval(), short_side=SIZE[0], objects_per_pass=1)
    said = {0: {1: Prompt(text="it"), 2: Prompt(text="the same")}}
    with caplog.at_level(logging.WARNING):
        results = list(predictor.run(FRAMES, said))
    for result in results:
        assert np.array_equal(result.label_map == 1, np.broadcast_to(LEFT, SIZE))
        assert not result.areas[2] and result.presence[2].kind == "outcompeted"
        assert result.presence[2].by == 1
    assert [record.getMessage()[:54] for record in caplog.records] == [
        "object 2 shows the same thing as object 1, which keeps"
    ]
    assert predictor.encoder.model.asked == ["alone"] * 2 + ["both"] * 2 * (len(FRAMES) - 1)


def test_what_the_user_points_at_keeps_its_pixels_from_that_frame_on() -> None:
    predictor = VideoPredictor(Scripted().eval(), short_side=SIZE[0], objects_per_pass=1)
    box = (0.0, 0.0, SIZE[1] / 2, float(SIZE[0]))
    said = {0: {1: Prompt(text="it"), 2: Prompt(text="the same", box=box)}}
    for result in predictor.run(FRAMES, said):
        assert not result.areas[1] and result.areas[2] == LEFT.sum() * SIZE[0]


def test_with_masks_of_their_own_both_have_it() -> None:
    predictor = VideoPredictor(
        Scripted().eval(), short_side=SIZE[0], objects_per_pass=1, merge_rule="separate"
    )
    said = {0: {1: Prompt(text="it"), 2: Prompt(text="the same")}}
    for result in predictor.run(FRAMES, said):
        assert np.array_equal(result.masks[1], result.masks[2]) and result.masks[1].any()
