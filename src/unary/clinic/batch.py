"""Running a model over many files: one bad file never stops the others, and nothing already computed is lost.

Files are read in a process of their own with limits on memory and time, the next one while others are worked on, one
image a thread; and a thread of its own draws and writes the results of those before.
Every image gets its own folder of results, written under a temporary name and renamed when it is whole. A rerun skips
what is there already, as long as the model, the file's bytes and the options are the same.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unary.datasets.folder import list_files
from unary.errors import ImageError
from unary.files import read_ahead, write_csv
from unary.images.isolation import IsolatedReader, show_path
from unary.images.isolation_process import ReadingLimits
from unary.models.bundle import hash_file
from unary.records import NOTICE, Image
from unary.training.threads import count_threads, map_in_threads, using_threads

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
_TOGETHER_PX = 16_000_000
_LONGEST_NAME = 120  # of a result folder; some file systems end at 143 bytes

Row = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A file without a result: its name on one line, a reason code, and what is wrong in words."""

    file: str
    reason: str
    detail: str


@dataclass(frozen=True)
class BatchSummary:
    """How a batch ended: names of the images done now and found done, failures, and the rows of ``summary.csv``."""

    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[Failure, ...]
    rows: tuple[Row, ...] = field(repr=False, default=())


Write = Callable[[Path], Row]
"""Given a folder that exists, write one image's results there and return the row of the summary."""

Examine = Callable[[Image], Write]
"""Work on an image, and return what writes the results."""


def list_inputs(inputs: Sequence[Path]) -> dict[str, Path]:
    """Return the image files by a name that is unique and fit for a folder.

    A file keeps its stem; a folder is searched for images, each named by its path below the folder with ``__`` between
    the parts. Characters that a name should not hold become ``_``. An input that does not exist, or a folder without
    images, raises an `ImageError`.
    """
    found: dict[str, Path] = {}
    for given in inputs:
        if not given.exists():
            raise ImageError(f"{show_path(given)}: no such file or folder")
        paths = list_files(given)[0] if given.is_dir() else [given]
        if not paths:
            raise ImageError(f"{show_path(given)}: no image (DICOM, PNG, TIFF, PGM, JPEG) in this folder")
        for path in paths:
            parts = (path.relative_to(given) if given.is_dir() else Path(path.name)).with_suffix("").parts
            name = _make_safe("__".join(parts))
            numbered = (f"{name}-{count}" for count in itertools.count(2))
            found[next(unique for unique in itertools.chain([name], numbered) if unique not in found)] = path
    return found


def _make_safe(name: str) -> str:
    """A name for a folder: letters, digits and a few marks, not hidden, of bearable length."""
    kept = "".join(c if c.isalnum() or c in "-_.+=@ " else "_" for c in name).strip(" .") or "_"
    return kept[-_LONGEST_NAME:].lstrip(" .") or "_"


def run_batch(
    inputs: Sequence[Path],
    out: Path,
    examine: Examine,
    *,
    identity: Mapping[str, Any],
    limits: ReadingLimits | None = None,
    title: str = "scoring",
    progress: bool = True,
) -> BatchSummary:
    """Examine every image file among the inputs, each into a folder of its own under ``out``.

    ``out/summary.csv`` has one row per image, ``out/failures.csv`` one per file without a result, with the reason.

    Parameters
    ----------
    inputs, out
        Files and folders; and where results go, less the temporary folders that a killed run has left there.
    examine
        Works on one image and returns what will write its results into a folder and return its row of the summary.
        Called from as many threads as torch would use, which torch then does not divide its work among, while earlier
        results are written; but for a single image, and those of more than sixteen megapixels, several of which might
        not fit in memory. An `ImageError` of either makes the image a failure; what else is raised, such as a full
        disk, is wrong with more than one image and ends the batch.
    identity
        What a result depends on beside the file: the model's hash, options. Kept results of another identity are done
        again.

    Raises
    ------
    UnaryError
        If an input does not exist or a folder holds no image, or the process that reads images cannot be started.
    """
    files = list_inputs(inputs)
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    names: dict[bool, list[str]] = {True: [], False: []}  # by whether their results were kept
    failed: list[Failure] = []
    rows: list[Row] = []
    with IsolatedReader(limits) as reader, ThreadPoolExecutor(1, "unary-results") as writer:
        outcomes = _Batch(files, out, identity, examine, reader, writer).work()
        bar = tqdm(outcomes, desc=title, unit="image", total=len(files), delay=2, disable=None if progress else True)
        try:
            for outcome, _ in itertools.pairwise(itertools.chain(bar, [None])):  # one behind: it was written meanwhile
                result = outcome.result.result() if isinstance(outcome.result, Future) else outcome.result
                if isinstance(result, ImageError):
                    where = show_path(files[outcome.name])
                    detail = str(result).removeprefix(f"{where}: ")
                    failed.append(Failure(where, result.reason or "NOT_USABLE", detail))
                    logger.warning("skipped: %s", result)
                else:
                    names[outcome.kept].append(outcome.name)
                    rows.append(result)
        finally:
            reader.close()  # ends a reading that is under way, which an interrupt would else wait for
            outcomes.close()
    _write_table(out / "summary.csv", rows)
    _write_table(out / "failures.csv", [vars(failure) for failure in failed])
    return BatchSummary(tuple(names[False]), tuple(names[True]), tuple(failed), tuple(rows))


