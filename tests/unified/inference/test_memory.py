from __future__ import annotations

import math
import weakref

import pytest
import torch

from unified.inference import memory as remembered
from unified.inference.memory import VideoMemory
from unified.structures import Reference, References, join_levels

LEVELS = 2


def references(seed: int, num: int = 5) -> References:
    """``num`` tokens of one object at two levels."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        Reference(
            keys=torch.randn(1, num + level, 4, generator=generator),
            values=torch.randn(1, num + level, 4, generator=generator),
            padding_mask=torch.zeros(1, num + level, dtype=torch.bool),
            summary=torch.randn(1, 4, generator=generator),
        )
        for level in range(LEVELS)
    )


def together(memory: VideoMemory, ids: tuple[int, ...]) -> tuple[tuple[Reference, ...], ...]:
    """The references of a batch."""
    return remembered.references(tuple(memory.tracks(ids).values()))


def only(memory: VideoMemory, object_id: int) -> tuple[tuple[Reference, ...], ...]:
    """The references of one object."""
    (ids,) = memory.batches([object_id], 8)
    assert ids == (object_id,)
    return together(memory, ids)


def same(ours: References, expected: References) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(ours, expected, strict=True)
        for name in ("keys", "values", "padding_mask", "summary")
    )


def test_a_mask_counts_once_until_a_later_frame_is_seen() -> None:
    memory, first, second, third = VideoMemory(), references(1), references(2), references(3)
    memory.add(1, mask=first)
    (kind,) = only(memory, 1)
    assert same(kind, first)
    memory.update(1, second, 0.9)
    (kind,) = only(memory, 1)
    assert same(kind, join_levels([first, second]))
    memory.update(1, third, 0.9)
    (kind,) = only(memory, 1)
    assert same(kind, join_levels([first, third]))


def test_a_sentence_is_joined_by_the_first_mask_that_is_seen() -> None:
    memory, text, first, second = VideoMemory(), references(1), references(2), references(3)
    memory.add(1, text=text)
    assert [same(kind, text) for kind in only(memory, 1)] == [True]
    memory.update(1, first, 0.9)
    words, visual = only(memory, 1)
    assert same(words, text) and same(visual, first)
    memory.update(1, second, 0.9)
    words, visual = only(memory, 1)
    assert same(words, text) and same(visual, join_levels([first, second]))


def test_what_a_sentence_was_found_with_is_known_until_the_user_shows_the_object() -> None:
    memory, text = VideoMemory(), references(1)
    memory.add(1, text=text)
    assert memory.found_with(1) is None
    memory.update(1, references(2), 0.4)
    memory.update(1, references(3), 0.8)  # of sentence and memory, which says nothing new
    assert memory.found_with(1) == 0.4
    memory.confirm(1, 0.3)
    memory.confirm(1, 0.6)
    assert memory.found_with(1) == 0.6
    memory.restart(1)
    assert [same(kind, text) for kind in only(memory, 1)] == [True]
    memory.update(1, references(4), 0.7)
    assert memory.found_with(1) == 0.7
    memory.add(1, mask=references(5))
    assert memory.found_with(1) is None
    memory.add(2, text=text, tentative=True, shown=references(6))
    memory.update(2, references(7), 0.5)
    assert memory.found_with(2) is None


def test_a_correction_is_remembered_beside_the_first_mask() -> None:
    """The next correction takes its place; the sentence stays, or is replaced by another."""
    memory, text, first = VideoMemory(), references(1), references(2)
    memory.add(1, text=text, mask=first)
    memory.update(1, references(3), 0.9)
    for number in (4, 14):
        memory.add(1, mask=references(number))
        words, visual = only(memory, 1)
        assert same(words, text) and same(visual, join_levels([first, references(number)]))
        memory.update(1, references(5), 0.9)
        visual = only(memory, 1)[1]
        assert same(visual, join_levels([first, references(number), references(5)]))
    memory.add(1, text=references(6))
    assert same(only(memory, 1)[0], references(6))


def test_a_correction_takes_the_place_of_what_a_sentence_found() -> None:
    memory, text = VideoMemory(), references(1)
    memory.add(1, text=text)
    memory.update(1, references(2), 0.9)
    memory.update(1, references(3), 0.9)
    memory.add(1, mask=references(4))
    words, visual = only(memory, 1)
    assert same(words, text) and same(visual, references(4))


def test_what_points_show_starts_the_object_anew() -> None:
    memory = VideoMemory()
    memory.add(1, mask=references(1))
    memory.add(1, mask=references(2))
    memory.update(1, references(3), 0.9)
    memory.add(1, tentative=True, shown=references(4))
    assert [same(kind, references(4)) for kind in only(memory, 1)] == [True]
    memory.update(1, references(5), 0.9)
    memory.end_frame()
    assert [same(kind, references(5)) for kind in only(memory, 1)] == [True]


def test_ids_ascend_and_can_be_forgotten() -> None:
    memory = VideoMemory()
    for object_id in (7, 2, 30):
        memory.add(object_id, text=references(object_id))
    assert memory.object_ids == (2, 7, 30)
    memory.forget(7)
    memory.forget(99)
    assert memory.object_ids == (2, 30)


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_batches_hold_every_object_once_with_its_own_references(size: int) -> None:
    """Objects of one make-up share a batch; shorter references are padded, never cut."""
    memory = VideoMemory()
    for object_id in range(1, 5):
        memory.add(object_id, mask=references(object_id, num=4 + object_id))
    memory.update(2, references(20), 0.9)
    memory.add(5, text=references(50))
    memory.add(6, text=references(60), mask=references(61))
    wanted = [6, 1, 5, 2, 3, 4]
    seen: list[int] = []
    for ids in memory.batches(wanted, size):
        assert 1 <= len(ids) <= size
        kinds = together(memory, ids)
        seen += ids
        for row, object_id in enumerate(ids):
            for ours, expected in zip(kinds, only(memory, object_id), strict=True):
                for level, alone in zip(ours, expected, strict=True):
                    length = alone.keys.shape[1]
                    assert torch.equal(level.keys[row, :length], alone.keys[0])
                    assert torch.equal(level.values[row, :length], alone.values[0])
                    assert torch.equal(level.summary[row], alone.summary[0])
                    assert torch.equal(level.padding_mask[row, :length], alone.padding_mask[0])
                    assert level.padding_mask[row, length:].all()
                    assert level.keys.isfinite().all() and level.values.isfinite().all()
    assert sorted(seen) == sorted(wanted)


def test_no_objects_no_batches() -> None:
    assert VideoMemory().batches([], 8) == []


def test_only_the_first_frame_the_correction_and_the_latest_are_kept() -> None:
    memory = VideoMemory()
    alive: list[weakref.ref[torch.Tensor]] = []
    for frame in range(10):
        mask = references(frame)
        alive.append(weakref.ref(mask[0].keys))
        if frame in (0, 3, 6):
            memory.add(1, mask=mask)
        else:
            memory.update(1, mask, 0.9)
    del mask
    assert [frame for frame, tensor in enumerate(alive) if tensor() is not None] == [0, 6, 9]


def test_how_long_answers_rest_on_the_same() -> None:
    memory = VideoMemory()
    memory.add(1, mask=references(1))
    memory.add(2, text=references(2))
    assert memory.steady([1], interval=3) == 4 and memory.steady([2], interval=3) == 1
    memory.end_frame()
    assert memory.steady([1], interval=3) == 3 and memory.steady([1, 2], interval=3) == 1
    memory.end_frame()
    memory.end_frame()
    assert memory.is_due(1, 3) and memory.steady([1], interval=3) == 1
    assert memory.steady([2], interval=3) == math.inf, "what was not found 3 times is not expected"
    assert memory.steady([1, 2], interval=3) == 1
    memory.update(2, references(3), 0.5)
    assert memory.steady([1, 2], interval=5) == 3
