"""Objects and frames side by side on two threads: the same answers as one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.toy.clips import MASKS, MIXED, TEXTS, all_equal, count_calls, frames, video
from tests.toy.model import MakeToy, Toy
from unified import VideoPredictor
from unified.errors import InputError
from unified.structures import FrameResult, Prompt

pytestmark = pytest.mark.usefixtures("two_threads")

PROMPTS = {0: {i: Prompt(mask=MASKS[i % 3]) for i in (1, 2, 3)}}


def alone(model: Toy, **options: object) -> VideoPredictor:
    predictor = video(model, **options)
    predictor.side_by_side = False
    return predictor


@pytest.mark.parametrize("rule", ["soft", "separate"])
def test_the_same_as_one_after_the_other(segmenter: Toy, rule: str) -> None:
    ours = list(video(segmenter, merge_rule=rule).run(frames(5), MIXED))
    expected = list(alone(segmenter, merge_rule=rule).run(frames(5), MIXED))
    all_equal(ours, expected, atol=1e-5)
    assert any(result.label_map.any() for result in ours)


@pytest.mark.parametrize(
    ("num", "largest", "expected"),
    [(1, 8, [1]), (3, 8, [1, 2]), (7, 3, [1, 2, 2, 2]), (7, 1, [1] * 7), (7, 8, [3, 4])],
)
def test_objects_are_shared_out_alike(
    segmenter: Toy, num: int, largest: int, expected: list[int]
) -> None:
    predictor = video(segmenter, objects_per_pass=largest)
    with count_calls(segmenter.head) as calls:
        predictor.step(frames(1)[0], {i: Prompt(text=TEXTS[i % 4]) for i in range(1, num + 1)})
    assert sorted(calls) == expected


def test_large_operations_are_shared_and_objects_stay_together(
    segmenter: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(alone(segmenter).run(frames(4), PROMPTS))
    monkeypatch.setattr("unified.inference.frames.MANY_TOKENS", 4)
    with count_calls(segmenter.head) as calls:
        all_equal(list(video(segmenter).run(frames(4), PROMPTS)), expected, atol=0)
    assert calls == [3, 3, 3]


def test_each_frame_is_encoded_once_and_three_are_read_ahead(segmenter: Toy) -> None:
    read: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for index, frame in enumerate(frames(9)):
            read.append(index)
            yield frame

    predictor = video(segmenter)
    with count_calls(segmenter.backbone) as calls:
        results = predictor.run(stream(), PROMPTS)
        assert read == []
        next(results), next(results), next(results)
        results.close()  # type: ignore[attr-defined]
    assert 3 <= len(read) <= 6
    assert 3 <= len(calls) <= 6


def test_frames_before_the_first_object_cost_nothing(segmenter: Toy) -> None:
    with count_calls(segmenter.backbone) as calls:
        list(video(segmenter).run(frames(3), {2: {1: Prompt(mask=MASKS[0])}}))
    assert calls == [1]


def test_a_stream_may_fill_one_array_again_and_again(segmenter: Toy) -> None:
    clip = frames(4)

    def stream() -> Iterator[np.ndarray]:
        buffer = np.empty_like(clip[0])
        for frame in clip:
            buffer[:] = frame
            yield buffer

    ours = list(video(segmenter).run(stream(), PROMPTS))
    all_equal(ours, list(alone(segmenter).run(clip, PROMPTS)), atol=1e-5)


@pytest.mark.parametrize("kinds", [("text", "mask"), ("text",)])
def test_weights_that_change_between_frames_hold_from_the_next_one_on(
    build_segmenter: MakeToy, kinds: tuple[str, ...]
) -> None:
    """Of a model of which a part is folded, and of one that is run as it is."""

    def run(beside: bool) -> list[FrameResult]:
        model = build_segmenter(kinds=kinds)
        predictor = video(model)
        assert (predictor.encoder.model is model) == (kinds == ("text",))
        predictor.side_by_side = beside
        results = []
        for result in predictor.run(frames(5), {0: {1: Prompt(text=TEXTS[0])}}):
            results.append(result)
            with torch.no_grad():
                next(model.backbone.parameters()).mul_(1.2)
        return results

    all_equal(run(beside=True), run(beside=False), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((60, 80), "uint8"), ((60, 80, 4), "uint8"), ((60, 80, 3), "float64")]
)
def test_a_bad_frame_is_refused_in_its_turn(
    segmenter: Toy, shape: tuple[int, ...], dtype: str
) -> None:
    clip = frames(4)
    clip[2] = np.zeros(shape, dtype)
    found = []
    with pytest.raises(InputError, match="expected an RGB image"):
        for result in video(segmenter).run(clip, PROMPTS):
            found.append(result)
    all_equal(found, list(alone(segmenter).run(clip[:2], PROMPTS)), atol=1e-5)


def test_objects_that_come_and_go_between_frames(segmenter: Toy) -> None:
    def run(predictor: VideoPredictor) -> list[FrameResult]:
        results = []
        for index, result in enumerate(predictor.run(frames(6), PROMPTS)):
            results.append(result)
            if index == 2:
                predictor.add(7, Prompt(text="cat"))
                predictor.forget(2)
        return results

    ours = run(video(segmenter))
    assert list(ours[3].scores) == [1, 3, 7]
    all_equal(ours, run(alone(segmenter)), atol=1e-5)
