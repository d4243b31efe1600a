"""Running a model over many files: one bad file never stops the others, and nothing already computed is lost.

Files are read in a process of their own with limits on memory and time, the next one while others are worked on, one
image a thread; and a thread of its own draws and writes the results of those before. Whatever goes wrong with one image
is that image's failure, with a reason; what is wrong with all of them, a full disk or a model that examines nothing,
ends the batch once.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from unary.clinic.file_work import (
    InspectedFile,
    Job,
    build_source,
    describe_origin,
    explain_failure,
    hash_image_file,
    inspect_file,
    load_image,
    require_working_model,
)
from unary.clinic.inputs import Inputs, list_inputs, refuse_folder
from unary.clinic.known_files import KnownFiles, Look, look_at
from unary.clinic.result_folder import Failure, ResultFolder, Row, Source, Write, holding_results
from unary.clinic.writers import Writers
from unary.datasets.folder import LeftOut
from unary.errors import ImageError, UnaryError, explain_unexpected
from unary.files import read_ahead
from unary.images.isolation import IsolatedReader, show_path
from unary.progress import show_progress
from unary.records import Image
from unary.training.threads import count_threads, map_in_threads, using_threads

logger = logging.getLogger(__name__)

_TOGETHER_PX = 16_000_000
_EXAMINING = 3  # threads that one process can write for: examining takes about three times as long
_FEWEST_APART = 4  # images, for which it is worth while that a process that writes imports what it needs
# Of an OSError in writing: nothing else can be written there either.
_EVERYTHING = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.ESTALE,
    errno.EMFILE, errno.ENFILE, errno.ENODEV,
}  # fmt: skip


@dataclass(frozen=True)
class BatchSummary:
    """How a batch ended.

    Attributes
    ----------
    done, kept
        Names of the results made now, and of those found made.
    failed
        Files without a result.
    rows
        Of the results made and found, in the order of the files.
    notes
        What was unusual about images: a sentence, and the names of the results that it is about.
    left_out
        Of folders, what was not taken, by reason.
    remarks
        What is odd about the folder of results as a whole.
    held
        How many results the folder has, former runs' included.
    replaced
        How many earlier results, made by another model or with other options, gave way to new ones.
    """

    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[Failure, ...]
    rows: tuple[Row, ...] = field(repr=False, default=())
    notes: Mapping[str, tuple[str, ...]] = field(repr=False, default_factory=dict)
    left_out: LeftOut = field(repr=False, default_factory=dict)
    remarks: tuple[str, ...] = ()
    held: int = 0
    replaced: int = 0


def describe_summary(summary: BatchSummary) -> dict[str, Any]:
    """Return a summary for JSON: a row for each image with a result, and for each file without one."""
    kept = set(summary.kept)
    return {
        "images": [{**row, "made": row["image"] not in kept} for row in summary.rows],
        "without_result": [asdict(failure) for failure in summary.failed],
        "left_out": {reason: list(map(str, paths)) for reason, paths in summary.left_out.items()},
        "notes": {note: list(names) for note, names in summary.notes.items()},
        "remarks": list(summary.remarks),
    }


def run_batch(
    inputs: Sequence[Path],
    out: Path,
    job: Job,
    *,
    moment: datetime | None = None,
    reader: IsolatedReader | None = None,
    progress: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> BatchSummary:
    """Examine every image file among the inputs, each into a folder of its own under ``out``.

    ``out/summary.csv`` has one row per result, ``out/failures.csv`` one per file without a result, with the reason;
    both, and ``out/run.json``, tell of earlier runs into the folder too, and are true after an interrupt.

    Parameters
    ----------
    inputs, out
        Files and folders; and where results go, which no other process may use meanwhile.
    moment
        When the run began, with its time zone; now by default.
    reader
        Reads the files, and is closed with the batch; one with the usual limits by default.
    stopping
        Asked after every image: whether to end early. The images under way are finished; of those written last, a next
        run finds the results.

    Raises
    ------
    UnaryError
        If there is nothing to examine, ``out`` cannot be used, the process that reads images cannot be started, or
        something is wrong with all images: nothing can be written any more, or the model examines nothing. What is done
        is kept.
    """
    found = list_inputs(inputs)
    if not any(os.path.exists(path) and not os.path.isdir(path) for path in found.names):
        raise _refuse_all(found)
    moment = moment or datetime.now().astimezone().replace(microsecond=0)
    apart = job.writes_apart and len(found.names) >= _FEWEST_APART
    with (
        holding_results(out, job.command, job.made_from, moment) as results,
        KnownFiles(out, job.gate) as known,
        reader or IsolatedReader() as reader,
        Writers() as processes,
        ThreadPoolExecutor(-(-count_threads() // _EXAMINING) if apart else 1, "unary-results") as writer,
    ):
        results.leave_out(found.left_out)
        outcomes = _Batch(found, results, job, moment, reader, known, writer, processes if apart else None).work()
        bar = show_progress(outcomes, title=job.command, total=len(found.names), unit="image", shown=progress)
        try:
            settled = list(itertools.takewhile(lambda _: not stopping(), _settle(bar, results)))
        finally:
            reader.close()  # ends a reading that is under way, which an interrupt would else wait for
            outcomes.close()
        return _summarize(settled, found, results)


def _refuse_all(found: Inputs) -> ImageError:
    if not found.names:
        return ImageError("nothing to examine: no file and no folder is given")
    path = next(iter(found.names))
    return refuse_folder(path) if os.path.isdir(path) else ImageError(f"{show_path(path)}: no such file or folder")


@dataclass(frozen=True)
class _Ready:
    """An image that has been read and may be examined, and what is known of its file."""

    name: str
    image: Image
    inspected: InspectedFile

    @property
    def source(self) -> Source:
        return self.inspected.source


@dataclass(frozen=True)
class _Outcome:
    """What became of a file: its result's name and row, or why there is none; a future while it is written."""

    path: Path
    name: str
    result: Row | Failure | ImageError | Future[Row | ImageError]
    sha256: str = ""
    kept: bool = False


