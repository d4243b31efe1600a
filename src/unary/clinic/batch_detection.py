"""Detection over many files: findings as JSON, CSV and pictures, and as the DICOM objects that a PACS takes."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unary.clinic.batch import BatchSummary, run_batch
from unary.clinic.batch_scoring import draw_heat_map, write_map
from unary.clinic.file_work import Job
from unary.clinic.inputs import list_inputs
from unary.clinic.result_folder import Result, Source
from unary.errors import DicomResultError, Reason, UnaryError, explain_unexpected, require, require_positive
from unary.files import write_csv
from unary.images.isolation import IsolatedReader
from unary.images.isolation_process import ReadingLimits
from unary.models.bundle import Model, identify_model
from unary.models.calibration import describe_guarantee
from unary.models.examination import ScoredImage, build_detection, choose_point, examine_image
from unary.models.gate import build_gate
from unary.models.probe import ask, choose_picture
from unary.outputs.detection_figures import plot_findings
from unary.outputs.dicom import DEFAULT_KINDS, KINDS, STUDY_KINDS, Kind, StudyKind
from unary.outputs.dicom.run import Run, hash_case
from unary.outputs.figures import figure_png, prepare_figures
from unary.outputs.heat_map import head_picture, place_findings
from unary.outputs.tables import FINDINGS, list_cells
from unary.outputs.views import Scale, choose_scale, draw_views, write_views
from unary.patches.measures import TissueValues, measure_values
from unary.patches.preparation import enlarge
from unary.profiles.mammography import MAMMOGRAPHY
from unary.records import Detection, Image, ModelIdentity

if TYPE_CHECKING:
    from unary.clinic.study_results import StudyResults

logger = logging.getLogger(__name__)

PAGE_FILE = "report.html"


@dataclass(frozen=True)
class DetectConfig:
    """What is written of each image.

    Attributes
    ----------
    operating_point
        By name; None takes one false finding per normal image.
    dicom
        Kinds of DICOM objects for images that are DICOM, and for their studies; None takes report, segmentation and
        capture of each image if highdicom is there, and nothing if it is not.
    maps
        Whether to write the anomaly map as TIFF and as a heat map over the image.
    spacing_mm, accept
        As in `unary.models.gate.Gate`; with a spacing, sizes in mm rest on your word.
    limits
        Of reading a file.
    verify
        Whether files are read again that look as they did when their results were made.
    """

    operating_point: str | float | None = None
    dicom: tuple[Kind | StudyKind, ...] | None = None
    maps: bool = False
    spacing_mm: float | None = None
    accept: tuple[Reason, ...] = ()
    limits: ReadingLimits | None = None
    verify: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "spacing_mm")
        unknown = [kind for kind in self.dicom or () if kind not in (*KINDS, *STUDY_KINDS)]
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r}; known are {', '.join((*KINDS, *STUDY_KINDS))}")


def detect_files(
    model: Model,
    inputs: Sequence[Path],
    out: Path,
    config: DetectConfig | None = None,
    *,
    model_folder: Path,
    moment: datetime | None = None,
    reader: IsolatedReader | None = None,
    progress: bool = True,
) -> BatchSummary:
    """Find what departs from normal tissue in files and folders.

    ``out/NAME/`` holds ``result.json`` (findings, scores, model, operating point and what it guarantees),
    ``findings.csv``, ``findings.png``, what pages show of it (`unary.outputs.views`), for DICOM images ``report.dcm``,
    ``segmentation.dcm`` and ``capture.dcm``, on request ``map.tiff`` (working grid) and ``heat_map.png``.
    ``out/report.html`` shows all of it (`unary.outputs.detection_page`). Coordinates are pixels of the stored image.
    Where DICOM objects cannot be made, the rest is there all the same, and ``dicom_missing`` says why.
    ``out/summary.csv``, ``out/failures.csv`` and ``out/run.json`` are those of `unary.clinic.batch.run_batch`; the
    objects of studies, which are made last, those of `unary.clinic.study_results`.

    Parameters
    ----------
    model_folder
        Where the model was read from.
    moment
        When the results are made, with a time zone: the date and time in them; now by default. Results that are kept
        keep theirs.
    reader
        Reads the files, and is closed in the end; one with the limits of ``config`` by default.

    Raises
    ------
    UnaryError
        As `unary.clinic.batch.run_batch`; and if the model has no such operating point, a reason cannot be accepted, or
        highdicom is not installed and DICOM objects are asked for, or a CAD report of what are no mammograms.
    """
    config = config or DetectConfig()
    moment = moment or datetime.now().astimezone().replace(microsecond=0)
    job = build_job(model, config, model_folder=model_folder, moment=moment)
    summary = run_batch(
        inputs, out, job, moment=moment, reader=reader or IsolatedReader(config.limits), progress=progress
    )
    kinds = list_study_kinds(config)
    if kinds:
        sources = list_inputs(inputs).names
        studies = write_studies(model, config, out, sources, model_folder=model_folder, moment=moment, kinds=kinds)
        summary = replace(summary, remarks=(*summary.remarks, *studies.missing))
    from unary.outputs.detection_page import is_current, write_detection_page

    if summary.done or not is_current(out / PAGE_FILE):
        write_detection_page(out / PAGE_FILE)
    return summary


def list_study_kinds(config: DetectConfig) -> tuple[StudyKind, ...]:
    """Return the kinds of objects that are made of each study."""
    return tuple(kind for kind in STUDY_KINDS if kind in (config.dicom or ()))


def write_studies(
    model: Model,
    config: DetectConfig,
    results: Path,
    sources: Iterable[Path],
    *,
    model_folder: Path,
    moment: datetime,
    kinds: Sequence[StudyKind],
) -> StudyResults:
    """Write the objects of the studies of image files whose results, made by `detect_files`, are in a folder.

    See `unary.clinic.study_results.write_study_results`.
    """
    from unary.clinic.study_results import write_study_results

    run = Run(identify_model(model, model_folder), model.profile.codes, moment)
    return write_study_results(results, sources, run, choose_point(model, config.operating_point), kinds=kinds)


def build_job(model: Model, config: DetectConfig, *, model_folder: Path, moment: datetime) -> Job:
    """Return what `detect_files` does with every image; arguments and errors are the same.

    ``examine`` of the job returns a `DetectionWrite`.
    """
    point = choose_point(model, config.operating_point)
    kinds = _choose_kinds(config.dicom)
    if "cad_report" in list_study_kinds(config) and model.profile.name != MAMMOGRAPHY.name:
        raise UnaryError(f"a CAD report is of mammograms; this model's profile is {model.profile.name!r}")
    run = Run(identify_model(model, model_folder), model.profile.codes, moment)

    wanted = _Wanted(run, kinds, config.maps)

    def examine(image: Image, source: Source) -> DetectionWrite:
        scored = examine_image(model, image)
        measured = measure_values(image.pixels, enlarge(scored.prepared.mask, scored.prepared))
        scale = choose_scale(model, scored, None if point is None else point.threshold)
        examined = Examined(image, source, scored, build_detection(scored, model, point), measured, scale)
        return DetectionWrite(examined, wanted)

    made_from = {
        "model_sha256": run.identity.sha256,
        "unary": run.identity.version,
        "operating_point": None if point is None else point.name,
        "outputs": [*kinds, *(["maps"] if config.maps else [])],
    }
    gate = build_gate(model, spacing_mm=config.spacing_mm, accept=config.accept)
    return Job(
        "detect",
        examine,
        made_from,
        gate,
        lambda: ask(model, choose_picture(model)),
        writes_apart=True,
        prepare=partial(_prepare, bool(kinds)),
        verify=config.verify,
    )


def _prepare(dicom: bool) -> None:
    """Import what writes results."""
    prepare_figures()
    if dicom:
        importlib.import_module("unary.outputs.dicom.writing")
        importlib.import_module("highdicom")


@dataclass(frozen=True)
class _Wanted:
    """What is written of every image."""

    run: Run
    kinds: tuple[Kind, ...]
    maps: bool


@dataclass(frozen=True)
class Examined:
    """One image, and what was found in it."""

    image: Image
    source: Source
    scored: ScoredImage
    detection: Detection
    measured: TissueValues | None
    scale: Scale


@dataclass(frozen=True, eq=False)
class DetectionWrite:
    """What was found in one image, and, called with a folder, what writes it there."""

    examined: Examined
    wanted: _Wanted

    def __call__(self, folder: Path) -> Result:
        return _write_detection(self.examined, self.wanted, folder)


def _write_detection(examined: Examined, wanted: _Wanted, folder: Path) -> Result:
    """Write everything of one image into a folder; return the summary's row, and what ``result.json`` says."""
    detection, scored = examined.detection, examined.scored
    found = detection.findings
    _write_pictures(scored, detection, folder, name=examined.source.path.name, maps=wanted.maps)
    views = draw_views(examined.image, scored, found, examined.scale)
    write_csv(folder / "findings.csv", FINDINGS.names[1:], map(list_cells, found))
    objects, missing = _write_objects(examined, wanted, folder) if wanted.kinds else ((), None)
    document = _describe(detection, wanted.run.identity, scored) | {
        "dicom": [path.name for path in objects],
        "dicom_missing": missing,
        "dicom_key": hash_case(examined.source.sha256, detection, wanted.run) if objects else None,
        "tissue": None if examined.measured is None else dataclasses.asdict(examined.measured),
        "views": write_views(views, folder),
    }
    row = {
        "findings": len(found),
        "image_score": detection.image_score,
        "image_p_value": detection.image_p_value,
        "out_of_domain": "; ".join(detection.out_of_domain),
        "dicom_missing": "" if examined.source.raster else missing,
    }
    return row, document


