"""Whole images told apart by their score: by label, and by what a profile compares of their readings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from unary.evaluation.evaluated_image import EvaluatedImage
from unary.evaluation.intervals import Estimate, Run, estimate_over_seeds
from unary.profiles import Reading, is_among

BY_LABEL = "label_negative_against_positive"
"""The name of the comparison that needs no assessment."""


def compare_images(
    images: Sequence[EvaluatedImage],
    *,
    reading: Reading,
    rng: Callable[[], np.random.Generator],
    runs: ArrayLike | None = None,
    resamples: int = 2000,
) -> dict[str, Estimate]:
    """Return the AUROC of image scores for each comparison of a profile, and by label, with its 95 % interval.

    A comparison within a group of lesions ranks what is suspicious among what is merely unusual: a benign calcification
    departs from normal tissue as a malignant one does, and a one-class detector has no reason to score it lower.

    Images without a score take no part, nor do those of unknown assessment, or without a label. ``rng`` gives a new
    source of draws for each statistic, each time from the same state. ``runs``, of shape (n,), says which fold, seed or
    model gave each image, by default all one: areas are averaged over the runs that have both sides, as in
    `estimate_over_seeds`, and a comparison of which no run has both is absent.
    """
    kept = [place for place, image in enumerate(images) if image.image_score is not None]
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
    entropy = int(rng().integers(2**63))
    found = {}
    for name, side in sides.items():
        negative, positive = np.asarray(side, bool)
        parts = [(negative | positive) & (run_of == run) for run in np.unique(run_of)]
        present = [
            Run(scores[part], positive[part], patients[part])
            for part in parts
            if negative[part].any() and positive[part].any()
        ]
        if present:
            source = rng() if name == BY_LABEL else np.random.default_rng(entropy)
            found[name] = estimate_over_seeds(present, rng=source, resamples=resamples)
    return found
