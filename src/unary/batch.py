"""Scoring many files: one bad file never stops the others, and nothing already computed is lost.

Every image gets its own folder of results, written under a temporary name and renamed when it is whole. A rerun skips
what is there already, as long as the model and the file are the same.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unary.bundle import MODEL_FILE, Model, hash_file
from unary.errors import ImageError
from unary.files import replacing
from unary.outputs.figures import figure_png, plot_overlay
from unary.scoring import ImageScores, score_image
from unary.sources.folder import find_images
from unary.sources.images import read_image

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"


@dataclass(frozen=True)
class BatchSummary:
    """How a batch ended: names of the images scored now, of those found done, and one line per failure."""

    scored: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[str, ...]


def list_inputs(inputs: Sequence[Path]) -> dict[str, Path]:
    """Return the image files by a name that is unique and fit for a folder.

    A file keeps its stem; a folder is searched for images, each named by its path below the folder with ``__`` between
    the parts.

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
                raise ImageError(f"{given}: no image (DICOM, PNG, TIFF, PGM) in this folder")
        elif given.exists():
            paths = [given]
        else:
            raise ImageError(f"{given}: no such file or folder")
        for path in paths:
            name = "__".join((path.relative_to(given) if given.is_dir() else Path(path.name)).with_suffix("").parts)
            unique, count = name, 2
            while unique in found:
                unique, count = f"{name}-{count}", count + 1
            found[unique] = path
    return found


def score_files(
    model: Model, inputs: Sequence[Path], out: Path, *, model_folder: Path, progress: bool = True
) -> BatchSummary:
    """Score files and folders; write a folder of results per image and two tables under ``out``.

    ``out/NAME/`` holds ``scores.csv`` (one row per patch, working-grid pixels), ``map.tiff`` (float32, NaN where
    nothing was scored), ``overlay.png`` and ``result.json``. ``out/summary.csv`` has one row per image,
    ``out/failures.csv`` one per file that could not be scored, with the reason.

    Raises
    ------
    ImageError
        If an input does not exist or holds no image.
    """
    files = list_inputs(inputs)
    model_hash = hash_file(model_folder / MODEL_FILE)
    out.mkdir(parents=True, exist_ok=True)
    scored, kept, failed = [], [], []
    rows: list[dict[str, Any]] = []
    bar = tqdm(files.items(), desc="scoring", unit="image", delay=2, disable=None if progress else True)
    for name, path in bar:
        identity = {"model_sha256": model_hash, "file": path.name, "bytes": path.stat().st_size}
        done = _read_result(out / name, identity)
        if done is not None:
            kept.append(name)
            rows.append(done)
            continue
        try:
            scores = score_image(model, read_image(path))
        except ImageError as error:
            failed.append(str(error))
            logger.warning("skipped: %s", error)
            continue
        rows.append(write_image_result(scores, model, out / name, identity=identity))
        scored.append(name)
    _write_table(out / "summary.csv", rows)
    _write_table(out / "failures.csv", [{"reason": reason} for reason in failed])
    return BatchSummary(tuple(scored), tuple(kept), tuple(failed))


def _read_result(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The summary row of a finished result of the same model and file, or None."""
    try:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    same = all(result.get(key) == value for key, value in identity.items())
    return result["summary"] if same else None


def write_image_result(scores: ImageScores, model: Model, folder: Path, *, identity: dict[str, Any]) -> dict[str, Any]:
    """Write one image's folder of results in one step; return its row of the summary."""
    import tifffile

    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    threshold = model.thresholds["0.95"]
    summary = {
        "image": folder.name,
        "image_score": scores.image_score,
        "patches": len(scores.scores),
        **{f"patches_above_{level}": int((scores.scores > value).sum()) for level, value in model.thresholds.items()},
    }
    size = model.grid.size_px
    with (partial / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "col", "size_px", "score", *(f"above_{level}" for level in model.thresholds)])
        for (row, col), value in zip(scores.origins.tolist(), scores.scores.tolist(), strict=True):
            writer.writerow([row, col, size, repr(value), *(int(value > t) for t in model.thresholds.values())])
    tifffile.imwrite(partial / "map.tiff", scores.anomaly_map, compression="zlib", software="unary")
    flagged = scores.origins[scores.scores > threshold]
    figure = plot_overlay(
        scores.prepared.pixels,
        scores.anomaly_map,
        limits=_find_limits(scores.anomaly_map),
        boxes=[(row, col, row + size, col + size) for row, col in flagged.tolist()],
        title=f"{len(flagged)} of {len(scores.scores)} patches above the 95 % threshold",
    )
    (partial / "overlay.png").write_bytes(figure_png(figure))
    result = {
        **identity,
        "notice": "Research software. Not for diagnosis.",
        "detector": model.name,
        "thresholds": model.thresholds,
        "stored_shape": scores.prepared.stored_shape,
        "stored_pixels_per_working_pixel": scores.prepared.scale,
        "tissue_share": float(np.mean(scores.prepared.mask)),
        "summary": summary,
    }
    (partial / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return summary


def _find_limits(anomaly_map: NDArray[np.float32]) -> tuple[float, float] | None:
    """The colour range of an overlay: the quieter 95 % of the image stay clear, the strongest 0.05 % are brightest."""
    found = anomaly_map[np.isfinite(anomaly_map)]
    if found.size == 0:
        return None
    low, high = np.percentile(found[:: max(1, found.size // 2_000_000)], [95, 99.95])
    return (float(low), float(high)) if high > low else None


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
