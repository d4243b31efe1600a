"""Following a run elsewhere: numbers, settings, tags and files go to MLflow or TensorBoard while the work goes on.

A `Tracker` is asked for; without one nothing is imported, opened or sent. What it is given is put into a queue and
written by a thread of its own, so that a store that is slow, full or away never holds up the work: one warning names
it. Nothing is given to it that names a patient, an image or a path.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, get_args

from unary.errors import TrainingError, hide_credentials, require
from unary.files import replacing
from unary.training.tracking_stores import MlflowStore, Number, Store, TensorBoardStore

logger = logging.getLogger(__name__)

Kind = Literal["mlflow", "tensorboard"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_DEFAULTS: dict[Kind, str] = {"mlflow": "sqlite:///mlflow.db", "tensorboard": "runs"}
_PATIENCE_S = 30.0  # at the end
_PAUSE_S = 1.0  # between two writings
_RETRY_S = 30.0  # after one that failed
_MOST = 1000  # of one writing


class Tracker(Protocol):
    """Where a run is followed; every method returns at once."""

    def log_numbers(self, numbers: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers by name, such as losses, after a step; a step that is known of a name is passed over."""

    def log_settings(self, settings: Mapping[str, object]) -> None:
        """Log what the run was told."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Log what identifies the run and what it made: hashes, versions."""

    def log_file(self, path: Path) -> None:
        """Log a file, as it is when it is written."""


@dataclass(frozen=True)
class Destination:
    """Where runs are followed.

    Attributes
    ----------
    kind
        ``"mlflow"`` or ``"tensorboard"``.
    location
        Of MLflow a tracking URI, of TensorBoard a folder.
    """

    kind: Kind
    location: str

    def __str__(self) -> str:
        return f"{self.kind} at {hide_credentials(self.location)}"


def parse_destination(text: str) -> Destination:
    """Return what ``mlflow``, ``mlflow:URI``, ``tensorboard`` or ``tensorboard:FOLDER`` means; else a `TrainingError`.

    A URI without ``://`` is the file of an SQLite database.

    >>> parse_destination("mlflow"), parse_destination("mlflow:a.db").location
    (Destination(kind='mlflow', location='sqlite:///mlflow.db'), 'sqlite:///a.db')
    """
    name, _, location = text.partition(":")
    for kind in KINDS:
        if name == kind:
            if kind == "mlflow" and location and "://" not in location:
                location = f"sqlite:///{location}"
            return Destination(kind, location or _DEFAULTS[kind])
    raise TrainingError(f"runs are followed by {' or '.join(KINDS)}, with a place behind a colon, not by {text!r}")


def open_tracker(to: Destination | str, *, name: str, state: Path | None = None) -> BackgroundTracker:
    """Return a tracker of a new run, to be used as a context manager; it ends the run as finished or failed.

    Parameters
    ----------
    to
        A destination, or its text (`parse_destination`).
    name
        Of the run; where it is followed others may bear it too.
    state
        A file that says which run it is, as long as it lasts: a call with the same file goes on with the same run.

    Raises
    ------
    TrainingError
        If there is no such kind.
    MissingPackageError
        If its package is not installed.
    """
    destination = parse_destination(to) if isinstance(to, str) else to
    if importlib.util.find_spec(destination.kind) is None:
        require(destination.kind, extra=destination.kind)
    return BackgroundTracker(destination, name, state)


@dataclass
class _State:
    """Which run it is, and the last step that is known of each name."""

    destination: str
    run: str | None = None
    steps: dict[str, int] = dataclasses.field(default_factory=dict)


