"""Clips of a model that another one guides: it says what a sentence means until that is found."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.unified.inference.test_weak_sentences import FRAMES, LEFT, SIZE, Scripted
from unified import VideoPredictor
from unified.inference.frames import EncodedFrame
from unified.structures import Prompt, References


class Guide:
    """Says what is written down for each frame: a side and a score."""

    in_clips = True

    def __init__(self, answers: Sequence[tuple[str, float]]) -> None:
        self.answers = answers
        self.looked: list[int] = []
        self.asked: list[str] = []

    def understands(self, text: str) -> bool:
        return text != "nonsense"

    def look_at_frame(self, frame: EncodedFrame) -> int:
        assert frame.size == SIZE
        self.looked.append(int(frame.image[0, 0, 0]))
        return self.looked[-1]

    def answer(self, scene: int, text: str, references: References) -> Any:
        self.asked.append(text)
        side, score = self.answers[scene]
        mask = torch.from_numpy(LEFT if side == "left" else ~LEFT).float()
        small = mask.expand(SIZE[0] // 2, -1)[:, ::2]
        return SimpleNamespace(probability=small, score=score)


def follow(
    guide: Guide, prompts: dict[int, dict[int, Prompt]], **settings: Any
) -> tuple[list[str], list[float], list[str]]:
    """Where object 1 is on each frame, its scores, and what the model itself was asked."""
    model: Any = Scripted().eval()
    model.chooser = guide
    predictor = VideoPredictor(model, short_side=32, max_size=64, **settings)
    predictor.side_by_side = False
    sides, scores = [], []
    for result in predictor.run(FRAMES, prompts):
        left, right = (bool((result.label_map[0, half] == 1).any()) for half in (LEFT, ~LEFT))
        sides.append({(True, False): "left", (False, True): "right"}.get((left, right), "nowhere"))
        scores.append(round(result.scores[1], 6))
    return sides, scores, model.asked


SAID = {0: {1: Prompt(text="it")}}


def test_the_guide_is_asked_every_few_frames_until_it_finds_the_thing_then_memory_is() -> None:
    guide = Guide([("left", 0.02), *[("left", 0.9)] * 2, ("right", 0.4), *[("left", 0.9)] * 2])
    sides, scores, asked = follow(guide, SAID, memory_interval=3)
    assert guide.looked == [0, 3], "not on the frames between, and not after"
    assert sides == ["nowhere"] * 3 + ["right"] * 3
    assert scores == [0.02, 0.0, 0.0, 0.4, 0.9, 0.9]
    assert asked == ["both"] * 2, "the model itself follows, and does not look for it"


def test_what_the_guide_finds_stands_beside_what_is_followed() -> None:
    guide = Guide([("left", 0.02)] * 3 + [("left", 0.45)] * 3)
    shown = Prompt(mask=np.tile(~LEFT, (SIZE[0], 1)))
    prompts = {0: {1: Prompt(text="it"), 2: shown}}
    sides, scores, asked = follow(guide, prompts, memory_interval=3)
    assert sides == ["nowhere"] * 3 + ["left"] * 3 and scores[3] == 0.45
    assert asked == ["memory"] * 3 + ["both", "memory"] * 2


def test_without_memory_the_guide_is_asked_about_every_frame() -> None:
    guide = Guide([("left", 0.9), ("right", 0.9)] * 3)
    sides, _, asked = follow(guide, SAID, memory_interval=3, use_memory=False)
    assert sides == ["left", "right"] * 3 and not asked


def test_a_frame_is_looked_at_once_and_a_sentence_is_asked_when_it_comes() -> None:
    guide = Guide([("left", 0.02)] * 6)
    one, two = Prompt(text="it"), Prompt(text="another")
    prompts = {0: {1: one, 2: two}, 2: {1: two}, 4: {3: Prompt(text="nonsense")}}
    follow(guide, prompts, memory_interval=3)
    assert guide.looked == [0, 2, 3, 5]
    assert guide.asked == ["it", "another", "another", "another", "another"]


def test_the_guide_says_whether_a_sentence_means_what_a_mask_beside_it_shows() -> None:
    given = {0: {1: Prompt(text="it", mask=np.tile(LEFT, (SIZE[0], 1)))}}
    for side, asked in (("left", "both"), ("right", "memory")):
        guide = Guide([(side, 0.9)] * 6)
        sides, _, found = follow(guide, given)
        assert sides == ["left"] * 6 and set(found) == {asked} and guide.looked == [0]


def test_weak_answers_of_the_guide_give_way_to_better_ones_of_the_model() -> None:
    """The guide costs much more, and is not asked again."""
    guide = Guide([("left", 0.35)] * 6)
    sides, _, asked = follow(guide, SAID, memory_score=0.65)
    assert sides == ["left"] * 3 + ["right"] * 3 and guide.looked == [0]
    assert asked.count("alone") == 3


@pytest.mark.parametrize(
    ("side", "score", "found"),
    [
        ("left", 0.2, True),  # the model itself says left with 0.35 too
        ("left", 0.02, False),  # firmly refused
        ("right", 0.2, False),  # another thing
    ],
)
def test_what_the_guide_doubts_is_there_if_the_model_finds_it_too(
    side: str, score: float, found: bool
) -> None:
    sides, scores, asked = follow(Guide([(side, score)] * 6), SAID, memory_interval=6)
    assert sides == (["left"] if found else ["nowhere"]) * 6
    assert scores[0] == (0.35 if found else score)
    assert asked.count("alone") == (score > 0.03)


@pytest.mark.parametrize(
    ("in_clips", "expected"), [(True, ["both", "memory"]), (False, ["alone", "both", "memory"])]
)
def test_what_is_refused_in_images_is_refused_in_clips(in_clips: bool, expected: list[str]) -> None:
    """Also where the chooser is not asked about clips itself."""
    model: Any = Scripted().eval()
    model.chooser = Guide([("left", 0.9)] * 2)
    model.chooser.in_clips = in_clips
    predictor = VideoPredictor(model, short_side=SIZE[0])
    shown = np.broadcast_to(~LEFT, SIZE)
    prompts = {
        1: Prompt(text="nonsense"),
        2: Prompt(text="it"),
        3: Prompt(text="nonsense", mask=shown),
    }
    for result in predictor.run(FRAMES[:2], {0: prompts}):
        assert np.array_equal(result.label_map, np.broadcast_to(np.where(LEFT, 2, 3), SIZE))
        assert [result.presence[i].kind for i in prompts] == ["refused", "present", "present"]
        assert result.scores[1] == 0 and result.boxes[1] is None
    assert model.asked == expected
