"""Setting a model's operating points, on normal images of patients that it has not learned from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from tqdm import tqdm

from unary.datasets.manifest import build_manifest
from unary.errors import CalibrationError, ImageError, SplitError
from unary.models.bundle import Model, hash_patients
from unary.models.calibration import MOST_FINDINGS, NormalScores, calibrate
from unary.models.examination import ScoredImage, examine_image
from unary.patches.collection import read_row
from unary.records import Image, Manifest, ManifestRow

logger = logging.getLogger(__name__)

T = TypeVar("T")
Images = Manifest | Sequence[Image | NDArray[Any] | Path | str] | NDArray[Any]
"""A manifest; or images, arrays or paths, each of another patient and vouched for as normal."""


def take_normals(images: Images) -> Manifest:
    """Return a manifest of normal images.

    Raises
    ------
    ManifestError, ImageError
        As `unary.datasets.manifest.build_manifest`.
    """
    if isinstance(images, Manifest):
        return images
    manifest = build_manifest(images)
    return Manifest(tuple(dataclasses.replace(row, label="negative") for row in manifest.rows))


def calibrate_model(model: Model, images: Images, *, allow_seen: bool = False, progress: bool = True) -> Model:
    """Return the model with operating points set on normal images.

    Parameters
    ----------
    model
        Fitted; stays as it is. In what is returned, a former calibration is replaced.
    images
        A manifest whose images are labelled negative, without lesions, of patients that were not trained on; or a
        sequence of such images.
    allow_seen
        Accept patients that the model was trained on; the operating points then guarantee nothing.
    progress
        Show a progress bar.

    Raises
    ------
    CalibrationError
        If an image is not normal, or fewer than two patients can be used.
    SplitError
        If a patient was trained on, unless ``allow_seen``.
    """
    manifest = take_normals(images)
    wrong = [row.image_id for row in manifest.rows if row.label != "negative"]
    if wrong:
        raise CalibrationError(
            f"thresholds are set on normal images alone, but {len(wrong)} of {len(manifest.rows)} images of the "
            f"manifest are positive or unlabelled (first: {wrong[0]}); keep the negatives with "
            "`unary manifest --only negative`"
        )
    lesional = {lesion.image_id for lesion in manifest.lesions}
    rows = [row for row in manifest.rows if row.complete and row.image_id not in lesional]
    if len(rows) < len(manifest.rows):
        logger.warning(
            "%d images hold benign lesions, or are not completely annotated, and do not count as normal",
            len(manifest.rows) - len(rows),
        )
    seen = set(hash_patients(row.patient_id for row in rows)) & set(model.provenance.patient_hashes)
    if seen and not allow_seen:
        raise SplitError(
            f"{len(seen)} patient(s) of the manifest were in the training set of the model, which would announce too "
            "few false alarms; calibrate on other patients, or allow it with --allow-seen"
        )
    calibrated = set_operating_points(model, rows, progress=progress)
    return void_guarantees(calibrated) if seen else calibrated


def set_operating_points(model: Model, rows: Sequence[ManifestRow], *, progress: bool = True) -> Model:
    """Return the model with operating points set on normal images, whose patients the caller vouches for.

    Raises
    ------
    CalibrationError
        If images of fewer than two patients can be used.
    """

    def examine(row: ManifestRow, image: Image) -> NormalScores:
        scored = examine_image(model, image)
        if scored.scored_px == 0:
            raise ImageError(f"{image.name}: no pixel of it could be scored; does it show hardly any tissue?")
        return score_normal(scored, hash_patients([row.patient_id])[0])

    normals = list(examine_rows(rows, examine, title="calibrating", progress=progress))
    return dataclasses.replace(model, calibration=calibrate(normals))


def score_normal(scored: ScoredImage, patient: str) -> NormalScores:
    """Return what a calibration needs to know of a normal image.

    Raises
    ------
    ImageError
        If nothing of it could be scored.
    """
    highest = scored.image_score
    if highest is None:
        raise ImageError("no pixel of the image could be scored")
    findings = tuple(scored.candidates.scores[:MOST_FINDINGS].tolist())
    return NormalScores(patient, findings, highest, scored.scores)


def void_guarantees(model: Model) -> Model:
    """Return the model with its operating points as estimates alone, as when training patients set them."""
    if model.calibration is None:
        return model
    points = tuple(
        dataclasses.replace(point, guaranteed=False, false_alarm_rate=1.0 if point.unit == "finding" else None)
        for point in model.calibration.operating_points
    )
    return dataclasses.replace(model, calibration=dataclasses.replace(model.calibration, operating_points=points))


def examine_rows(
    rows: Sequence[ManifestRow], examine: Callable[[ManifestRow, Image], T], *, title: str, progress: bool
) -> Iterator[T]:
    """Yield what is said of the images that can be used; the others are named in a warning and left out."""
    for row in tqdm(rows, desc=title, unit="image", delay=2, disable=None if progress else True):
        try:
            examined = examine(row, read_row(row))
        except ImageError as error:
            logger.warning("skipped: %s", error)
            continue
        yield examined
