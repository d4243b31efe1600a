"""Whole images told apart by their score: by label, and by what a profile compares of their readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from unary.evaluation.evaluated_image import EvaluatedImage
from unary.evaluation.intervals import Estimate, Run, estimate_over_seeds
from unary.profiles import Reading, is_among

BY_LABEL = "label_negative_against_positive"
"""The name of the comparison that needs no assessment."""


@dataclass(frozen=True)
class ImageComparison:
    """The AUROC of image scores with its 95 % interval, and how many images and patients stand on either side."""

    auroc: Estimate
    positives: int
    negatives: int
    positive_patients: int
    negative_patients: int


def compare_images(
    images: Sequence[EvaluatedImage],
    *,
    reading: Reading,
    rng: np.random.Generator,
    runs: ArrayLike | None = None,
    resamples: int = 2000,
) -> dict[str, ImageComparison]:
    """Return what image scores are worth for each comparison of a profile, and by label.

    A comparison within a group of lesions ranks what is suspicious among what is merely unusual: a benign calcification
    departs from normal tissue as a malignant one does, and a one-class detector has no reason to score it lower.

    Images without a score or a patch take no part (`EvaluatedImage.ranked`), nor do those of unknown assessment, or
    without a label. ``rng`` is asked once, as by `unary.evaluation.metrics.summarise`: the area by label then has the
    same interval here as in the table of all detectors. ``runs``, of shape (n,), says which fold, seed or
    model gave each image, by default all one: areas are averaged over the runs that have both sides, as in
    `estimate_over_seeds`, and a comparison of which no run has both is absent.
    """
    kept = [place for place, image in enumerate(images) if image.ranked]
    run_of = (np.zeros(len(images), int) if runs is None else np.asarray(runs))[kept]
    images = [images[place] for place in kept]
    scores = np.asarray([image.image_score for image in images], np.float64)
    patients = np.asarray([image.row.patient_id for image in images])
    sides = {
        comparison.name: [
            [
                is_among(image.row.assessment, categories)
                and (comparison.group is None or any(each.group == comparison.group for each in image.match.targets))
                for image in images
            ]
            for categories in (comparison.negative, comparison.positive)
        ]
        for comparison in reading.comparisons
    }
    sides[BY_LABEL] = [[image.row.label == label for image in images] for label in ("negative", "positive")]
    entropy = int(rng.integers(2**63))
    found = {}
    for name, both in sides.items():
        negative, positive = np.asarray(both, bool)
        parts = [(negative | positive) & (run_of == run) for run in np.unique(run_of)]
        present = [
            Run(scores[part], positive[part], patients[part])
            for part in parts
            if negative[part].any() and positive[part].any()
        ]
        if present:
            area = estimate_over_seeds(present, rng=np.random.default_rng(entropy), resamples=resamples)
            counted = np.isin(run_of, run_of[positive]) & np.isin(run_of, run_of[negative])
            kept_sides = [side & counted for side in (positive, negative)]
            found[name] = ImageComparison(
                area,
                *(int(side.sum()) for side in kept_sides),
                *(len(np.unique(patients[side])) for side in kept_sides),
            )
    return found
