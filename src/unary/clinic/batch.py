"""Running a model over many files: one bad file never stops the others, and nothing already computed is lost.

Files are read in a process of their own with limits on memory and time, the next one while others are worked on, one
image a thread; and a thread of its own draws and writes the results of those before.
Every image gets its own folder of results, written under a temporary name and renamed when it is whole. A rerun skips
what is there already, as long as the model, the file's bytes and the options are the same.
"""

from __future__ import annotations

import csv
import functools
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unary.datasets.folder import find_images
from unary.training.threads import count_threads, map_in_threads, using_threads
from unary.errors import ImageError
from unary.files import replacing
from unary.images.isolation import IsolatedReader, show_path
from unary.images.isolation_process import ReadingLimits
from unary.models.bundle import MODEL_FILE, Model, hash_file
from unary.models.scoring import ImageScores, score_image
from unary.outputs.figures import figure_png, plot_overlay
from unary.records import Image

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
NOTICE = "Research software. Not for diagnosis."
_TOGETHER_PX = 16_000_000
_LONGEST_NAME = 120  # of a result folder; some file systems end at 143 bytes


@dataclass(frozen=True)
class Failure:
    """A file without a result: its name on one line, a reason code, and what is wrong in words."""

    file: str
    reason: str
    detail: str


@dataclass(frozen=True)
class BatchSummary:
    """How a batch ended: names of the images done now, of those found done, and the failures.

    ``rows`` are the lines of ``summary.csv``.
    """

    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[Failure, ...]
    rows: tuple[dict[str, Any], ...] = field(repr=False, default=())


Write = Callable[[Path], dict[str, Any]]
"""Given a folder that exists, write one image's results there and return the row of the summary."""

Examine = Callable[[Image], Write]
"""Work on an image, and return what writes the results."""


def list_inputs(inputs: Sequence[Path]) -> dict[str, Path]:
    """Return the image files by a name that is unique and fit for a folder.

    A file keeps its stem; a folder is searched for images, each named by its path below the folder with ``__`` between
    the parts. Characters that a name should not hold become ``_``.

    Raises
    ------
    ImageError
        If an input does not exist, or a folder holds no image.
    """
    found: dict[str, Path] = {}
    for given in inputs:
        if given.is_dir():
            paths = find_images(given)
            if not paths:
                raise ImageError(f"{show_path(given)}: no image (DICOM, PNG, TIFF, PGM) in this folder")
        elif given.exists():
            paths = [given]
        else:
            raise ImageError(f"{show_path(given)}: no such file or folder")
        for path in paths:
            parts = (path.relative_to(given) if given.is_dir() else Path(path.name)).with_suffix("").parts
            name = _make_safe("__".join(parts))
            unique, count = name, 2
            while unique in found:
                unique, count = f"{name}-{count}", count + 1
            found[unique] = path
    return found


def _make_safe(name: str) -> str:
    """A name for a folder: letters, digits and a few marks, not hidden, of bearable length."""
    kept = "".join(c if c.isalnum() or c in "-_.+=@ " else "_" for c in name).strip(" .") or "_"
    return kept[-_LONGEST_NAME:].lstrip(" .") or "_"


_Found = dict[str, Any] | ImageError | tuple[Image, dict[str, Any]]
"""A finished summary row, or why there is no image, or the image with its identity."""

