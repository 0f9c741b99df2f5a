"""Frames that are read, encoded and asked about before their turn: the answers of one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from threading import Event, get_ident
from time import sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.toy.clips import MASKS, MIXED, TEXTS, all_equal, count_calls, frames, video
from tests.toy.model import MakeToy, Toy
from unified import VideoPredictor
from unified.inference.frames import FrameAhead
from unified.inference.stream import coming_frames
from unified.inference.workers import then
from unified.structures import (
    FeaturePyramid,
    FrameResult,
    ImageBatch,
    Prompt,
    References,
    Segmentation,
)

pytestmark = pytest.mark.usefixtures("two_threads")

ONE = {0: {1: Prompt(mask=MASKS[0])}}
CHANGES: Mapping[int, Mapping[int, Prompt]] = {
    **MIXED,
    4: {1: Prompt(mask=MASKS[1])},
    5: {2: Prompt(text=TEXTS[3]), 6: Prompt(mask=MASKS[0])},
    8: {3: Prompt(mask=MASKS[2])},
}


def one_at_a_time(
    model: Toy, prompts: Mapping[int, Mapping[int, Prompt]], num: int, **options: object
) -> list[FrameResult]:
    predictor = video(model, **options)
    return [predictor.step(frame, prompts.get(i)) for i, frame in enumerate(frames(num))]


@dataclass
class Asked:
    """How often a module ran in this thread, and how often in others."""

    here: int = 0
    beside: int = 0


@contextmanager
def count_askers(module: nn.Module) -> Iterator[Asked]:
    asked, me = Asked(), get_ident()

    def count(*_: object) -> None:
        asked.here += get_ident() == me
        asked.beside += get_ident() != me

    hook = module.register_forward_pre_hook(count)
    try:
        yield asked
    finally:
        hook.remove()


class Blind(Toy):
    """Finds nothing in black frames."""

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        features = super().encode_image(images)
        seen = (images.tensor > 0).any()
        return replace(features, levels=tuple(level * seen for level in features.levels))

    def segment(
        self, features: FeaturePyramid, references: Sequence[References], **options: Any
    ) -> Segmentation:
        found = super().segment(features, references, **options)
        return replace(found, scores=found.scores * features.levels[0].any())


@pytest.mark.parametrize("rule", ["soft", "separate"])
@pytest.mark.parametrize("interval", [1, 2, 3])
def test_the_same_as_one_frame_at_a_time(segmenter: Toy, interval: int, rule: str) -> None:
    options = {"memory_interval": interval, "merge_rule": rule}
    ours = list(video(segmenter, **options).run(frames(12), CHANGES))
    all_equal(ours, one_at_a_time(segmenter, CHANGES, 12, **options), atol=1e-5)
    assert any(result.label_map.any() for result in ours)


class Teller:
    """A chooser that finds sentences in every second frame, and doubts them in the others."""

    in_clips = True

    def __init__(self) -> None:
        self.bright = {int(frame.sum()) for frame in frames(12)[1::2]}

    def understands(self, text: str) -> bool:
        return True

    def look_at_frame(self, frame: Any) -> bool:
        return int(frame.image.sum()) in self.bright

    def answer(self, scene: bool, text: str, references: References) -> Any:
        found = torch.zeros(10, 10)
        found[2:6, 2 : 4 + len(text) % 5] = 1
        return SimpleNamespace(probability=found, score=0.8 if scene else 0.2)


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_the_same_where_a_chooser_says_what_sentences_mean(
    segmenter: Toy, interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenter, "chooser", Teller(), raising=False)
    options = {"memory_interval": interval, "memory_score": 0.85, "score_threshold": 0.5}
    ours = list(video(segmenter, **options).run(frames(12), CHANGES))
    all_equal(ours, one_at_a_time(segmenter, CHANGES, 12, **options), atol=1e-5)
    assert any(0.5 <= result.scores[2] != 0.8 for result in ours), "it is followed"


@pytest.mark.parametrize("interval", [1, 3])
def test_objects_that_leave_and_sentences_that_are_weak(segmenter: Toy, interval: int) -> None:
    """Every sentence is asked alone, too, and a threshold between the scores."""
    free = one_at_a_time(segmenter, MIXED, 12, memory_interval=interval)
    scores = [score for result in free for score in result.scores.values() if score < 1]
    for threshold in (float(np.median(scores)), 1.0):
        options = {
            "memory_interval": interval,
            "memory_score": 1.0,
            "score_threshold": threshold,
        }
        expected = one_at_a_time(segmenter, MIXED, 12, **options)
        assert any(area == 0 for result in expected for area in result.areas.values())
        all_equal(list(video(segmenter, **options).run(frames(12), MIXED)), expected, atol=1e-5)


def test_changes_between_frames(segmenter: Toy) -> None:
    def run(beside: bool) -> list[FrameResult]:
        predictor = video(segmenter, memory_interval=3)
        predictor.side_by_side = beside
        results = []
        for index, result in enumerate(predictor.run(frames(12), CHANGES)):
            results.append(result)
            if index == 3:
                predictor.forget(1)
            elif index == 6:
                predictor.add(9, Prompt(text="cat"))
            elif index == 9:
                predictor.reset()
                predictor.add(2, Prompt(mask=MASKS[1]))
        return results

    ours = run(beside=True)
    assert list(ours[7].scores) == [1, 2, 3, 4, 5, 6, 9] and list(ours[10].scores) == [2]
    all_equal(ours, run(beside=False), atol=1e-5)


def test_results_of_another_size(segmenter: Toy) -> None:
    def run(beside: bool) -> list[FrameResult]:
        predictor = video(segmenter, memory_interval=3)
        predictor.side_by_side = beside
        with closing(predictor.ahead(frames(8), np.copy)) as coming:
            return [
                predictor.step(frame, ONE.get(i), output_size=(30, 40) if i < 5 else None)
                for i, (_, frame) in enumerate(coming)
            ]

    all_equal(run(beside=True), run(beside=False), atol=1e-5)


@pytest.mark.parametrize("interval", [2, 3])
def test_every_frame_is_asked_once_before_its_turn(segmenter: Toy, interval: int) -> None:
    with count_calls(segmenter.backbone) as encoded, count_askers(segmenter.head) as asked:
        results = list(video(segmenter, memory_interval=interval).run(frames(11), ONE))
    assert all(result.areas[1] for result in results)
    assert (asked.here, asked.beside) == (0, 10)
    assert len(encoded) == 11


def test_frames_that_renew_memory_are_asked_in_their_turn(segmenter: Toy) -> None:
    with count_askers(segmenter.head) as asked:
        list(video(segmenter, memory_interval=1).run(frames(8), ONE))
    assert (asked.here, asked.beside) == (7, 0)


def test_without_memory_all_are_asked_before_their_turn(build_segmenter: MakeToy) -> None:
    model = build_segmenter(kinds=("text",))
    with count_askers(model.head) as asked:
        list(video(model).run(frames(8), {0: {1: Prompt(text=TEXTS[0])}}))
    assert (asked.here, asked.beside) == (1, 7)


def test_an_object_that_was_lost_does_not_hold_up_the_frames(segmenter: Toy) -> None:
    lost = video(segmenter, memory_interval=1, score_threshold=1.0)
    with count_askers(segmenter.head) as asked:
        list(lost.run(frames(12), ONE))
    assert (asked.here, asked.beside) == (3, 8)


def test_an_object_that_comes_back_changes_what_is_asked(segmenter: Toy) -> None:
    """Frames that were asked with what was known before are asked anew."""
    model, clip = Blind().eval(), frames(14)
    model.load_state_dict(segmenter.state_dict())
    for index in (4, 5, 6, 7, 8):
        clip[index][:] = 0
    options = {"memory_interval": 1, "score_threshold": 1e-6}
    step = video(model, **options).step
    expected = [step(frame, ONE.get(i)) for i, frame in enumerate(clip)]
    found = [bool(result.areas[1]) for result in expected]
    assert not any(found[4:9]) and found[9]
    with count_askers(model.head) as asked:
        all_equal(list(video(model, **options).run(clip, ONE)), expected, atol=1e-5)
    assert asked.beside > 0


def test_a_correction_is_asked_with_what_is_known_then(segmenter: Toy) -> None:
    prompts = {**ONE, 5: {2: Prompt(mask=MASKS[1])}}
    with count_askers(segmenter.head) as asked:
        list(video(segmenter, memory_interval=3).run(frames(6), prompts))
    # Frame 5 was asked about object 1 alone, as no other was known; that is the same then.
    assert (asked.here, asked.beside) == (0, 5)
    prompts = {**ONE, 5: {2: Prompt(text=TEXTS[0]), 1: Prompt(mask=MASKS[1])}}
    with count_askers(segmenter.head) as asked:
        list(video(segmenter, memory_interval=3).run(frames(6), prompts))
    assert asked.here == 1 and asked.beside in (4, 5)  # object 2; 1 was not wanted any more


def test_a_result_does_not_wait_for_the_next_frame(segmenter: Toy) -> None:
    more = Event()

    def camera() -> Iterator[np.ndarray]:
        yield from frames(5)
        assert more.wait(20), "a result waits for a frame that comes later"
        yield from frames(2)

    results = video(segmenter, memory_interval=3).run(camera(), ONE)
    found = [next(results) for _ in range(5)]
    more.set()
    found += results
    assert len(found) == 7


def test_an_error_of_reading_comes_in_its_turn(segmenter: Toy) -> None:
    def damaged() -> Iterator[np.ndarray]:
        yield from frames(6)
        raise OSError("damaged")

    found = []
    with pytest.raises(OSError, match="damaged"):
        for result in video(segmenter, memory_interval=3).run(damaged(), ONE):
            found.append(result)
    all_equal(found, one_at_a_time(segmenter, ONE, 6, memory_interval=3), atol=1e-5)


def test_an_error_of_the_model_reaches_the_caller(segmenter: Toy) -> None:
    calls = Counter[str]()

    def fail(*_: object) -> None:
        calls["head"] += 1
        if calls["head"] > 5:
            raise MemoryError("full")

    found = []
    hook = segmenter.head.register_forward_pre_hook(fail)
    try:
        with pytest.raises(MemoryError, match="full"):
            for result in video(segmenter, memory_interval=3).run(frames(12), ONE):
                found.append(result)
    finally:
        hook.remove()
    assert 4 <= len(found) <= 6


def test_nothing_goes_on_after_closing(segmenter: Toy) -> None:
    predictor = video(segmenter, memory_interval=3)
    with count_calls(segmenter.head) as asked, count_calls(segmenter.backbone) as encoded:
        results = predictor.run(frames(40), ONE)
        next(results), next(results)
        results.close()  # type: ignore[attr-defined]
        before = len(asked), len(encoded)
        sleep(0.1)
        assert (len(asked), len(encoded)) == before
    assert before[1] <= 5


def test_nothing_goes_on_after_closing_about_what_nobody_wanted(segmenter: Toy) -> None:
    predictor, busy, begun = video(segmenter, memory_interval=3), Event(), []
    caller = get_ident()

    def hold(*_: object) -> None:
        if busy.is_set() and get_ident() != caller:
            begun.append("begins")
            sleep(0.2)
            begun.append("ends")

    coming = predictor.ahead(frames(8), np.copy)
    predictor.step(next(coming)[1], ONE[0])
    with segmenter.head.register_forward_pre_hook(hold):
        busy.set()
        _, frame = next(coming)
        sleep(0.1)  # later frames are asked about meanwhile
        predictor.forget(1)
        predictor.add(1, Prompt(mask=MASKS[1]))
        predictor.step(frame)
        next(coming)
        coming.close()
        known = list(begun)
        sleep(0.3)
    assert known
    assert known.count("begins") == known.count("ends")
    assert begun == known


def test_a_frame_whose_stream_was_closed_is_worked_at_anew(segmenter: Toy) -> None:
    expected = one_at_a_time(segmenter, ONE, 2, memory_interval=3)
    predictor = video(segmenter, memory_interval=3)
    with segmenter.backbone.register_forward_pre_hook(lambda *_: sleep(0.05)):
        coming = predictor.ahead(frames(6), np.copy)
        found = [predictor.step(next(coming)[1], ONE[0])]
        _, frame = next(coming)
        coming.close()
        assert isinstance(frame, FrameAhead)
        assert frame.encoded.cancelled() or any(a.cancelled() for _, a in frame.asked.values())
        found.append(predictor.step(frame))
    all_equal(found, expected, atol=1e-5)


def test_weights_that_change_while_frames_are_asked(build_segmenter: MakeToy) -> None:
    def run(beside: bool) -> list[FrameResult]:
        model = build_segmenter()
        predictor = video(model, memory_interval=3)
        predictor.side_by_side = beside
        results = []
        for index, result in enumerate(predictor.run(frames(10), MIXED)):
            results.append(result)
            if index in (3, 4, 7):
                with torch.no_grad():
                    next(model.backbone.parameters()).mul_(1.2)
        return results

    all_equal(run(beside=True), run(beside=False), atol=1e-5)


def test_frames_are_read_in_order_and_no_more_than_asked_for() -> None:
    read: list[int] = []

    def image(number: int) -> np.ndarray:
        read.append(number)
        return np.full((2, 2, 3), number, np.uint8)

    seen = []
    with closing(coming_frames(range(9), image, 2, lambda coming: None)) as coming:
        assert not read
        for number, pixels in coming:
            seen.append(number)
            assert pixels[0, 0, 0] == number  # type: ignore[index]
            assert len(read) <= number + 3
    assert seen == read == list(range(9))


def test_closing_waits_for_what_is_being_read() -> None:
    reading, go_on, ended = Event(), Event(), []

    def numbers() -> Iterator[int]:
        yield 1
        reading.set()
        assert go_on.wait(20)
        ended.append(True)
        yield 2

    source = numbers()
    stream = coming_frames(source, lambda _: np.zeros((1, 1, 3), np.uint8), 3, lambda _: None)
    with closing(stream) as items:
        assert next(items)[0] == 1 and reading.wait(20)
        go_on.set()
    assert ended
    source.close()  # nobody runs it


def test_work_that_follows_other_work() -> None:
    first: Future[int] = Future()
    with ThreadPoolExecutor(1) as pool:
        double = then(first, pool, lambda number: 2 * number)
        wrong = then(double, pool, lambda number: number / 0)
        after = then(wrong, pool, abs)
        dropped = then(first, pool, abs)
        assert dropped.cancel()
        assert pool.submit(abs, -1).result(20) == 1, "work that cannot begin holds the pool"
        first.set_result(4)
        assert double.result(20) == 8
        with pytest.raises(ZeroDivisionError):
            after.result(20)
        with pytest.raises(CancelledError):
            then(dropped, pool, abs).result(20)


def test_work_that_cannot_follow_any_more_fails() -> None:
    before: Future[int] = Future()
    pool = ThreadPoolExecutor(1)
    after = then(before, pool, lambda number: number)
    pool.shutdown()
    before.set_result(1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        after.result(timeout=5)


def test_the_caller_uses_all_threads_again(segmenter: Toy) -> None:
    predictor: VideoPredictor = video(segmenter, memory_interval=3)
    for _ in predictor.run(frames(6), ONE):
        assert torch.get_num_threads() == 2