def _settle(outcomes: Any, results: ResultFolder) -> Generator[_Outcome]:
    """Yield the outcomes with what has come of them, which the folder is told."""
    for outcome, _ in itertools.pairwise(itertools.chain(outcomes, [None])):  # one behind: it was written meanwhile
        result = outcome.result.result() if isinstance(outcome.result, Future) else outcome.result
        if isinstance(result, ImageError):
            where = show_path(outcome.path)
            logger.warning("skipped: %s", result)
            result = Failure(where, result.reason or "NOT_USABLE", str(result).removeprefix(f"{where}: "))
            results.fail(outcome.path, result, outcome.sha256)
        elif outcome.kept:
            results.settle(outcome.path, outcome.sha256)
        yield replace(outcome, result=result)


def _summarize(settled: Sequence[_Outcome], found: Inputs, results: ResultFolder) -> BatchSummary:
    notes: dict[str, list[str]] = {}
    rows = {outcome.name: outcome.result for outcome in settled if isinstance(outcome.result, dict)}
    kept = {outcome.name for outcome in settled if outcome.kept}
    for name in rows:
        for note in results.list_notes(name):
            notes.setdefault(note, []).append(name)
    return BatchSummary(
        done=tuple(name for name in rows if name not in kept),
        kept=tuple(name for name in rows if name in kept),
        failed=tuple(outcome.result for outcome in settled if isinstance(outcome.result, Failure)),
        rows=tuple(rows.values()),
        notes={note: tuple(names) for note, names in notes.items()},
        left_out=found.left_out,
        remarks=tuple(results.list_remarks()),
        held=results.count(),
        replaced=results.replaced,
    )


