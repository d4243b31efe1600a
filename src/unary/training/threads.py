"""What the processor offers: threads for independent pieces of an image, and matrix units.

torch divides every operation among its threads and has them wait for each other. With operations of a millisecond, as
on tiles and small batches, the waiting costs more than it saves, and beside other programs many times more. Here every
thread has a piece of its own, on which torch and numpy's matrix products use that thread alone.

torch is asked where it has been imported, and never imported to be asked: much runs without it.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")

_here = threading.local()  # ``count``: how many threads the work of this one may be divided among


def map_in_threads(function: Callable[[T], R], items: Iterable[T]) -> Generator[R]:
    """Yield ``function(item)`` of each item, in order, from as many threads as torch would use.

    At most two results per thread are under way, so that memory stays bounded. With a single thread this is ``map``.
    What torch keeps per thread, inference mode for one, is for the function to set.
    """
    threads = count_threads()
    if threads == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, "unary-map", initializer=_use_threads, initargs=(1,))
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
        _tell_torch(threads)  # the number of one thread is that of threads to come, too


def _find_torch() -> Any:
    """torch, if it has been imported whole."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "set_num_threads") else None


def _tell_torch(count: int) -> None:
    torch = _find_torch()
    if torch is not None:
        torch.set_num_threads(count)


def _use_threads(count: int) -> None:
    """Divide the work of this thread among so many."""
    _here.count = count
    _tell_torch(count)


def _find_libraries() -> ThreadpoolController:
    """What multiplies matrices here."""
    return _list_libraries(_find_torch() is not None)


@functools.cache
def _list_libraries(_torch: bool) -> ThreadpoolController:
    """The libraries that are loaded; torch brings its own."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def run_in_threads(function: Callable[[T], object], items: Iterable[T]) -> None:
    """Do the same for what a function does, not for what it returns."""
    deque(map_in_threads(function, items), maxlen=0)


def count_threads() -> int:
    """How many threads torch uses here, or would use, one for each processor."""
    own: int | None = getattr(_here, "count", None)
    if own is not None:
        return own
    torch = _find_torch()
    return _count_processors() if torch is None else int(torch.get_num_threads())


def _count_processors() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(int(asked), there) if asked.isdigit() and int(asked) > 0 else there


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let so many threads be used here, torch's own included."""
    before, own = count_threads(), getattr(_here, "count", None)
    _use_threads(count)
    try:
        yield
    finally:
        _tell_torch(before)
        _here.count = own


@contextmanager
def sharing_processor(count: int) -> Iterator[None]:
    """Let torch, and numpy's matrix products, use so many threads here: a share of what several processes have."""
    with using_threads(count), _find_libraries().limit(limits=count, user_api="blas"):
        yield


@functools.cache
def has_matrix_units() -> bool:
    """Say whether the processor multiplies bfloat16 faster than float32; elsewhere torch only imitates it."""
    import torch

    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16", False) or found.get("avx512_bf16", False))
