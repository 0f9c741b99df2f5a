"""Work on several threads: all of it, in order, and no error is lost."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, Event
from time import sleep

import pytest
import torch

from unified.inference.workers import side_by_side


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
