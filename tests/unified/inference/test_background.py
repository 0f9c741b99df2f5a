"""Calls beside the caller: in order, and no error is lost."""

from __future__ import annotations

import threading

import pytest

from unified.inference.background import Background


def test_calls_run_beside_the_caller_in_order() -> None:
    started, done = threading.Event(), []

    def first() -> None:
        assert started.wait(10), "the caller was kept waiting"
        done.append(1)

    with Background() as background:
        background(first)
        started.set()
        background(done.append, 2)
    assert done == [1, 2]


def fail() -> None:
    raise OSError("disk full")


def test_an_error_reaches_the_caller_with_the_next_call() -> None:
    done: list[int] = []
    with pytest.raises(OSError, match="disk full"), Background() as background:
        background(fail)
        background(done.append, 1)
    assert not done


def test_the_error_of_the_last_call_is_raised_at_the_end() -> None:
    with pytest.raises(OSError, match="disk full"), Background() as background:
        background(fail)


def test_the_error_of_the_caller_counts_and_the_last_call_is_finished() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background(done.append, 1)
        raise KeyboardInterrupt
    assert done == [1]
