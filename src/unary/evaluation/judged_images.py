"""One image of a manifest judged: what a model finds in it, which lesions that hits, and a sample of its pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.datasets.manifest import LesionGroup
from unary.evaluation.froc import ImageOutcome
from unary.evaluation.matching import Match, Target, build_outcome, group_targets, match_findings
from unary.evaluation.pixelwise import PixelSample, draw_truth, sample_pixels
from unary.models.bundle import Model
from unary.models.detection import Examined, build_detection, examine_image, require_settings
from unary.patches.collection import _read_lesion_mask, read_row
from unary.records import Finding, Lesion, ManifestRow

MOST_CANDIDATES = 50
PIXEL_GROUPS: dict[str, tuple[LesionGroup, ...] | None] = {
    "all": None,
    "calcification": ("calcification",),
    "mass": ("mass",),
}


@dataclass(frozen=True, eq=False)
class JudgedImage:
    """What was found in one image, and which of its lesions were hit.

    Attributes
    ----------
    row
        The image.
    normal
        As `is_normal` says.
    findings
        All candidates, by rank, at most `MOST_CANDIDATES`.
    match
        Of these findings; its targets have no pixels (``parts`` is empty), which would fill the memory.
    image_score, image_p_value, out_of_domain
        As in `unary.records.Detection`.
    """

    row: ManifestRow
    normal: bool
    findings: tuple[Finding, ...]
    match: Match
    image_score: float | None
    image_p_value: float | None
    out_of_domain: tuple[str, ...] = ()

    def score_target(self, place: int) -> float | None:
        """Return the score of the best finding that hit a target; None where none did."""
        return max((self.match.scores[rank] for rank in self.match.hits[place]), default=None)


@dataclass(frozen=True)
class Sought:
    """Which lesions are to be found.

    Attributes
    ----------
    groups
        Kinds of lesions; None for all.
    clusters_only
        Whether single calcifications are left out.
    birads
        First digits of the categories whose images count; None for the images labelled positive.
    complete_only
        Whether lesions of partially annotated images are left out.
    """

    groups: tuple[LesionGroup, ...] | None
    clusters_only: bool = False
    birads: str | None = None
    complete_only: bool = False

    def includes(self, row: ManifestRow) -> bool:
        """Return whether the lesions of an image count."""
        if self.complete_only and not row.complete:
            return False
        if self.birads is None:
            return row.label == "positive"
        return row.birads is not None and row.birads[0] in self.birads

    def wants(self, target: Target) -> bool:
        """Return whether a target of such an image is to be found; `build_outcome` decides alike."""
        of_kind = self.groups is None or target.group in self.groups
        return of_kind and (target.cluster or target.group != "calcification" or not self.clusters_only)


SOUGHT = {
    "calcification": Sought(("calcification",)),
    "calcification_clusters": Sought(("calcification",), clusters_only=True),
    "mass": Sought(("mass",)),
    "all": Sought(None),
}


def is_normal(row: ManifestRow, lesions: Sequence[Lesion]) -> bool:
    """Return whether an image is known to show nothing: BI-RADS 1, or labelled negative where no category is known.

    Images with any listed lesion, or with a partial list, are not.
    """
    clear = row.label == "negative" if row.birads is None else row.birads == "1" and row.label != "positive"
    return clear and row.complete and not lesions


def judge_image(
    model: Model, row: ManifestRow, lesions: Sequence[Lesion]
) -> tuple[JudgedImage, dict[str, PixelSample]]:
    """Read one image, find, and match with its lesions; return also samples of its pixels by kind of lesion.

    Raises
    ------
    ImageError
        If the image, or the mask of a lesion, cannot be used.
    """
    examined = examine_image(model, read_row(row))
    prepared = examined.prepared
    detection = build_detection(examined, require_settings(model), None, most=MOST_CANDIDATES)
    masks = {
        place: _read_lesion_mask(lesion.mask_path, prepared.stored_shape)
        for place, lesion in enumerate(lesions)
        if lesion.mask_path is not None
    }
    spacing = prepared.stored_spacing_mm
    targets = group_targets(lesions, prepared.stored_shape, spacing_mm=spacing, masks=masks)
    breast_px = round(float(prepared.mask.sum()) * prepared.scale[0] * prepared.scale[1])
    match = match_findings(detection, targets, spacing_mm=spacing, breast_px=breast_px)
    bare = dataclasses.replace(match, targets=tuple(dataclasses.replace(target, parts=()) for target in targets))
    judged = JudgedImage(
        row,
        is_normal(row, lesions),
        detection.findings,
        bare,
        detection.image_score,
        detection.image_p_value,
        detection.out_of_domain,
    )
    return judged, _sample_image(examined, targets, judged)


def _sample_image(examined: Examined, targets: tuple[Target, ...], judged: JudgedImage) -> dict[str, PixelSample]:
    """Samples on the stored grid, which all detectors share; none of benign, unlabelled or uncertain images."""
    row = judged.row
    if not judged.normal and row.label != "positive":
        return {}
    scores, shape = _enlarge_map(examined), examined.prepared.stored_shape
    if judged.normal:
        sample = sample_pixels(scores, np.zeros(shape, bool), patient=row.patient_id)
        return dict.fromkeys(PIXEL_GROUPS, sample)
    lesional = draw_truth(targets, shape)
    samples = {}
    for name, groups in PIXEL_GROUPS.items():
        truth = draw_truth(targets, shape, groups=groups)
        own = np.where(lesional & ~truth, np.float32(np.nan), scores)
        # without any listed lesion, a positive image has one that nobody outlined
        samples[name] = sample_pixels(own, truth, patient=row.patient_id, complete=row.complete and len(targets) > 0)
    return samples


def _enlarge_map(examined: Examined) -> NDArray[np.float32]:
    """The anomaly map on the stored grid; each pixel takes its nearest."""
    prepared, small = examined.prepared, examined.anomaly_map
    index = [
        np.minimum(((np.arange(length) + 0.5) / factor).astype(int), size - 1)
        for length, factor, size in zip(prepared.stored_shape, prepared.scale, small.shape, strict=True)
    ]
    enlarged: NDArray[np.float32] = small[index[0]][:, index[1]]
    return enlarged


def build_outcomes(images: Sequence[JudgedImage], sought: Sought) -> list[ImageOutcome]:
    """Return what `unary.evaluation.froc` needs: normal images, and those whose lesions are sought."""
    return [
        build_outcome(
            image.match,
            patient=image.row.patient_id,
            normal=image.normal,
            complete=image.row.complete,
            groups=sought.groups,
            clusters_only=sought.clusters_only,
        )
        for image in images
        if image.normal or sought.includes(image.row)
    ]