_Outcome = dict[str, Any] | ImageError | Future[dict[str, Any] | ImageError]
"""A row that was finished before, or why there is none, or either once the results are written."""


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
    inputs
        Files and folders.
    out
        Created when missing. Temporary folders that a killed run has left there are removed.
    examine
        Works on one image and returns what will write its results into a folder and return its row of the summary.
        Called from as many threads as torch would use, which torch then does not divide its work among, while earlier
        results are written; but for a single image, and those of more than sixteen megapixels, several of which might
        not fit in memory. An `ImageError` of either makes the image a failure.
    identity
        What a result depends on beside the file: the model's hash, options. Kept results of another identity are done
        again.
    limits
        Of reading a file.

    Raises
    ------
    ImageError
        As `list_inputs`.
    UnaryError
        If the process that reads images cannot be started.
    """
    files = list_inputs(inputs)
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    kept: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    failures: dict[str, Failure] = {}

    def fail(name: str, error: ImageError) -> None:
        where = show_path(files[name])
        failures[name] = Failure(where, error.reason or "NOT_USABLE", str(error).removeprefix(f"{where}: "))
        logger.warning("skipped: %s", str(error))

    def settle(name: str, outcome: _Outcome) -> None:
        """Wait; what is wrong with more than one image, such as a full disk, ends the batch at once."""
        if isinstance(outcome, dict):
            kept.append(name)
        row = outcome.result() if isinstance(outcome, Future) else outcome
        if isinstance(row, ImageError):
            fail(name, row)
        else:
            rows[name] = row

    threads = count_threads()
    places = _Places(_TOGETHER_PX * (threads + 1))

    def admit(found: Iterable[tuple[str, _Found]]) -> Iterator[tuple[str, _Found]]:
        for item in found:
            if isinstance(item[1], tuple):
                places.take(item[1][0].pixels.size)
            yield item

    broken: list[BaseException] = []

    def put(name: str, write: Write, own: dict[str, Any]) -> dict[str, Any] | ImageError:
        """Write results, unless those of another image could not be for a reason that ends the batch."""
        if broken:
            raise broken[0]
        try:
            return _write_folder(out / name, write, own)
        except BaseException as error:
            broken.append(error)
            raise

    with IsolatedReader(limits) as reader, ThreadPoolExecutor(1, "unary-results") as writer:

        def work(item: tuple[str, _Found]) -> tuple[str, _Outcome]:
            name, found = item
            if not isinstance(found, tuple):
                return name, found
            size = found[0].pixels.size
            try:
                with using_threads(threads if size > _TOGETHER_PX else count_threads()):
                    write = examine(found[0])
                writing = writer.submit(put, name, write, found[1])
            except BaseException as error:
                places.give_back(size)
                if isinstance(error, ImageError):
                    return name, error.with_traceback(None)  # which would keep the image
                raise
            writing.add_done_callback(lambda _: places.give_back(size))
            return name, writing

        ahead = _read_ahead(files, out, identity, reader)
        admitted = admit(ahead)  # a single image is worked on here, with all threads for itself
        outcomes = map_in_threads(work, admitted) if len(files) > 1 else (work(item) for item in admitted)
        bar = tqdm(outcomes, desc=title, unit="image", total=len(files), delay=2, disable=None if progress else True)
        before: tuple[str, _Outcome] | None = None
        try:
            for latest in bar:
                if before is not None:  # whose results were written meanwhile
                    settle(*before)
                before = latest
            if before is not None:
                settle(*before)
        finally:
            reader.close()  # ends a reading that is under way, which an interrupt would else wait for
            outcomes.close()
            ahead.close()
    fresh = rows.keys() - set(kept)
    done = tuple(name for name in files if name in fresh)
    failed = tuple(failures[name] for name in files if name in failures)
    ordered = tuple(rows[name] for name in files if name in rows)
    write_table(out / "summary.csv", ordered)
    write_table(out / "failures.csv", [vars(failure) for failure in failed])
    return BatchSummary(done, tuple(kept), failed, ordered)


class _Places:
    """Room for as many pixels as may be worked on, or wait to be written, at a time; a large image takes it whole."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until there is room."""
        cost = self._cost(size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= cost)
            self._free -= cost

    def give_back(self, size: int) -> None:
        with self._changed:
            self._free += self._cost(size)
            self._changed.notify_all()

    def _cost(self, size: int) -> int:
        return self._size if size > _TOGETHER_PX else size