class BackgroundTracker:
    """A `Tracker` whose store is opened and written to by a thread of its own.

    What cannot be written is tried again every half minute, and a last time at the end.
    """

    def __init__(self, destination: Destination, name: str, state: Path | None) -> None:
        self.destination, self.name = destination, name
        self._file = state
        self._state = _read_state(state, destination)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._closing, self._over = threading.Event(), threading.Event()
        self._failed = self._said = False
        self._thread = threading.Thread(target=self._work, name="unary-tracking", daemon=True)
        self._thread.start()

    def log_numbers(self, numbers: Mapping[str, float], *, step: int = 0) -> None:
        """As `Tracker.log_numbers`."""
        for name, value in numbers.items():
            self._tasks.put(Number.now(name, value, step))

    def log_settings(self, settings: Mapping[str, object]) -> None:
        """As `Tracker.log_settings`."""
        texts = {name: str(value) for name, value in settings.items()}
        self._tasks.put(lambda store: store.write_settings(texts))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """As `Tracker.log_tags`."""
        texts = dict(tags)
        self._tasks.put(lambda store: store.write_tags(texts))

    def log_file(self, path: Path) -> None:
        """As `Tracker.log_file`."""
        self._tasks.put(lambda store: store.write_file(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    @property
    def is_whole(self) -> bool:
        """Whether, after `close`, all has been written."""
        return not self._over.is_set()

    def close(self, *, failed: bool = False) -> None:
        """Write what is left, and end the run; a second call does nothing.

        It waits for half a minute at most. The file of the state goes when the run is finished, and stays when it
        failed, so that it can be gone on with.
        """
        if self._closing.is_set():
            return
        self._failed = failed
        self._tasks.put(None)
        self._closing.set()
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            self._over.set()
            self._warn("no answer")
        if self._file is not None and not failed:
            self._file.unlink(missing_ok=True)

    def _work(self) -> None:
        """The thread: open, write until there is no more, end."""
        store: Store | None = None
        waiting: list[_Task | None] = []
        while not self._over.is_set():
            waiting = waiting or self._take()
            last = self._closing.is_set()  # before it is tried
            try:
                store = store or self._open()
                self._write(store, waiting)
                if waiting == [None]:
                    store.end(failed=self._failed)
                    return
            except Exception as error:  # whatever a store or its network raises: the work goes on
                cause = hide_credentials(str(error).strip().partition("\n")[0])[:200]
                self._warn(f"{type(error).__name__}: {cause}" if cause else type(error).__name__)
                if last:
                    self._over.set()
                self._closing.wait(_RETRY_S)

    def _warn(self, cause: str) -> None:
        """Name the store that cannot be written to, once."""
        if not self._said:
            self._said = True
            logger.warning("%s: the run cannot be followed there (%s); the work goes on", self.destination, cause)

    def _open(self) -> Store:
        store = _open_store(self.destination, self.name, self._state.run)
        if store.run != self._state.run:  # a new one, or the one before is gone
            self._state = _State(str(self.destination), store.run)
        self._keep_state()
        return store

    def _take(self) -> list[_Task | None]:
        """What is in the queue, at least one, after a pause in which numbers come together; None is the last."""
        tasks = [self._tasks.get()]
        self._closing.wait(_PAUSE_S)
        while len(tasks) < _MOST and tasks[-1] is not None:
            try:
                tasks.append(self._tasks.get_nowait())
            except queue.Empty:
                break
        return tasks

    def _write(self, store: Store, waiting: list[_Task | None]) -> None:
        """Write tasks, numbers first and together, and take them away, up to the None that ends them."""
        steps = dict(self._state.steps)
        new: list[Number] = []
        for number in (task for task in waiting if isinstance(task, Number)):
            if number.step > steps.get(number.name, -1):
                steps[number.name] = number.step
                new.append(number)
        if new:
            store.write_numbers(new)
            self._state.steps = steps
            self._keep_state()
        waiting[:] = [task for task in waiting if not isinstance(task, Number)]
        while waiting and (task := waiting[0]) is not None and not isinstance(task, Number):
            task(store)
            del waiting[0]

    def _keep_state(self) -> None:
        if self._file is not None and not self._over.is_set():
            with replacing(self._file) as partial:
                partial.write_text(json.dumps(dataclasses.asdict(self._state)), encoding="utf-8")


_Task = Number | Callable[[Store], None]


def _read_state(path: Path | None, destination: Destination) -> _State:
    """What a file says of a run that went to the same place; else nothing."""
    new = _State(str(destination))
    if path is None:
        return new
    try:
        found = _State(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none yet, or half of one
        return new
    return found if found.destination == new.destination else new


def _open_store(destination: Destination, name: str, run: str | None) -> Store:
    if destination.kind == "mlflow":
        return MlflowStore(destination.location, name, run)
    return TensorBoardStore(Path(destination.location), name, run)
