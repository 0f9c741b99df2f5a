"""Independent work on the threads of a processor.

Operations about one object are small. Threads that share each of them wait for each other most of
the time; threads that have work of their own do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
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
    pool = started_pool(at_once, threads // at_once)
    calls = [pool.submit(work, item) for item in items]
    try:
        return [call.result() for call in calls]
    finally:
        for call in calls:
            call.cancel()
        wait(calls)


def even_size(num: int, threads: int, largest: int) -> int:
    """Of batches of ``num`` objects, at most ``largest``: as many batches as threads, or more."""
    threads = min(threads, largest)
    if threads == 1:
        return largest
    rounds = -(-num // (threads * largest))
    return max(1, -(-num // max(1, rounds * threads)))


def then(before: Future[T], pool: Executor, work: Callable[[T], R]) -> Future[R]:
    """``work`` of a result in a pool, begun as soon as that is there; nothing waits in the pool."""
    after: Future[R] = Future()

    def run() -> None:
        if after.set_running_or_notify_cancel():
            try:
                after.set_result(work(before.result()))
            except BaseException as error:
                after.set_exception(error)

    def begin(_: Future[T]) -> None:
        try:
            pool.submit(run)
        except RuntimeError as error:  # the interpreter ends
            if after.set_running_or_notify_cancel():
                after.set_exception(error)

    before.add_done_callback(begin)
    return after


@cache
def started_pool(num: int, threads: int) -> ThreadPoolExecutor:
    """``num`` threads whose operations run on ``threads`` threads of torch each."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(num, initializer=_use, initargs=(threads,))
    all_begun = Barrier(num)
    list(pool.map(lambda _: all_begun.wait(), range(num)))
    torch.set_num_threads(before)  # what threads begin with that are made elsewhere
    return pool


if hasattr(os, "register_at_fork"):  # a child has the pools without their threads
    os.register_at_fork(after_in_child=started_pool.cache_clear)


@contextmanager
def threads_of_operations(num: int) -> Iterator[None]:
    """What operations of the caller's thread use meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _use(threads: int) -> None:
    """Sets what operations of this thread alone use."""
    torch.get_num_threads()  # the first operation of a thread would set the number of all
    torch.set_num_threads(threads)
