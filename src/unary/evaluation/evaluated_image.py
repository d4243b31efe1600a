"""One image of a manifest evaluated: what a model finds in it, which lesions that hits, and a sample of its pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.froc import ImageOutcome
from unary.evaluation.lesion_query import ALL_LESIONS, LesionQuery, build_outcome
from unary.evaluation.matching import Match, Target, group_targets, match_findings
from unary.evaluation.pixelwise import PixelSample, draw_truth, sample_pixels
from unary.models.bundle import Model
from unary.models.examination import ScoredImage, build_detection
from unary.patches.collection import read_lesion_mask
from unary.patches.preparation import PreparedImage, enlarge
from unary.profiles import Reading
from unary.records import Detection, Finding, Lesion, ManifestRow

MOST_CANDIDATES = 50


@dataclass(frozen=True, eq=False)
class EvaluatedImage:
    """What was found in one image, and which of its lesions were hit; the rest as in `unary.records.Detection`.

    Attributes
    ----------
    normal
        As `is_normal` says.
    findings
        All candidates, by rank, at most `MOST_CANDIDATES`.
    match
        Of these findings; its targets have no pixels (``parts`` is empty), which would fill the memory.
    patch_scores
        Shape (n,), float64, of the model's patches.
    """

    row: ManifestRow
    normal: bool
    findings: tuple[Finding, ...]
    match: Match
    image_score: float | None
    image_p_value: float | None
    out_of_domain: tuple[str, ...] = ()
    patch_scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def ranked(self) -> bool:
        """Whether the image takes part where images are compared: it has a score and, for the controls, a patch."""
        return self.image_score is not None and len(self.patch_scores) > 0

    def score_target(self, place: int) -> float | None:
        """Return the score of the best finding that hit a target; None where none did."""
        return max((self.match.scores[rank] for rank in self.match.hits[place]), default=None)


def is_normal(row: ManifestRow, lesions: Sequence[Lesion], reading: Reading) -> bool:
    """Return whether an image is known to show nothing.

    It does where its assessment is one of `Reading.normal`, or where it is labelled negative and has none. Images with
    any listed lesion, or with a partial list, do not.
    """
    if row.assessment is None or not reading.normal:
        clear = row.label == "negative"
    else:
        clear = row.assessment in reading.normal and row.label != "positive"
    return clear and row.complete and not lesions


def evaluate_image(
    model: Model, row: ManifestRow, lesions: Sequence[Lesion], scored: ScoredImage, *, images: int = 1
) -> tuple[EvaluatedImage, dict[str, PixelSample]]:
    """Match what a model says of an image with its lesions; return also samples of its pixels by group of lesions.

    ``scored`` is of `unary.models.examination.examine_image`, of the same model and image; ``images`` says how many are
    evaluated, of which samples depend beyond a thousand (`unary.evaluation.pixelwise`). An ImageError says that the
    mask of a lesion cannot be used.
    """
    prepared, reading = scored.prepared, model.profile.reading
    detection = build_detection(scored, model, None, most=MOST_CANDIDATES)
    tissue_px = count_tissue(prepared)
    evaluated, targets = judge_detection(
        row,
        lesions,
        detection,
        reading=reading,
        spacing_mm=prepared.stored_spacing_mm,
        tissue_px=tissue_px,
        patch_scores=scored.scores,
    )
    return evaluated, _sample_image(scored, targets, evaluated, reading, images=images)


def count_tissue(prepared: PreparedImage) -> int:
    """Return how many pixels of the stored image are tissue."""
    return round(float(prepared.mask.sum()) * prepared.scale[0] * prepared.scale[1])


def judge_detection(
    row: ManifestRow,
    lesions: Sequence[Lesion],
    detection: Detection,
    *,
    reading: Reading,
    spacing_mm: tuple[float, float] | None,
    tissue_px: int,
    patch_scores: NDArray[np.float64],
) -> tuple[EvaluatedImage, tuple[Target, ...]]:
    """Match the `MOST_CANDIDATES` strongest candidates of an image with its lesions; return also these, with pixels.

    Raises
    ------
    ImageError
        If the mask of a lesion cannot be used.
    """
    shape = detection.labels.shape
    masks = {
        place: read_lesion_mask(lesion.mask_path, shape)
        for place, lesion in enumerate(lesions)
        if lesion.mask_path is not None
    }
    targets = group_targets(lesions, shape, reading=reading, spacing_mm=spacing_mm, masks=masks)
    if sum(len(target.lesions) for target in targets) < len(lesions):  # one lies outside: nobody knows where
        row = dataclasses.replace(row, complete=False)
    match = match_findings(detection, targets, spacing_mm=spacing_mm, tissue_px=tissue_px)
    evaluated = EvaluatedImage(
        row,
        is_normal(row, lesions, reading),
        detection.findings,
        dataclasses.replace(match, targets=tuple(dataclasses.replace(target, parts=()) for target in targets)),
        detection.image_score,
        detection.image_p_value,
        detection.out_of_domain,
        patch_scores,
    )
    return evaluated, targets


def _sample_image(
    scored: ScoredImage, targets: tuple[Target, ...], evaluated: EvaluatedImage, reading: Reading, *, images: int
) -> dict[str, PixelSample]:
    """Samples on the stored grid, which all detectors share; none of benign, unlabelled or uncertain images."""
    row = evaluated.row
    if not evaluated.normal and row.label != "positive":
        return {}
    scores = enlarge(scored.anomaly_map, scored.prepared)
    names = [ALL_LESIONS, *(group.name for group in reading.groups)]
    if evaluated.normal:
        nothing = {ALL_LESIONS: np.zeros(scores.shape, bool)}
        return dict.fromkeys(names, sample_pixels(scores, nothing, patient=row.patient_id, images=images)[ALL_LESIONS])
    truths = {name: draw_truth(targets, scores.shape, group=None if name == ALL_LESIONS else name) for name in names}
    # without any listed lesion, a positive image has one that nobody outlined
    complete = row.complete and len(targets) > 0
    return sample_pixels(scores, truths, patient=row.patient_id, complete=complete, images=images)


def build_outcomes(images: Sequence[EvaluatedImage], query: LesionQuery) -> list[ImageOutcome]:
    """Return what `unary.evaluation.froc` needs: normal images, and those whose lesions are to be found."""
    return [
        build_outcome(
            image.match, query, patient=image.row.patient_id, normal=image.normal, complete=image.row.complete
        )
        for image in images
        if image.normal or query.selects_image(image.row)
    ]
