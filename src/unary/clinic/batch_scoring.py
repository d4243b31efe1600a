"""Scores of many files: patches as CSV, the anomaly map as TIFF and over the image."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unary.clinic.batch import BatchSummary, run_batch
from unary.clinic.file_work import Job
from unary.clinic.result_folder import Result, Source, Write
from unary.errors import Reason
from unary.files import write_csv
from unary.images.isolation import IsolatedReader
from unary.models.bundle import Model, identify_model
from unary.models.examination import ScoredImage, build_detection, choose_point, examine_image
from unary.models.gate import build_gate
from unary.models.probe import ask, choose_picture
from unary.outputs.figures import figure_png, prepare_figures
from unary.outputs.heat_map import head_picture, plot_heat_map
from unary.records import Detection, Image, OperatingPoint, count_words

Box = tuple[float, float, float, float]


def score_files(
    model: Model,
    inputs: Sequence[Path],
    out: Path,
    *,
    model_folder: Path,
    spacing_mm: float | None = None,
    accept: Sequence[Reason] = (),
    reader: IsolatedReader | None = None,
    verify: bool = False,
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
    spacing_mm, accept
        As in `unary.models.gate.Gate`.
    reader
        Reads the files, and is closed in the end; one with the usual limits by default.
    verify
        As in `unary.clinic.batch_detection.DetectConfig`.
    """
    job = build_job(model, model_folder=model_folder, spacing_mm=spacing_mm, accept=accept)
    return run_batch(inputs, out, dataclasses.replace(job, verify=verify), reader=reader, progress=progress)


def build_job(
    model: Model, *, model_folder: Path, spacing_mm: float | None = None, accept: Sequence[Reason] = ()
) -> Job:
    """Return what `score_files` does with every image; arguments are the same."""
    about = identify_model(model, model_folder)

    def examine(image: Image, source: Source) -> Write:
        return functools.partial(_write_scores, examine_image(model, image), model, source.path.name)

    return Job(
        "score",
        examine,
        {"model_sha256": about.sha256, "unary": about.version},
        build_gate(model, spacing_mm=spacing_mm, accept=accept),
        lambda: ask(model, choose_picture(model)),
        prepare=prepare_figures,
    )


def _write_scores(scored: ScoredImage, model: Model, name: str, folder: Path) -> Result:
    """Write patch scores, map and overlay into a folder; return the summary's row and what belongs to them."""
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
    boxes, counted = _mark_patches(scored, points, size)
    detection = build_detection(scored, model, choose_point(model, None))
    heading = f"{head_picture(name, detection)}; {counted}"
    draw_heat_map(scored, detection, folder / "overlay.png", boxes=boxes, heading=heading)
    document = {
        "detector": model.name,
        "image_score": scored.image_score,
        "operating_points": [dataclasses.asdict(point) for point in points],
        "out_of_domain": list(scored.out_of_domain),
        "stored_shape": scored.prepared.stored_shape,
        "stored_pixels_per_working_pixel": scored.prepared.scale,
        "tissue_share": float(np.mean(scored.prepared.mask)),
        "notes": list(scored.prepared.notes),
    }
    row = {
        "image_score": scored.image_score,
        "patches": len(scores),
        **{f"patches_above_{name}": int(marks.sum()) for name, marks in above.items()},
        "out_of_domain": "; ".join(scored.out_of_domain),
    }
    return row, document


def _mark_patches(scored: ScoredImage, points: Sequence[OperatingPoint], size: int) -> tuple[list[Box], str]:
    """The boxes of the patches above the lowest of these operating points, and a title that counts them."""
    if not points:
        return [], count_words(len(scored.scores), "patch")
    lowest = min(points, key=lambda point: point.threshold)
    flagged = scored.origins[scored.scores > lowest.threshold].tolist()
    counted = f"{len(flagged)} of {count_words(len(scored.scores), 'patch')} above {lowest.name} (dashed)"
    return [(row, col, row + size, col + size) for row, col in flagged], counted


def write_map(scored: ScoredImage, folder: Path) -> None:
    """Write the anomaly map as ``map.tiff``: float32 on the working grid, NaN where nothing was scored."""
    import tifffile

    content = io.BytesIO()  # so that a full disk is told as one
    tifffile.imwrite(content, scored.anomaly_map, compression="zlib", software="unary")
    (folder / "map.tiff").write_bytes(content.getbuffer())


def draw_heat_map(
    scored: ScoredImage, detection: Detection, path: Path, *, heading: str, boxes: Sequence[Box] = ()
) -> None:
    """Write the findings over the image as PNG, in colour where the map exceeds the model's level."""
    path.write_bytes(figure_png(plot_heat_map(scored, detection, boxes=boxes, heading=heading)))