@dataclass(frozen=True)
class _Ready:
    """An image that has been read, and what its results depend on."""

    name: str
    image: Image
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class _Outcome:
    """What became of a file: its row of the summary, or why there is none, or either once the results are written."""

    name: str
    result: Row | ImageError | Future[Row | ImageError]
    kept: bool = False


@dataclass
class _Batch:
    """Reads files, works on the images side by side, as many as memory is for, and has a thread write the results."""

    files: Mapping[str, Path]
    out: Path
    identity: Mapping[str, Any]
    examine: Examine
    reader: IsolatedReader
    writer: Executor
    threads: int = field(default_factory=count_threads)
    buffer: _Buffer = field(default_factory=lambda: _Buffer(_TOGETHER_PX * (count_threads() + 1)))
    broken: BaseException | None = None

    def work(self) -> Generator[_Outcome]:
        """Yield the outcomes in the order of the files; a single image is worked on with all threads for itself."""
        found = read_ahead(self._read, self.files, ahead=1)
        admitted = (self._admit(item) for item in found)
        if len(self.files) > 1:
            outcomes = map_in_threads(self._work_on, admitted)
        else:
            outcomes = (self._work_on(item) for item in admitted)
        try:
            yield from outcomes
        finally:
            outcomes.close()
            found.close()

    def _read(self, name: str) -> _Ready | _Outcome:
        """An image, or what is known of its file without working on it."""
        path = self.files[name]
        try:
            identity = {**self.identity, "file": path.name, "sha256": _hash_input(path, self.reader.limits)}
            row = _read_result(self.out / name, identity)
            if row is not None:
                return _Outcome(name, row, kept=True)
            return _Ready(name, self.reader.read(path), identity)
        except ImageError as error:
            return _Outcome(name, error)
        except OSError as error:
            reason = f"{show_path(path)}: cannot be opened ({error.strerror})"
            return _Outcome(name, ImageError(reason, reason="NOT_READABLE"))

    def _admit(self, found: _Ready | _Outcome) -> _Ready | _Outcome:
        if isinstance(found, _Ready):
            self.buffer.take(found.image.pixels.size)
        return found

    def _work_on(self, found: _Ready | _Outcome) -> _Outcome:
        if isinstance(found, _Outcome):
            return found
        size = found.image.pixels.size
        try:
            with using_threads(self.threads if size > _TOGETHER_PX else count_threads()):
                write = self.examine(found.image)
            writing = self.writer.submit(self._write, found.name, write, found.identity)
        except BaseException as error:
            self.buffer.give_back(size)
            if isinstance(error, ImageError):
                return _Outcome(found.name, error.with_traceback(None))  # which would keep the image
            raise
        writing.add_done_callback(lambda _: self.buffer.give_back(size))
        return _Outcome(found.name, writing)

    def _write(self, name: str, write: Write, identity: Mapping[str, Any]) -> Row | ImageError:
        """Write an image's results, but none after one that failed for good."""
        if self.broken is not None:
            raise self.broken
        try:
            return _write_folder(self.out / name, write, identity)
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


def _hash_input(path: Path, limits: ReadingLimits) -> str:
    """The hash of a file's bytes; what is no file, or too large to be read anyway, is left to the reader to refuse."""
    return hash_file(path) if path.is_file() and path.stat().st_size <= limits.file_mib * 2**20 else ""


def _write_folder(folder: Path, write: Write, identity: Mapping[str, Any]) -> Row | ImageError:
    """Write one image's folder of results in one step; return its row of the summary, or why there is none."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        row = {"image": folder.name, **write(partial)}
        path = partial / RESULT_FILE
        result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        document = {**identity, "notice": NOTICE, **result, "summary": row}
        path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except ImageError as error:
        return error.with_traceback(None)  # which would keep the image
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return row


def _read_result(folder: Path, identity: Mapping[str, Any]) -> Row | None:
    """The summary row of a finished result of the same identity, or None."""
    try:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        same = all(result[key] == value for key, value in identity.items())
        return dict(result["summary"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as CSV; without rows, remove the table of a former run."""
    if rows:
        write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
    else:
        path.unlink(missing_ok=True)
