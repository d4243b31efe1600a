"""Engines that have workers make the results of shards: plain processes, or actors of Ray.

An engine only executes. Both give shards to `unary.clinic.shard_work.ShardWorker`, which writes their results by
itself; what is done is told by the records in the folder of results and by nothing else.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from unary.clinic.shard_work import ShardWorker, WorkerSettings
from unary.clinic.shards import Shard, build_shard
from unary.clinic.storage import PARTIAL, Store
from unary.errors import UnaryError, explain_unexpected, require

Engine = Literal["processes", "ray"]
_MOST_DEATHS = 3  # of workers, over one shard
_END_S = 10.0
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing calls home
    "RAY_worker_niceness": "0",  # as plain processes have it, or every other program would come first
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True)
class EngineConfig:
    """Who works on shards.

    Attributes
    ----------
    engine
        ``"processes"`` of this computer, or actors of ``"ray"``.
    workers
        How many; None takes one for each core of this computer, or of Ray's cluster. With processes, 0 works in this
        process.
    address
        Of a Ray cluster that is there, such as ``"auto"`` or ``"10.0.0.5:6379"``; None starts Ray on this computer.
    gpus_per_worker
        Of Ray's GPUs, for each worker; a fraction lets workers share one.
    """

    engine: Engine = "processes"
    workers: int | None = None
    address: str | None = None
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.engine not in ("processes", "ray"):
            raise ValueError(f"engine must be 'processes' or 'ray', not {self.engine!r}")
        least = 0 if self.engine == "processes" else 1
        if self.workers is not None and self.workers < least:
            raise ValueError(f"workers must be at least {least}, got {self.workers}")
        if not 0 <= self.gpus_per_worker < float("inf"):
            raise ValueError(f"gpus_per_worker must not be negative, got {self.gpus_per_worker}")
        if self.engine == "processes" and (self.address is not None or self.gpus_per_worker):
            raise ValueError("address and gpus_per_worker go with the engine 'ray' alone")


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_engine(settings: WorkerSettings, shards: Sequence[Shard], config: EngineConfig) -> Generator[Shard]:
    """Have all shards worked on, and yield each when it is done.

    A shard whose worker dies is given to another one; when that happens again and again over one shard, it is passed
    over: it is not yielded. When the generator is closed, work under way ends, and nothing is left of it.

    Raises
    ------
    UnaryError
        What a worker raises, which is wrong with all shards; if workers cannot be started; if Ray is not installed.
    """
    if config.engine == "ray":
        return _run_ray(settings, shards, config)
    if config.workers == 0:
        return _run_here(settings, shards)
    return _run_processes(settings, shards, config.workers or count_cores())


def _run_here(settings: WorkerSettings, shards: Sequence[Shard]) -> Generator[Shard]:
    with ShardWorker(settings) as worker:
        for shard in shards:
            worker.work(shard)
            yield shard


@dataclass
class _Process:
    """A worker, and what it is working on."""

    process: Any
    connection: Connection
    shard: Shard | None = None


def _run_processes(settings: WorkerSettings, shards: Sequence[Shard], count: int) -> Generator[Shard]:
    context = multiprocessing.get_context("spawn")
    waiting, deaths = deque(shards), Counter[str]()
    workers = [_start(context, settings) for _ in range(min(count, len(shards)))]
    try:
        while waiting or any(worker.shard is not None for worker in workers):
            for worker in workers:
                if worker.shard is None and waiting:
                    _give(worker, waiting.popleft())
            busy = {worker.connection: worker for worker in workers if worker.shard is not None}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                shard = worker.shard
                assert shard is not None
                if _take_answer(worker):
                    worker.shard = None
                    yield shard
                    continue
                deaths[shard.name] += 1
                if deaths[shard.name] < _MOST_DEATHS:
                    waiting.appendleft(shard)
                _end(worker)
                workers[workers.index(worker)] = _start(context, settings)
    finally:
        for worker in workers:
            _end(worker)


def _start(context: Any, settings: WorkerSettings) -> _Process:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, settings), name="unary-worker", daemon=True)
    process.start()
    theirs.close()
    return _Process(process, ours)


def _give(worker: _Process, shard: Shard) -> None:
    worker.shard = shard
    with suppress(OSError):  # it has died: reading its answer tells so
        worker.connection.send(shard)


def _take_answer(worker: _Process) -> bool:
    """Whether a worker has done its shard; False if it has died."""
    try:
        answer = worker.connection.recv()
    except (EOFError, OSError):
        return False
    if answer is not None:
        raise UnaryError(answer)
    return True


def _end(worker: _Process) -> None:
    """End a worker: by itself where it has nothing to do, which leaves nothing behind."""
    worker.connection.close()
    worker.process.join(timeout=_END_S if worker.shard is None else 0)
    worker.process.kill()
    worker.process.join()


def _serve(connection: Connection, settings: WorkerSettings) -> None:
    """Be a worker process: shards come, and for each goes an error in words, or None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with ExitStack() as held, suppress(EOFError, BrokenPipeError):
        work = _build_work(settings, held)
        while True:
            connection.send(work(connection.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _build_work(settings: WorkerSettings, held: ExitStack) -> Callable[[Shard], str | None]:
    """What a worker does with each shard; the model is read with the first, and let go by ``held``."""
    workers: list[ShardWorker] = []

    def work(shard: Shard) -> str | None:
        try:
            if not workers:
                workers.append(held.enter_context(ShardWorker(settings)))
            workers[0].work(shard)
        except UnaryError as error:
            return str(error)
        except Exception as error:
            return str(explain_unexpected(error, f"shard {shard.name}"))
        return None

    return work


class _Actor:
    """A worker of Ray: called with a batch of one shard, it returns an error in words for each, or an empty text.

    Ray starts a worker that has died anew, and gives it its shard again, without end: that is counted here.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._store = Store(settings.out, settings.patience)
        self._work = _build_work(settings, ExitStack())  # Ray ends an actor without a word

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        answers = [self._try(build_shard(json.loads(text))) for text in batch["shard"].tolist()]
        return {
            "number": [int(number) for number in batch["number"]],
            "done": [answer is not None for answer in answers],
            "error": [answer or "" for answer in answers],
        }

    def _try(self, shard: Shard) -> str | None:
        """An error in words, or an empty text; None of a shard that is passed over."""
        attempts = f"{PARTIAL}/{shard.name}.attempts"
        try:
            begun = len(self._store.read(attempts) or b"")
            if begun >= _MOST_DEATHS:
                return None
            self._store.write(attempts, b"." * (begun + 1))
            error = self._work(shard)
            self._store.remove(attempts)
        except UnaryError as own:
            return str(own)
        return error or ""


def _run_ray(settings: WorkerSettings, shards: Sequence[Shard], config: EngineConfig) -> Generator[Shard]:
    if not shards:
        return
    os.environ.update(_ENVIRONMENT)
    ray = require("ray", extra="ray")
    require("ray.data", extra="ray")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        _start_ray(ray, config)
    try:
        yield from _map_shards(ray, settings, shards, config)
    finally:
        if started:
            ray.shutdown()


def _start_ray(ray: Any, config: EngineConfig) -> None:
    local: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": count_cores()}
    try:
        ray.init(
            address=config.address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            **({} if config.address else local),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster {config.address!r} cannot be reached" if config.address else "Ray does not start"
        raise UnaryError(f"{where}: {str(error).partition(chr(10))[0]}") from error


def _map_shards(ray: Any, settings: WorkerSettings, shards: Sequence[Shard], config: EngineConfig) -> Iterator[Shard]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    count = min(config.workers or int(ray.cluster_resources().get("CPU", 1)), len(shards))
    rows = [{"number": number, "shard": json.dumps(shard.describe())} for number, shard in enumerate(shards)]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(settings,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        num_cpus=settings.threads,
        num_gpus=config.gpus_per_worker or None,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise UnaryError(row["error"])
        if row["done"]:
            yield shards[row["number"]]
