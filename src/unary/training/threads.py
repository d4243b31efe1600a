"""What the processor offers: threads for independent pieces of an image, and matrix units.

torch divides every operation among its threads and has them wait for each other. With operations of a millisecond, as
on tiles and small batches, the waiting costs more than it saves, and beside other programs many times more. Here every
thread has a piece of its own, on which torch and numpy's matrix products use that thread alone.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(function: Callable[[T], R], items: Iterable[T]) -> Generator[R]:
    """Yield ``function(item)`` of each item, in order, from as many threads as torch would use.

    At most two results per thread are under way, so that memory stays bounded. With a single thread this is ``map``.
    What torch keeps per thread, inference mode for one, is for the function to set.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, "unary-map", initializer=torch.set_num_threads, initargs=(1,))
    try:
        with _find_libraries().limit(limits=1, user_api="blas"):
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the number of one thread is that of threads to come, too


@functools.cache
def _find_libraries() -> ThreadpoolController:
    return ThreadpoolController()


def run_in_threads(function: Callable[[T], object], items: Iterable[T]) -> None:
    """Do the same for what a function does, not for what it returns."""
    deque(map_in_threads(function, items), maxlen=0)


def count_threads() -> int:
    """How many threads torch uses here."""
    return torch.get_num_threads()


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads here."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def sharing_processor(count: int) -> Iterator[None]:
    """Let torch, and numpy's matrix products, use so many threads here: a share of what several processes have."""
    with using_threads(count), _find_libraries().limit(limits=count, user_api="blas"):
        yield


@functools.cache
def has_matrix_units() -> bool:
    """Say whether the processor multiplies bfloat16 faster than float32; elsewhere torch only imitates it."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16", False) or found.get("avx512_bf16", False))
