"""Detection over many files: findings as JSON, CSV and pictures, and as the DICOM objects that a PACS takes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from unary.clinic.batch import RESULT_FILE, BatchSummary, Write, run_batch
from unary.clinic.batch_scoring import draw_overlay, with_spacing, write_map
from unary.errors import require, require_positive
from unary.files import replacing, write_csv
from unary.images.isolation_process import ReadingLimits
from unary.models.bundle import Model, identify_model
from unary.models.calibration import describe_guarantee
from unary.models.examination import ScoredImage, build_detection, choose_point, examine_image
from unary.outputs.detection_figures import plot_findings
from unary.outputs.dicom import DEFAULT_KINDS, Kind
from unary.outputs.dicom.header import Run
from unary.outputs.dicom.writing import write_dicom_results
from unary.outputs.figures import figure_png
from unary.records import NOTICE, Detection, Image, ModelIdentity, count_words

logger = logging.getLogger(__name__)

_PLACE = ["r0", "c0", "r1", "c1", "peak_row", "peak_col"]
_COLUMNS = ["rank", "score", "p_value", *_PLACE, "regions", "area_mm2", "diameter_mm"]


@dataclass(frozen=True)
class DetectConfig:
    """What is written of each image.

    Attributes
    ----------
    operating_point
        By name; None takes one false finding per normal image.
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

    operating_point: str | float | None = None
    dicom: tuple[Kind, ...] | None = None
    maps: bool = False
    spacing_mm: float | None = None
    limits: ReadingLimits | None = None

    def __post_init__(self) -> None:
        require_positive(self, "spacing_mm")


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

    ``out/NAME/`` holds ``result.json`` (findings, scores, model, operating point and what it guarantees),
    ``findings.csv``, ``findings.png``, for DICOM images ``report.dcm``, ``segmentation.dcm`` and ``capture.dcm``, on
    request ``map.tiff`` (working grid) and ``heat_map.png``. Coordinates are pixels of the stored image.
    ``out/summary.csv`` and ``out/failures.csv`` are those of `unary.clinic.batch.run_batch`. The date of the results is
    that of the first run into ``out``, so that a run that was interrupted and resumed writes the same bytes as one that
    was not.

    Parameters
    ----------
    model_folder
        Where the model was read from.

    Raises
    ------
    UnaryError
        As `unary.clinic.batch.run_batch`; and if the model has no such operating point, or highdicom is not installed
        and DICOM objects are asked for.
    """
    config = config or DetectConfig()
    point = choose_point(model, config.operating_point)
    kinds = _choose_kinds(config.dicom)
    run = Run(identify_model(model, model_folder), model.profile.codes, _read_moment(out))
    identity = {
        "model_sha256": run.identity.sha256,
        "unary": run.identity.version,
        "operating_point_name": None if point is None else point.name,
        "assumed_spacing_mm": config.spacing_mm,
        "outputs": [*kinds, *(["maps"] if config.maps else [])],
        "moment": run.moment.isoformat(),
    }

    def examine(image: Image) -> Write:
        image = with_spacing(image, config.spacing_mm)
        scored = examine_image(model, image)
        detection = build_detection(scored, model, point)
        found = detection.findings

        def write(folder: Path) -> dict[str, Any]:
            _write_pictures(scored, detection, folder, maps=config.maps)
            rows = [[f.rank, f.score, f.p_value, *f.box, *f.peak, f.regions, f.area_mm2, f.diameter_mm] for f in found]
            write_csv(folder / "findings.csv", _COLUMNS, rows)
            objects: tuple[Path, ...] = ()
            if kinds and image.instance_uid is not None and image.path is not None:  # what is DICOM itself
                anomaly_map = scored.stored_map if "heat_map" in kinds else None
                objects = write_dicom_results(
                    image.path, detection, run, folder, kinds=kinds, anomaly_map=anomaly_map, image=image
                )
            document = _describe(detection, run.identity, scored, objects)
            (folder / RESULT_FILE).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
            return {
                "findings": len(found),
                "image_score": detection.image_score,
                "image_p_value": detection.image_p_value,
                "out_of_domain": "; ".join(detection.out_of_domain),
            }

        return write

    limits = config.limits
    return run_batch(inputs, out, examine, identity=identity, limits=limits, title="detecting", progress=progress)


def _choose_kinds(asked: tuple[Kind, ...] | None) -> tuple[Kind, ...]:
    if asked:
        require("highdicom", extra="dicom")
    elif asked is None and importlib.util.find_spec("highdicom") is None:
        logger.warning("no DICOM results: highdicom is not installed (pip install 'unary[dicom]')")
        return ()
    return DEFAULT_KINDS if asked is None else asked


def _read_moment(out: Path) -> datetime:
    """When the first run into a folder began, to the second, UTC; now for a new folder."""
    path = out / "run.json"
    try:
        return datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["started"])
    except (OSError, ValueError, KeyError, TypeError):
        moment = datetime.now(UTC).replace(microsecond=0)
        with replacing(path) as partial:
            partial.write_text(json.dumps({"started": moment.isoformat()}) + "\n", encoding="utf-8")
        return moment


def _write_pictures(scored: ScoredImage, detection: Detection, folder: Path, *, maps: bool) -> None:
    scale = np.asarray(scored.prepared.scale)
    shown = [  # on the working grid, which is what the detector saw
        dataclasses.replace(
            finding,
            outline=tuple(map(tuple, ((np.asarray(finding.outline) + 0.5) / scale - 0.5).tolist())),
        )
        for finding in detection.findings
    ]
    title = f"{count_words(len(shown), 'finding')}. {NOTICE}"
    figure = plot_findings(scored.prepared.pixels, shown, title=title)
    (folder / "findings.png").write_bytes(figure_png(figure))
    if maps:
        write_map(scored, folder)
        draw_overlay(scored, folder / "heat_map.png", title=NOTICE)


def _describe(
    detection: Detection, about: ModelIdentity, scored: ScoredImage, objects: Sequence[Path]
) -> Mapping[str, Any]:
    """What ``result.json`` holds."""
    point = detection.operating_point
    guarantee = describe_guarantee(point) if point else "not calibrated: scores only, nothing is guaranteed"
    return {
        "model": dataclasses.asdict(about),
        "operating_point": dataclasses.asdict(point) if point else None,
        "guarantee": guarantee,
        "image_score": detection.image_score,
        "image_p_value": detection.image_p_value,
        "out_of_domain": list(detection.out_of_domain),
        "findings": [dataclasses.asdict(finding) for finding in detection.findings],
        "stored_shape": scored.prepared.stored_shape,
        "stored_spacing_mm": scored.prepared.stored_spacing_mm,
        "scored_share": scored.scored_px / scored.anomaly_map.size,
        "dicom": [path.name for path in objects],
    }
