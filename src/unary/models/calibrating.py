"""Setting a model's operating points, on normal images of patients that it has not learned from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from unary.datasets.manifest import build_manifest
from unary.errors import CalibrationError, DetectorError, ImageError, SplitError, UnaryError, explain_unexpected
from unary.models.bundle import Model
from unary.models.calibration import MOST_FINDINGS, Calibration, NormalScores, Overlap, calibrate, require_patients
from unary.models.examination import AnyImage, examine_image
from unary.models.gate import Gate
from unary.models.patients import count_seen
from unary.models.requirements import judge_headers
from unary.patches.collection import name_row, read_row, warn_of_notes
from unary.progress import show_progress
from unary.records import Image, Manifest, ManifestRow, count_words

logger = logging.getLogger(__name__)

T = TypeVar("T")
Images = Manifest | Sequence[AnyImage] | NDArray[Any]
"""A manifest; or images, arrays or paths, each of another patient and vouched for as normal."""


def take_normals(images: Images, error: type[UnaryError], what: str) -> Manifest:
    """Return a manifest of normal images; raise ``error``, which says what needs them, if one may not be normal."""
    if not isinstance(images, Manifest):
        rows = build_manifest(images).rows
        return Manifest(tuple(dataclasses.replace(row, label="negative") for row in rows))
    wrong = [row.image_id for row in images.rows if row.label != "negative"]
    if wrong:
        raise error(
            f"{what} normal images alone, but {len(wrong)} of {len(images.rows)} images of the manifest are positive "
            f"or unlabelled (first: {wrong[0]}); keep the negatives with `unary manifest --only negative`"
        )
    return images


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

    Raises
    ------
    CalibrationError
        If an image is not normal, or fewer than two patients can be used.
    SplitError
        If a patient was trained on, unless ``allow_seen``.
    """
    manifest = take_normals(images, CalibrationError, "thresholds are set on")
    rows, overlap = choose_normals(model, manifest, allow_seen=allow_seen)
    judge_headers(rows, Gate(model.profile, model.domain), progress=progress)
    return dataclasses.replace(model, calibration=calibrate_rows(model, rows, overlap=overlap, progress=progress))


def choose_normals(model: Model, manifest: Manifest, *, allow_seen: bool) -> tuple[list[ManifestRow], Overlap]:
    """Return the images of a manifest of negatives that count as normal, and how far the model has seen them.

    Raises as `calibrate_model`.
    """
    lesional = {lesion.image_id for lesion in manifest.lesions}
    rows = [row for row in manifest.rows if row.complete and row.image_id not in lesional]
    if len(rows) < len(manifest.rows):
        logger.warning(
            "%d images hold benign lesions, or are not completely annotated, and do not count as normal",
            len(manifest.rows) - len(rows),
        )
    require_patients(len({row.patient_id for row in rows}))  # before images are scored for nothing
    seen = count_seen(model.provenance.seen, (row.patient_id for row in rows))
    if seen and not allow_seen:
        raise SplitError(
            f"the model was fitted on {count_words(seen, 'patient')} of the manifest, which would announce too few "
            "false alarms; calibrate on other patients, or allow it with --allow-seen (in Python allow_seen=True)"
        )
    return rows, "unknown" if seen is None else "allowed" if seen else "excluded"


def calibrate_rows(
    model: Model,
    rows: Sequence[ManifestRow],
    *,
    overlap: Overlap = "excluded",
    known: bool = False,
    progress: bool = True,
) -> Calibration:
    """Return how normal images score, whose patients the caller vouches for; raises as `calibrate`.

    ``known`` says that what is unusual about the images has been told.
    """
    notes: list[str] = []

    def examine(row: ManifestRow, image: Image) -> NormalScores:
        scored = examine_image(model, image)
        if scored.image_score is None:
            raise ImageError(f"{image.name}: no pixel of it could be scored; does it show hardly any tissue?")
        findings = tuple(scored.candidates.scores[:MOST_FINDINGS].tolist())
        notes.extend(f"{name_row(row)}: {note}" for note in scored.prepared.notes)
        return NormalScores(row.patient_id, findings, scored.image_score, scored.scores)

    found = list(examine_rows(rows, examine, title="calibrating", progress=progress))
    if not known:
        warn_of_notes(notes)
    return calibrate(found, overlap=overlap)


def examine_rows(
    rows: Sequence[ManifestRow], examine: Callable[[ManifestRow, Image], T], *, title: str, progress: bool
) -> Iterator[T]:
    """Yield what is said of the images that can be used; the others are named in a warning and left out."""
    for row in show_progress(rows, title=title, unit="image", shown=progress):
        try:
            yield examine(row, read_row(row))
        except (DetectorError, CalibrationError):  # which are no image's fault
            raise
        except Exception as error:  # of a library, on this image
            logger.warning("skipped: %s", explain_unexpected(error, name_row(row)))
