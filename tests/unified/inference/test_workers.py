"""Work on several threads: all of it, in order, and no error is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from threading import Barrier, Event
from time import sleep

import pytest
import torch

from unified.inference.workers import read_ahead, side_by_side


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_work_is_done_at_once_with_a_share_of_the_threads(four_threads: None) -> None:
    together = Barrier(2)

    def work(number: int) -> tuple[int, int]:
        together.wait(20)
        return number, torch.get_num_threads()

    assert side_by_side(work, [1, 2], 4) == [(1, 2), (2, 2)]
    assert side_by_side(lambda number: -number, [5, 4, 3, 2, 1], 2) == [-5, -4, -3, -2, -1]
    assert side_by_side(lambda _: torch.get_num_threads(), [1], 4) == [4]
    assert side_by_side(lambda _: torch.get_num_threads(), [1, 2], 1) == [4, 4]
    assert torch.get_num_threads() == 4


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda number: 1 / number, [1, 0, 2], 2)


def test_nothing_goes_on_after_an_error() -> None:
    failed, begun, ended = Event(), [], []

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            failed.set()
            raise OSError("damaged")
        assert failed.wait(20)
        sleep(0.1)
        ended.append(number)

    with pytest.raises(OSError, match="damaged"):
        side_by_side(work, range(20), 2)
    assert sorted([0, *ended]) == sorted(begun)
    assert len(begun) < 20


def test_the_next_item_is_prepared_beside_the_caller(four_threads: None) -> None:
    prepared = [Event() for _ in range(3)]

    def prepare(number: int) -> tuple[int, int]:
        prepared[number].set()
        return number, torch.get_num_threads()

    found = []
    with closing(read_ahead(range(3), prepare, 2)) as items:
        for item in items:
            found.append(item)
            assert prepared[min(item[0] + 1, 2)].wait(20), "nothing is done beside the caller"
            assert item[0] > 0 or not prepared[2].is_set(), "more than one is read ahead"
    assert found == [(0, 2), (1, 2), (2, 2)]
    assert torch.get_num_threads() == 4


def test_an_error_comes_in_its_turn() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("damaged")

    found = []
    with pytest.raises(OSError, match="damaged"), closing(read_ahead(numbers(), abs, 1)) as items:
        for item in items:
            found.append(item)
    assert found == [1, 2]


def test_closing_waits_for_what_is_being_read() -> None:
    reading, go_on, ended = Event(), Event(), []

    def numbers() -> Iterator[int]:
        yield 1
        reading.set()
        assert go_on.wait(20)
        ended.append(True)
        yield 2

    source = numbers()
    with closing(read_ahead(source, abs, 1)) as items:
        assert next(items) == 1 and reading.wait(20)
        go_on.set()
    assert ended
    source.close()  # nobody runs it