def _read_ahead(
    files: Mapping[str, Path], out: Path, identity: Mapping[str, Any], reader: IsolatedReader
) -> Generator[tuple[str, _Found]]:
    """Yield a finished summary row, or the image with its identity, or why there is none; one file ahead."""

    def read(name: str) -> _Found:
        path = files[name]
        try:
            own = {**identity, "file": path.name, "sha256": _hash_input(path, reader.limits)}
            row = _read_result(out / name, own)
            return row if row is not None else (reader.read(path), own)
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(f"{show_path(path)}: cannot be opened ({error.strerror})", reason="NOT_READABLE")

    names = list(files)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(read, names[0]) if names else None
        for name, upcoming in zip(names, [*names[1:], None], strict=True):
            assert following is not None
            found = following.result()
            following = pool.submit(read, upcoming) if upcoming is not None else None
            yield name, found


def _hash_input(path: Path, limits: ReadingLimits) -> str:
    """The hash of a file's bytes; what is no file, or too large to be read anyway, is left to the reader to refuse."""
    return hash_file(path) if path.is_file() and path.stat().st_size <= limits.file_mib * 2**20 else ""


def _write_folder(folder: Path, write: Write, identity: Mapping[str, Any]) -> dict[str, Any] | ImageError:
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


def _read_result(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary row of a finished result of the same identity, or None."""
    try:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = all(result.get(key) == value for key, value in identity.items())
    return result["summary"] if same else None


def score_files(
    model: Model, inputs: Sequence[Path], out: Path, *, model_folder: Path, progress: bool = True
) -> BatchSummary:
    """Score files and folders patch by patch.

    ``out/NAME/`` holds ``scores.csv`` (one row per patch, working-grid pixels), ``map.tiff`` (float32, NaN where
    nothing was scored), ``overlay.png`` and ``result.json``; see `run_batch` for the rest.

    Raises
    ------
    ImageError, UnaryError
        As `run_batch`.
    """
    identity = {"model_sha256": hash_file(model_folder / MODEL_FILE)}

    def examine(image: Image) -> Write:
        return functools.partial(write_image_result, score_image(model, image), model)

    return run_batch(inputs, out, examine, identity=identity, progress=progress)


def write_image_result(scores: ImageScores, model: Model, folder: Path) -> dict[str, Any]:
    """Write patch scores, map, overlay and what belongs to them into a folder; return the summary's row."""
    import tifffile

    threshold = model.thresholds["0.95"]
    summary = {
        "image_score": scores.image_score,
        "patches": len(scores.scores),
        **{f"patches_above_{level}": int((scores.scores > value).sum()) for level, value in model.thresholds.items()},
    }
    size = model.grid.size_px
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "col", "size_px", "score", *(f"above_{level}" for level in model.thresholds)])
        for (row, col), value in zip(scores.origins.tolist(), scores.scores.tolist(), strict=True):
            writer.writerow([row, col, size, repr(value), *(int(value > t) for t in model.thresholds.values())])
    tifffile.imwrite(folder / "map.tiff", scores.anomaly_map, compression="zlib", software="unary")
    flagged = scores.origins[scores.scores > threshold]
    figure = plot_overlay(
        scores.prepared.pixels,
        scores.anomaly_map,
        limits=find_limits(scores.anomaly_map),
        boxes=[(row, col, row + size, col + size) for row, col in flagged.tolist()],
        title=f"{len(flagged)} of {len(scores.scores)} patches above the 95 % threshold",
    )
    (folder / "overlay.png").write_bytes(figure_png(figure))
    result = {
        "detector": model.name,
        "thresholds": model.thresholds,
        "stored_shape": scores.prepared.stored_shape,
        "stored_pixels_per_working_pixel": scores.prepared.scale,
        "tissue_share": float(np.mean(scores.prepared.mask)),
    }
    (folder / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")
    return summary


def find_limits(anomaly_map: NDArray[np.float32]) -> tuple[float, float] | None:
    """The colour range of an overlay: the quieter 95 % of the image stay clear, the strongest 0.05 % are brightest."""
    found = anomaly_map[np.isfinite(anomaly_map)]
    if found.size == 0:
        return None
    low, high = np.percentile(found[:: max(1, found.size // 2_000_000)], [95, 99.95])
    return (float(low), float(high)) if high > low else None


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as CSV; without rows, remove the table of a former run."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
