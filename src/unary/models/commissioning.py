"""Making a fitted model fit for use: the level of its findings, its domain, and operating points from normal patients.

The level and the domain come from training images, the operating points from normal patients that were not trained on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unary.models.domain import describe_image, join_domains
from unary.errors import CalibrationError, ImageError, SplitError
from unary.models.bundle import Model, hash_patients
from unary.models.calibration import NormalScores
from unary.models.detection import (
    build_settings,
    examine_image,
    find_level,
    map_prepared,
    require_settings,
    score_normal,
    with_calibration,
)
from unary.patches.collection import read_row
from unary.patches.preparation import prepare_image
from unary.records import Domain, Image, Manifest, ManifestRow

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LEVEL_IMAGES = 24


def add_detection(model: Model, rows: Sequence[ManifestRow], *, progress: bool = True) -> Model:
    """Return a fitted model that can draw findings: with its level and domain, from its training images.

    At most 24 images, evenly spread over the rows, set the level; all of these describe the domain.

    Raises
    ------
    CalibrationError
        If none of them can be used.
    """
    places = np.unique(np.linspace(0, len(rows) - 1, min(_LEVEL_IMAGES, len(rows))).round().astype(int))
    stride_px = max(model.grid.size_px // 2, 1)
    domains: list[Domain] = []

    def examine(_row: ManifestRow, image: Image) -> NDArray[np.float32]:
        prepared = prepare_image(image, model.preparation)
        domains.append(describe_image(image))
        return map_prepared(model.detector, prepared, size_px=model.grid.size_px, stride_px=stride_px)

    chosen = [rows[place] for place in places]
    level = find_level(_examine_rows(chosen, examine, title="findings", progress=progress))
    settings = build_settings(level, size_px=model.grid.size_px, domain=join_domains(domains))
    return dataclasses.replace(model, detection=settings)


def calibrate_model(model: Model, manifest: Manifest, *, allow_seen: bool = False, progress: bool = True) -> Model:
    """Return the model with operating points set on the normal images of a manifest.

    Parameters
    ----------
    model
        Fitted. A former calibration is replaced.
    manifest
        Images labelled negative, without lesions, of patients that were not trained on.
    allow_seen
        Accept patients that the model was trained on; the operating points then promise nothing.

    Raises
    ------
    CalibrationError
        If an image is not normal, or fewer than two patients can be used.
    SplitError
        If a patient was trained on, unless ``allow_seen``.
    """
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
            f"{len(seen)} patient(s) of the manifest were in the training set of the model, which would promise too "
            "few false alarms; calibrate on other patients, or allow it with --allow-seen"
        )
    calibrated = set_operating_points(model, rows, progress=progress)
    return void_promises(calibrated) if seen else calibrated


def set_operating_points(model: Model, rows: Sequence[ManifestRow], *, progress: bool = True) -> Model:
    """Return the model with operating points set on normal images, whose patients the caller vouches for.

    Raises
    ------
    CalibrationError
        If images of fewer than two patients can be used.
    """

    def examine(row: ManifestRow, image: Image) -> NormalScores:
        examined = examine_image(model, image)
        if examined.scored_px == 0:
            raise ImageError(f"{image.path}: no pixel of it could be scored; does it show hardly any tissue?")
        return score_normal(examined, hash_patients([row.patient_id])[0])

    return with_calibration(model, list(_examine_rows(rows, examine, title="calibrating", progress=progress)))


def void_promises(model: Model) -> Model:
    """Return the model with its operating points as estimates alone, as when training patients set them."""
    settings = require_settings(model)
    if settings.calibration is None:
        return model
    points = tuple(
        dataclasses.replace(point, promised=False, false_alarm_rate=1.0)
        for point in settings.calibration.operating_points
    )
    calibration = dataclasses.replace(settings.calibration, operating_points=points)
    return dataclasses.replace(model, detection=dataclasses.replace(settings, calibration=calibration))


def _examine_rows(
    rows: Sequence[ManifestRow], examine: Callable[[ManifestRow, Image], T], *, title: str, progress: bool
) -> Iterator[T]:
    """Yield what is said of the images that can be used; the others are named and left out."""
    for row in tqdm(rows, desc=title, unit="image", delay=2, disable=None if progress else True):
        try:
            examined = examine(row, read_row(row))
        except ImageError as error:
            logger.warning("skipped: %s", error)
            continue
        yield examined
