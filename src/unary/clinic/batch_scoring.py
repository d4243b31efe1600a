"""Scores of many files: patches as CSV, the anomaly map as TIFF and over the image."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.clinic.batch import RESULT_FILE, BatchSummary, Write, run_batch
from unary.files import write_csv
from unary.images.isolation_process import ReadingLimits
from unary.models.bundle import Model, identify_model
from unary.models.examination import ScoredImage, examine_image
from unary.outputs.detection_figures import plot_overlay
from unary.outputs.figures import figure_png
from unary.records import Image, OperatingPoint

Box = tuple[float, float, float, float]


def score_files(
    model: Model,
    inputs: Sequence[Path],
    out: Path,
    *,
    model_folder: Path,
    spacing_mm: float | None = None,
    limits: ReadingLimits | None = None,
    progress: bool = True,
) -> BatchSummary:
    """Score files and folders patch by patch.

    ``out/NAME/`` holds ``scores.csv`` (one row per patch, in pixels of the working grid, with a column
    ``above_POINT`` for each operating point that counts patches), ``map.tiff`` (float32 on the working grid, NaN where
    nothing was scored), ``overlay.png`` and ``result.json``; see `unary.clinic.batch.run_batch` for the rest. Map and
    image score are those of `unary.clinic.batch_detection.detect_files`.

    Parameters
    ----------
    model_folder
        Where the model was read from.
    spacing_mm
        Pixel spacing of files that do not state it; None leaves it unknown.
    """
    about = identify_model(model, model_folder)
    identity = {"model_sha256": about.sha256, "unary": about.version, "assumed_spacing_mm": spacing_mm}

    def examine(image: Image) -> Write:
        return functools.partial(_write_scores, examine_image(model, with_spacing(image, spacing_mm)), model)

    return run_batch(inputs, out, examine, identity=identity, limits=limits, progress=progress)


def with_spacing(image: Image, spacing_mm: float | None) -> Image:
    """Return the image with this pixel spacing, unless it states its own or None is given."""
    if spacing_mm is None or image.spacing_mm is not None:
        return image
    return dataclasses.replace(image, spacing_mm=(spacing_mm, spacing_mm))


def _write_scores(scored: ScoredImage, model: Model, folder: Path) -> dict[str, Any]:
    """Write patch scores, map, overlay and what belongs to them into a folder; return the summary's row."""
    points = () if model.calibration is None else model.calibration.operating_points
    points = tuple(point for point in points if point.unit == "patch")
    above = {point.name: scored.scores > point.threshold for point in points}
    size, scores = model.grid.size_px, scored.scores.tolist()
    columns = [
        *scored.origins.T.tolist(),
        [size] * len(scores),
        scores,
        *(m.astype(int).tolist() for m in above.values()),
    ]
    header = ["row", "col", "size_px", "score", *(f"above_{name}" for name in above)]
    write_csv(folder / "scores.csv", header, zip(*columns, strict=True))
    write_map(scored, folder)
    boxes, title = _mark_patches(scored, points, size)
    draw_overlay(scored, folder / "overlay.png", boxes=boxes, title=title)
    result = {
        "detector": model.name,
        "image_score": scored.image_score,
        "operating_points": [dataclasses.asdict(point) for point in points],
        "out_of_domain": list(scored.out_of_domain),
        "stored_shape": scored.prepared.stored_shape,
        "stored_pixels_per_working_pixel": scored.prepared.scale,
        "tissue_share": float(np.mean(scored.prepared.mask)),
    }
    (folder / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")
    return {
        "image_score": scored.image_score,
        "patches": len(scores),
        **{f"patches_above_{name}": int(marks.sum()) for name, marks in above.items()},
    }


def _mark_patches(scored: ScoredImage, points: Sequence[OperatingPoint], size: int) -> tuple[list[Box], str]:
    """The boxes of the patches above the lowest of these operating points, and a title that counts them."""
    if not points:
        return [], f"{len(scored.scores)} patches; not calibrated"
    lowest = min(points, key=lambda point: point.threshold)
    flagged = scored.origins[scored.scores > lowest.threshold].tolist()
    title = f"{len(flagged)} of {len(scored.scores)} patches above the operating point {lowest.name}"
    return [(row, col, row + size, col + size) for row, col in flagged], title


def write_map(scored: ScoredImage, folder: Path) -> None:
    """Write the anomaly map as ``map.tiff``: float32 on the working grid, NaN where nothing was scored."""
    import tifffile

    tifffile.imwrite(folder / "map.tiff", scored.anomaly_map, compression="zlib", software="unary")


def draw_overlay(scored: ScoredImage, path: Path, *, boxes: Sequence[Box] = (), title: str) -> None:
    """Write the anomaly map over the image as PNG."""
    limits = _find_limits(scored.anomaly_map)
    figure = plot_overlay(scored.prepared.pixels, scored.anomaly_map, limits=limits, boxes=boxes, title=title)
    path.write_bytes(figure_png(figure))


def _find_limits(anomaly_map: NDArray[np.float32]) -> tuple[float, float] | None:
    """The colour range of an overlay: the quieter 95 % of the image stay clear, the strongest 0.05 % are brightest."""
    found = anomaly_map[np.isfinite(anomaly_map)]
    if found.size == 0:
        return None
    low, high = np.percentile(found[:: max(1, found.size // 2_000_000)], [95, 99.95])
    return (float(low), float(high)) if high > low else None
