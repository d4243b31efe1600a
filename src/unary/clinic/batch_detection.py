"""Detection over many files: findings as JSON, CSV and pictures, and as the DICOM objects that a PACS takes."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.util
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.clinic.batch import RESULT_FILE, BatchSummary, Write, find_limits, run_batch
from unary.errors import MissingPackageError
from unary.files import replacing
from unary.images.isolation_process import ReadingLimits
from unary.models.bundle import Model, identify_model
from unary.models.calibration import describe_promise
from unary.models.detection import Examined, build_detection, choose_point, examine_image, require_settings
from unary.outputs.detection_figures import plot_findings
from unary.outputs.dicom.writing import DEFAULT_KINDS, Kind, write_dicom_results
from unary.outputs.figures import figure_png, plot_overlay
from unary.patches.preparation import PreparedImage
from unary.records import Detection, Finding, Image, ModelIdentity

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"


@dataclass(frozen=True)
class DetectConfig:
    """What is written of each image.

    Attributes
    ----------
    operating_point
        By name; None takes one false finding per normal image.
    stride_px
        Step between windows, for detectors of single patches; None takes the model's.
    dicom
        Kinds of DICOM objects for images that are DICOM; None takes report, segmentation and capture if highdicom is
        there, and nothing if it is not.
    maps
        Whether to write the anomaly map as TIFF and as a heat map over the image.
    spacing_mm
        Pixel spacing of files that do not state it; None leaves it unknown. Sizes in mm then rest on your word.
    limits
        Of reading a file.
    """

    operating_point: str | None = None
    stride_px: int | None = None
    dicom: tuple[Kind, ...] | None = None
    maps: bool = False
    spacing_mm: float | None = None
    limits: ReadingLimits | None = None

    def __post_init__(self) -> None:
        if self.stride_px is not None and self.stride_px < 1:
            raise ValueError(f"stride_px must be at least 1, got {self.stride_px}")
        if self.spacing_mm is not None and not 0 < self.spacing_mm < math.inf:
            raise ValueError(f"spacing_mm must be positive, got {self.spacing_mm}")


def detect_files(
    model: Model,
    inputs: Sequence[Path],
    out: Path,
    config: DetectConfig | None = None,
    *,
    model_folder: Path,
    progress: bool = True,
) -> BatchSummary:
    """Find what departs from normal tissue in files and folders.

    ``out/NAME/`` holds ``result.json`` (findings, scores, model, operating point and what it promises),
    ``findings.csv``, ``findings.png``, for DICOM images ``report.dcm``, ``segmentation.dcm`` and ``capture.dcm``, on
    request ``map.tiff`` and ``heat_map.png``. Coordinates are pixels of the stored image. ``out/summary.csv`` and
    ``out/failures.csv`` are those of `unary.clinic.batch.run_batch`. The date of the results is that of the first run into
    ``out``, so that a run that was interrupted and resumed writes the same bytes as one that was not.

    Raises
    ------
    ImageError, UnaryError
        As `unary.clinic.batch.run_batch`.
    CalibrationError
        As `unary.models.detection.choose_point`.
    MissingPackageError
        If DICOM objects are asked for and highdicom is not installed.
    """
    config = config or DetectConfig()
    settings = require_settings(model)
    if config.stride_px not in (None, settings.stride_px):
        logger.warning("another stride than that of the calibration: for a detector of patches its promises are void")
        settings = dataclasses.replace(settings, stride_px=config.stride_px)
        model = dataclasses.replace(model, detection=settings)
    point = choose_point(model, config.operating_point)
    kinds = _choose_kinds(config.dicom)
    about = identify_model(model, model_folder)
    moment = _read_moment(out)
    identity = {
        "model_sha256": about.sha256,
        "unary": about.version,
        "operating_point_name": None if point is None else point.name,
        "stride_px": settings.stride_px,
        "assumed_spacing_mm": config.spacing_mm,
        "outputs": [*kinds, *(["maps"] if config.maps else [])],
        "moment": moment.isoformat(),
    }

    def examine(image: Image) -> Write:
        if image.spacing_mm is None and config.spacing_mm is not None:
            image = dataclasses.replace(image, spacing_mm=(config.spacing_mm, config.spacing_mm))
        examined = examine_image(model, image)
        return functools.partial(write, image, examined, build_detection(examined, settings, point))

    def write(image: Image, examined: Examined, detection: Detection, folder: Path) -> dict[str, Any]:
        _write_pictures(examined, detection, folder, maps=config.maps)
        _write_findings(detection.findings, folder / "findings.csv")
        objects: tuple[Path, ...] = ()
        if kinds and image.instance_uid is not None:
            anomaly_map = enlarge_map(examined.anomaly_map, examined.prepared) if "heat_map" in kinds else None
            objects = write_dicom_results(
                image.path,
                detection,
                about,
                folder,
                kinds=kinds,
                moment=moment,
                anomaly_map=anomaly_map,
                image=image,
            )
        document = _describe(detection, about, examined, objects)
        (folder / RESULT_FILE).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        return {
            "findings": len(detection.findings),
            "image_score": detection.image_score,
            "image_p_value": detection.image_p_value,
            "out_of_domain": "; ".join(detection.out_of_domain),
        }

    return run_batch(
        inputs, out, examine, identity=identity, limits=config.limits, title="detecting", progress=progress
    )


def _choose_kinds(asked: tuple[Kind, ...] | None) -> tuple[Kind, ...]:
    installed = importlib.util.find_spec("highdicom") is not None
    if asked is None and not installed:
        logger.warning("no DICOM results: highdicom is not installed (pip install 'unary[dicom]')")
        return ()
    if asked and not installed:
        raise MissingPackageError("DICOM results need highdicom, which is not installed: pip install 'unary[dicom]'")
    return DEFAULT_KINDS if asked is None else asked


def _read_moment(out: Path) -> datetime:
    """When the first run into a folder began, to the second, UTC; now for a new folder."""
    path = out / RUN_FILE
    try:
        return datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["started"])
    except (OSError, ValueError, KeyError, TypeError):
        moment = datetime.now(UTC).replace(microsecond=0)
        with replacing(path) as partial:
            partial.write_text(json.dumps({"started": moment.isoformat()}) + "\n", encoding="utf-8")
        return moment


def enlarge_map(anomaly_map: NDArray[np.float32], prepared: PreparedImage) -> NDArray[np.float32]:
    """Return a map of the working grid on the stored grid, each pixel taking its nearest."""
    index = [
        np.minimum(((np.arange(length) + 0.5) / factor).astype(int), size - 1)
        for length, factor, size in zip(prepared.stored_shape, prepared.scale, anomaly_map.shape, strict=True)
    ]
    enlarged: NDArray[np.float32] = anomaly_map[index[0]][:, index[1]]
    return enlarged


def _write_pictures(examined: Examined, detection: Detection, folder: Path, *, maps: bool) -> None:
    scale = np.asarray(examined.prepared.scale)
    shown = [  # on the working grid, which is what the detector saw
        dataclasses.replace(
            finding,
            outline=tuple(map(tuple, ((np.asarray(finding.outline) + 0.5) / scale - 0.5).tolist())),
        )
        for finding in detection.findings
    ]
    title = f"{len(shown)} finding{'' if len(shown) == 1 else 's'}. Research, not for diagnosis"
    figure = plot_findings(examined.prepared.pixels, shown, title=title)
    (folder / "findings.png").write_bytes(figure_png(figure))
    if not maps:
        return
    import tifffile

    tifffile.imwrite(folder / "map.tiff", examined.anomaly_map, compression="zlib", software="unary")
    heat = plot_overlay(
        examined.prepared.pixels,
        examined.anomaly_map,
        limits=find_limits(examined.anomaly_map),
        title="Research, not for diagnosis",
    )
    (folder / "heat_map.png").write_bytes(figure_png(heat))


def _write_findings(findings: Sequence[Finding], path: Path) -> None:
    names = ("rank", "score", "p_value", "r0", "c0", "r1", "c1", "peak_row", "peak_col", "regions", "area_mm2")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "diameter_mm"])
        for found in findings:
            place = (*found.box, *found.peak, found.regions)
            writer.writerow([found.rank, found.score, found.p_value, *place, found.area_mm2, found.diameter_mm])


def _describe(
    detection: Detection, about: ModelIdentity, examined: Examined, objects: Sequence[Path]
) -> Mapping[str, Any]:
    """What ``result.json`` holds."""
    point = detection.operating_point
    prepared = examined.prepared
    return {
        "model": dataclasses.asdict(about),
        "operating_point": None if point is None else dataclasses.asdict(point),
        "promise": "not calibrated: scores only, nothing is promised" if point is None else describe_promise(point),
        "image_score": detection.image_score,
        "image_p_value": detection.image_p_value,
        "out_of_domain": list(detection.out_of_domain),
        "findings": [dataclasses.asdict(finding) for finding in detection.findings],
        "stored_shape": prepared.stored_shape,
        "stored_spacing_mm": prepared.stored_spacing_mm,
        "scored_share": examined.scored_px / examined.anomaly_map.size,
        "dicom": [path.name for path in objects],
    }