def _write_objects(examined: Examined, wanted: _Wanted, folder: Path) -> tuple[tuple[Path, ...], str | None]:
    """Write the DICOM objects that can be made, and return them, and why others cannot; a disk's error goes through."""
    from unary.outputs.dicom.writing import write_dicom_results

    path, kinds = examined.source.path, wanted.kinds
    if examined.source.raster:
        return (), "the image is no DICOM object; its results would have no study to lie in"
    anomaly_map = examined.scored.stored_map if "heat_map" in kinds else None
    options: dict[str, Any] = {"kinds": kinds, "anomaly_map": anomaly_map, "image": examined.image}
    try:
        return write_dicom_results(path, examined.detection, wanted.run, folder, **options), None
    except OSError:
        raise
    except Exception as error:
        objects = error.written if isinstance(error, DicomResultError) else ()
        for left in set(folder.glob("*.dcm")) - set(objects):
            left.unlink()
        return objects, str(explain_unexpected(error, str(path))).removeprefix(f"{path}: ")


def _choose_kinds(asked: tuple[Kind | StudyKind, ...] | None) -> tuple[Kind, ...]:
    """The kinds of objects of each image."""
    own = None if asked is None else tuple(kind for kind in KINDS if kind in asked)
    if own:
        require("highdicom", extra="dicom")
    elif own is None and importlib.util.find_spec("highdicom") is None:
        logger.warning("no DICOM results: highdicom is not installed (pip install 'unary[dicom]')")
        return ()
    return DEFAULT_KINDS if own is None else own


def _write_pictures(scored: ScoredImage, detection: Detection, folder: Path, *, name: str, maps: bool) -> None:
    shown = place_findings(detection.findings, scored.prepared.scale)  # on the grid that the detector saw
    title = head_picture(name, detection)
    figure = plot_findings(scored.prepared.pixels, shown, title=title)
    (folder / "findings.png").write_bytes(figure_png(figure))
    if maps:
        write_map(scored, folder)
        draw_heat_map(scored, detection, folder / "heat_map.png", heading=title)


def _describe(detection: Detection, about: ModelIdentity, scored: ScoredImage) -> dict[str, Any]:
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
        "notes": list(detection.notes),
    }
