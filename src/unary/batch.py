"""Running a model over many files: one bad file never stops the others, and nothing already computed is lost.

Files are read in a process of their own with limits on memory and time, the next one while the last one is worked on,
and a thread of its own draws and writes the results of the one before.
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
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unary.bundle import MODEL_FILE, Model, hash_file
from unary.errors import ImageError
from unary.files import replacing
from unary.outputs.figures import figure_png, plot_overlay
from unary.records import Image
from unary.scoring import ImageScores, score_image
from unary.sources.folder import find_images
from unary.sources.isolation import IsolatedReader, show_path
from unary.sources.isolation_process import ReadingLimits

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
        Works on one image and returns what will write its results into a folder and return its row of the summary. That
        happens beside the work on the next image, but for images of more than sixteen megapixels, two of which might
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

    def settle(name: str, writing: Future[dict[str, Any]]) -> None:
        """Wait; what is wrong with more than one image, such as a full disk, ends the batch at once."""
        try:
            rows[name] = writing.result()
        except ImageError as error:
            fail(name, error.with_traceback(None))  # which would keep the image

    with IsolatedReader(limits) as reader, ThreadPoolExecutor(1, "unary-results") as writer:
        ahead = _read_ahead(files, out, identity, reader)
        bar = tqdm(ahead, desc=title, unit="image", total=len(files), delay=2, disable=None if progress else True)
        under_way: tuple[str, Future[dict[str, Any]]] | None = None
        try:
            for name, found in bar:
                if isinstance(found, dict):
                    kept.append(name)
                    rows[name] = found
                    continue
                try:
                    if isinstance(found, ImageError):
                        raise found
                    write = examine(found[0])
                except ImageError as error:
                    fail(name, error)
                    continue
                if under_way is not None:  # one image's results at a time
                    settle(*under_way)
                under_way = (name, writer.submit(_write_folder, out / name, write, found[1]))
                del write  # it holds the image and its map
                if found[0].pixels.size > _TOGETHER_PX:
                    settle(*under_way)
                    under_way = None
            if under_way is not None:
                settle(*under_way)
        finally:
            reader.close()  # ends a reading that is under way, which an interrupt would else wait for
            ahead.close()
    before = set(kept)
    done = tuple(name for name in files if name in rows and name not in before)
    failed = tuple(failures[name] for name in files if name in failures)
    ordered = tuple(rows[name] for name in files if name in rows)
    write_table(out / "summary.csv", ordered)
    write_table(out / "failures.csv", [vars(failure) for failure in failed])
    return BatchSummary(done, tuple(kept), failed, ordered)


_Found = dict[str, Any] | ImageError | tuple[Image, dict[str, Any]]


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


def _write_folder(folder: Path, write: Write, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Write one image's folder of results in one step; return its row of the summary."""
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
