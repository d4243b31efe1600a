"""Operating points and figures from stored results of an archive, without examining its images again.

Scores, candidates and patches are as they were found; p-values and operating points are the model's of now. The model
must score as the one that found them: only its calibration may be another.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unary.clinic.shard_results import ArchiveResults, StoredImage
from unary.datasets.annotation import check_lesions, name_some
from unary.datasets.doubles import keep_contents_once
from unary.datasets.manifest import Listing
from unary.errors import CalibrationError, ImageError, ManifestError, UnaryError
from unary.evaluation.evaluate import EvaluatedPart, Evaluation, gather_evaluation, require_evaluable
from unary.evaluation.evaluated_image import judge_detection
from unary.models.bundle import Model, hash_scoring
from unary.models.calibrating import choose_normals, take_normals
from unary.models.calibration import MOST_FINDINGS, NormalScores, calibrate
from unary.patches.collection import label_patches, warn_of_notes
from unary.patches.preparation import PreparedImage
from unary.records import Lesion, Manifest, ManifestRow, count_words

logger = logging.getLogger(__name__)

ABSENT = (
    "From stored results: figures by pixel, the baseline and the controls need the images, and are not here; "
    "`unary evaluate` without --results has them."
)


def require_same_scoring(results: ArchiveResults, model_folder: Path) -> None:
    """Refuse by a `UnaryError` results of a model that scores otherwise than the one in a folder."""
    if results.run.get("scoring_sha256") != hash_scoring(model_folder):
        known = results.run.get("model", {}).get("sha256", "")[:12]
        raise UnaryError(
            f"{results.store.show()}: its results are of another model ({known}) than that in {model_folder}; nothing "
            "but the calibration may have changed since"
        )


def match_manifest(listing: Listing, results: ArchiveResults) -> Manifest:
    """Return a manifest checked as `unary.read_manifest` checks it, by what is stored of its images.

    What is odd is said in warnings; an image without a result stays, and is skipped later.
    """
    columns = ["image", "sha256", "stored_rows", "stored_cols"]
    known = {row["image"]: row for row in results.read("images", columns).to_pylist()}
    rows = listing.manifest.rows
    hashes = [known.get(row.image_id, {}).get("sha256") for row in rows]
    manifest, notices = keep_contents_once(listing.manifest, listing.places, hashes)
    shapes = {
        name: (row["stored_rows"], row["stored_cols"]) for name, row in known.items() if row["stored_rows"] is not None
    }
    manifest, more = check_lesions(manifest, shapes=shapes)
    for notice in (*listing.notices, *notices, *more):
        logger.warning("%s", notice)
    return manifest


def calibrate_from_results(
    model: Model, manifest: Manifest, results: ArchiveResults, *, allow_seen: bool = False
) -> Model:
    """Return what `unary.calibrate_model` returns, from stored scores.

    The gate stands before what is stored: images that it refused have no scores, and are named and left out.

    Raises
    ------
    CalibrationError, SplitError
        As there.
    """
    manifest = take_normals(manifest, CalibrationError, "thresholds are set on")
    rows, overlap = choose_normals(model, manifest, allow_seen=allow_seen)
    wanted = {row.image_id: row for row in rows}
    found: dict[str, NormalScores] = {}
    notes = []
    for row, stored in _join(wanted, results):
        if isinstance(stored, ImageError):
            logger.warning("skipped: %s", stored)
            continue
        score = stored.facts["image_score"]
        if score is None:
            logger.warning("skipped: %s: no pixel of it could be scored; does it show hardly any tissue?", row.image_id)
            continue
        scores = sorted((each["score"] for each in stored.candidates), reverse=True)[:MOST_FINDINGS]
        found[row.image_id] = NormalScores(row.patient_id, tuple(scores), score, stored.scores)
        notes += [f"{row.image_id}: {note}" for note in stored.facts["notes"] or ()]
    warn_of_notes(notes)
    ordered = [found[row.image_id] for row in rows if row.image_id in found]
    return dataclasses.replace(model, calibration=calibrate(ordered, overlap=overlap))


def evaluate_from_results(
    model: Model, manifest: Manifest, results: ArchiveResults, *, allow_seen: bool = False
) -> Evaluation:
    """Return what `unary.evaluate` returns, from stored candidates, image scores and patch scores.

    Figures by pixel, baseline and controls are absent (`ABSENT`); all else is the same.

    Raises
    ------
    SplitError, ManifestError
        As there.
    """
    seen = require_evaluable(model, manifest, allow_seen=allow_seen)
    lesions: dict[str, list[Lesion]] = {}
    for lesion in manifest.lesions:
        lesions.setdefault(lesion.image_id, []).append(lesion)
    wanted = {row.image_id: row for row in manifest.rows}
    parts: dict[str, EvaluatedPart | ImageError] = {}
    for row, stored in _join(wanted, results):
        try:
            if isinstance(stored, ImageError):
                raise stored
            parts[row.image_id] = _judge(model, row, lesions.get(row.image_id, ()), stored)
        except ImageError as error:
            parts[row.image_id] = error
    return gather_evaluation(model, [parts[row.image_id] for row in manifest.rows], seen=seen)


def _join(
    wanted: Mapping[str, ManifestRow], results: ArchiveResults
) -> Iterator[tuple[ManifestRow, StoredImage | ImageError]]:
    """The rows and what is stored of their images; those that have nothing come last."""
    left = dict(wanted)
    for stored in results.read_images():
        row = left.pop(stored.facts["image"], None)
        if row is None:
            continue
        reason = stored.facts["reason"]
        if reason is None:
            yield row, stored
        else:
            yield row, ImageError(f"{row.image_id}: {stored.facts['detail']}", reason=reason)
    if len(left) == len(wanted):
        raise ManifestError(
            f"{results.store.show()}: it holds no image of the manifest; are they called otherwise there (image_id)?"
        )
    if left:
        logger.warning(
            "%s without a result in %s: %s", count_words(len(left), "image"), results.store.show(), name_some(left)
        )
    for row in left.values():
        yield row, ImageError(f"{row.image_id}: no result in {results.store.show()}")


def _judge(model: Model, row: ManifestRow, lesions: Sequence[Lesion], stored: StoredImage) -> EvaluatedPart:
    facts, reading = stored.facts, model.profile.reading
    calibration = model.calibration
    detection = stored.build_detection(None if calibration is None else calibration.find_p_value)
    spacing = (facts["row_spacing_mm"], facts["col_spacing_mm"])
    evaluated, _ = judge_detection(
        row,
        lesions,
        detection,
        reading=reading,
        spacing_mm=None if None in spacing else spacing,
        tissue_px=facts["tissue_px"],
        patch_scores=stored.scores,
    )
    labels = label_patches(row, lesions, _stand_in(facts), stored.origins, model.grid.size_px, reading)
    scores = {model.name: stored.scores}
    return EvaluatedPart(evaluated, {}, scores, labels, stored.origins, facts["prepared_sha256"])


def _stand_in(facts: Mapping[str, Any]) -> PreparedImage:
    """A prepared image without its pixels, all of it tissue: what is asked is where a lesion lies on its grid."""
    shape = (facts["working_rows"], facts["working_cols"])
    spacing = (facts["row_spacing_mm"], facts["col_spacing_mm"])
    return PreparedImage(
        np.broadcast_to(np.uint16(0), shape),
        np.broadcast_to(np.True_, shape),
        (facts["row_scale"], facts["col_scale"]),
        (facts["stored_rows"], facts["stored_cols"]),
        None if None in spacing else spacing,
    )
