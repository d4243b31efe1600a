"""Independent pieces of work in processes of their own, for what Python's lock would keep on one core.

Every process holds the same state, which is sent to it once, and works on one piece at a time, on one thread. Pieces
are dealt out in turn and results come in order, so that nothing depends on how many processes there are, and no more
than a piece for each is under way.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from unary.errors import UnaryError
from unary.training.threads import sharing_processor

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE_S = 2.0
_ENDED = "a worker process ended without an answer; was it killed for want of memory? Try fewer workers"


def map_in_processes(
    work: Callable[[State, Item], Result], items: Iterable[Item], *, state: State, workers: int
) -> Generator[Result]:
    """Yield ``work(state, item)`` of each item, in order, from so many processes; with one worker, from this process.

    ``work`` is a function at the top level of a module, and state, items and results can be pickled. A script that
    calls this does so behind ``if __name__ == "__main__":``, as Python demands of whoever starts processes.

    Raises
    ------
    UnaryError
        If a process ends without an answer, as when it is killed for want of memory. What ``work`` raises is raised
        here.
    ValueError
        If there are no workers.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if workers == 1:
        for item in items:
            yield work(state, item)
        return
    context, waiting = multiprocessing.get_context("spawn"), iter(items)
    busy: list[Connection] = []
    with ExitStack() as cleanup:
        for item in waiting:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, work, state), daemon=True, name="unary-worker")
            process.start()
            theirs.close()
            cleanup.callback(_end, process, ours)
            _send(ours, item)
            busy.append(ours)
            if len(busy) == workers:
                break
        turn = 0
        while busy:
            turn %= len(busy)
            answer = _receive(busy[turn])
            try:
                _send(busy[turn], next(waiting))
                turn += 1
            except StopIteration:  # the others are due in the same order
                busy = busy[turn + 1 :] + busy[:turn]
                turn = 0
            yield answer


def _end(process: BaseProcess, connection: Connection) -> None:
    """Have a worker end by itself, or end it where it works on."""
    connection.close()
    process.join(_PATIENCE_S)
    if process.is_alive():
        process.terminate()
        process.join()


def _send(connection: Connection, item: Any) -> None:
    try:
        connection.send(item)
    except ConnectionError as error:
        raise UnaryError(_ENDED) from error


def _receive(connection: Connection) -> Any:
    try:
        sound, answer = connection.recv()
    except (EOFError, ConnectionError) as error:
        raise UnaryError(_ENDED) from error
    if not sound:
        raise answer
    return answer


def _serve(connection: Connection, work: Callable[[Any, Any], Any], state: Any) -> None:
    """Answer items until nobody asks any more, or Ctrl-C."""
    with suppress(EOFError, ConnectionError, KeyboardInterrupt), sharing_processor(1):
        while True:
            item = connection.recv()
            try:
                answer = (True, work(state, item))
            except Exception as error:  # raised again where the answer is awaited
                answer = (False, error)
            connection.send(answer)
