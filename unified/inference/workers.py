"""Independent work on the threads of a processor, and frames that are read ahead.

Operations about one object are small. Threads that share each of them wait for each other most of
the time; threads that have work of their own do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Sequence[T], threads: int) -> list[R]:
    """``work`` of every item, in their order; at once on up to ``threads`` threads.

    Each call has its share of the threads that torch uses for an operation. Where one fails, its
    error is raised when those that have begun are done, and no other begins.
    """
    at_once = min(len(items), threads)
    if at_once < 2:
        return [work(item) for item in items]
    pool = _pool(at_once, threads // at_once)
    calls = [pool.submit(work, item) for item in items]
    try:
        return [call.result() for call in calls]
    finally:
        for call in calls:
            call.cancel()
        wait(calls)


def read_ahead(
    items: Iterable[T], prepare: Callable[[T], R], threads: int
) -> Generator[R, None, None]:
    """``prepare`` of every item; that of the next one goes on beside the caller's work.

    An error of the next item is raised when that is asked for. To close the iterator waits for what
    is being read.

    Args:
        threads: of torch for an operation of ``prepare``.
    """
    iterator = iter(items)

    def read() -> tuple[R] | None:
        return next(((prepare(item),) for item in iterator), None)

    with _started(1, threads) as pool:
        coming = pool.submit(read)
        while (found := coming.result()) is not None:
            coming = pool.submit(read)
            yield found[0]


@cache
def _pool(num: int, threads: int) -> ThreadPoolExecutor:
    return _started(num, threads)


if hasattr(os, "register_at_fork"):  # a child has the pools without their threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _started(num: int, threads: int) -> ThreadPoolExecutor:
    """``num`` threads whose operations run on ``threads`` threads of torch each."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(num, initializer=_use, initargs=(threads,))
    all_begun = Barrier(num)
    list(pool.map(lambda _: all_begun.wait(), range(num)))
    torch.set_num_threads(before)  # what threads begin with that are made elsewhere
    return pool


def _use(threads: int) -> None:
    """Sets what operations of this thread alone use."""
    torch.get_num_threads()  # the first operation of a thread would set the number of all
    torch.set_num_threads(threads)