@dataclass
class _Batch:
    """Reads files, works on the images side by side, as many as memory is for, and has a thread write the results."""

    found: Inputs
    results: ResultFolder
    job: Job
    moment: datetime
    reader: IsolatedReader
    known: KnownFiles
    writer: Executor
    processes: Writers | None
    threads: int = field(default_factory=count_threads)
    buffer: _Buffer = field(default_factory=lambda: _Buffer(_TOGETHER_PX * (count_threads() + 1)))
    broken: BaseException | None = None
    prepared: bool = False
    probed: bool = False
    probing: threading.Lock = field(default_factory=threading.Lock)

    def work(self) -> Generator[_Outcome]:
        """Yield the outcomes in the order of the files; a single image is worked on with all threads for itself."""
        found = read_ahead(self._read, self.found.names, ahead=1)
        admitted = (self._admit(item) for item in found)
        if len(self.found.names) > 1:
            outcomes = map_in_threads(self._work_on, admitted)
        else:
            outcomes = (self._work_on(item) for item in admitted)
        try:
            yield from outcomes
        finally:
            outcomes.close()
            found.close()

    def _read(self, path: Path) -> _Ready | _Outcome:
        """An image, or what is known of its file without working on it."""
        sha256 = ""
        try:
            look = look_at(path)
            if not self.job.verify and (kept := self._recall(path, look)) is not None:
                return kept
            sha256 = hash_image_file(path, self.reader.limits)
            inspected = inspect_file(path, sha256, self.job, self.reader)
            self.known.remember(path, look, inspected.own)
            source = inspected.source
            name = self.results.name(self.found.names[path], source.made_from)
            row = self.results.find(name, source.made_from)
            if row is not None:
                return _Outcome(path, name, row, sha256, kept=True)
            return _Ready(name, load_image(inspected, self.job, self.reader), inspected)
        except Exception as error:
            return _Outcome(path, "", explain_failure(error, path), sha256)

    def _recall(self, path: Path, look: Look | None) -> _Outcome | None:
        """The result of a file that looks as it did when its content was hashed, and its header read."""
        own = self.known.recall(path, look)
        if own is None:
            return None
        made_from = build_source(path, self.job, own, raster=False).made_from
        if not self.results.holds(self.found.names[path], made_from):
            return None
        name = self.results.name(self.found.names[path], made_from)
        row = self.results.find(name, made_from)
        return None if row is None else _Outcome(path, name, row, made_from["sha256"], kept=True)

    def _admit(self, found: _Ready | _Outcome) -> _Ready | _Outcome:
        if isinstance(found, _Ready):
            if not self.prepared:
                self.prepared = True
                self.writer.submit(self._prepare)
            self.buffer.take(found.image.pixels.size)
        return found

    def _prepare(self) -> None:
        """Have imported what writing needs; what goes wrong with that is told when something is written."""
        if self.processes is not None:
            self.processes.prepare(self.job.prepare)
            return
        with contextlib.suppress(Exception):
            self.job.prepare()

    def _work_on(self, found: _Ready | _Outcome) -> _Outcome:
        if isinstance(found, _Outcome):
            return found
        size, source = found.image.pixels.size, found.source
        try:
            with using_threads(self.threads if size > _TOGETHER_PX else count_threads()):
                write = self.job.examine(found.image, source)
            self.probed = True  # for it examines something
            writing = self.writer.submit(self._write, found, write)
        except Exception as error:
            self.buffer.give_back(size)
            return _Outcome(source.path, found.name, self._explain(error, source.path), source.sha256)
        except BaseException:
            self.buffer.give_back(size)
            raise
        writing.add_done_callback(lambda _: self.buffer.give_back(size))
        return _Outcome(source.path, found.name, writing, source.sha256)

    def _explain(self, error: Exception, path: Path) -> ImageError:
        """What is unexpected is this image's failure, unless the model fails on a sound image as well."""
        found = explain_unexpected(error, show_path(path))
        with self.probing:
            if found.reason == "UNEXPECTED" and not self.probed:
                require_working_model(self.job)
                self.probed = True
        return found.with_traceback(None)  # which would keep the image

    def _write(self, found: _Ready, write: Write) -> Row | ImageError:
        """Write an image's results, but none after one that failed for good."""
        if self.broken is not None:
            raise self.broken
        path, known = found.source.path, describe_origin(found.inspected, found.image, self.moment)
        by = None if self.processes is None else self.processes.write
        try:
            return self.results.write(found.name, write, found.source, known, by=by)
        except OSError as error:
            if error.errno not in _EVERYTHING:
                return explain_unexpected(error, show_path(path)).with_traceback(None)
            self.broken = UnaryError(
                f"{self.results.out}: no more results can be written ({error.strerror}); {self.results.count()} are "
                "there, and the same command goes on from there"
            )
            raise self.broken from error
        except Exception as error:
            return explain_unexpected(error, show_path(path)).with_traceback(None)
        except BaseException as error:
            self.broken = error
            raise


class _Buffer:
    """So many pixels may be worked on, or wait to be written, at a time; a large image takes all of it."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until so much is free."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= self._cost(size))
            self._free -= self._cost(size)

    def give_back(self, size: int) -> None:
        with self._changed:
            self._free += self._cost(size)
            self._changed.notify_all()

    def _cost(self, size: int) -> int:
        return self._size if size > _TOGETHER_PX else size
