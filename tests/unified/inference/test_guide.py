"""Clips of a model that another one guides: it says what a sentence means until that is found."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
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

    def look(self, frames: Sequence[EncodedFrame], image: np.ndarray) -> int:
        assert len(frames) == 1 and frames[0].size == SIZE == image.shape[:2]
        self.looked.append(int(image[0, 0, 0]))
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
    guide = Guide([("left", 0.1), *[("left", 0.9)] * 2, ("right", 0.4), *[("left", 0.9)] * 2])
    sides, scores, asked = follow(guide, SAID, memory_interval=3)
    assert guide.looked == [0, 3], "not on the frames between, and not after"
    assert sides == ["nowhere"] * 3 + ["right"] * 3
    assert scores == [0.1, 0.0, 0.0, 0.4, 0.9, 0.9]
    assert asked == ["both"] * 2, "the model itself follows, and does not look for it"


def test_what_the_guide_finds_stands_beside_what_is_followed() -> None:
    guide = Guide([("left", 0.1)] * 3 + [("left", 0.45)] * 3)
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
    guide = Guide([("left", 0.1)] * 6)
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


def test_weak_answers_of_the_guide_give_way_to_better_ones() -> None:
    guide = Guide([("left", 0.35), ("left", 0.4), ("right", 0.9), *[("left", 0.9)] * 3])
    sides, _, _ = follow(guide, SAID, memory_score=0.7)
    assert sides == ["left"] * 2 + ["right"] * 4 and guide.looked == [0, 1, 2]
