"""Whole images told apart by their score: normal against malignant, and benign against malignant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from unary.evaluation.intervals import Estimate, Run, auroc_over_seeds
from unary.evaluation.roc import EvaluationError


@dataclass(frozen=True)
class Comparison:
    """Two sets of BI-RADS categories whose images are compared.

    Attributes
    ----------
    negative, positive
        Categories, each one digit; ``"4a"`` to ``"4c"`` belong to ``"4"``.
    calcified
        Whether only images with calcifications take part, on both sides.
    """

    negative: str
    positive: str
    calcified: bool = False


COMPARISONS: dict[str, Comparison] = {
    "birads_1_against_5": Comparison("1", "5"),
    "birads_1_against_3_to_6": Comparison("1", "3456"),
    "calcifications_2_against_5": Comparison("2", "5", calcified=True),
}


def compare_images(
    scores: ArrayLike,
    *,
    birads: Sequence[str | None],
    patients: ArrayLike,
    has_calcification: ArrayLike,
    rng: np.random.Generator,
    runs: ArrayLike | None = None,
    resamples: int = 2000,
) -> dict[str, Estimate]:
    """Return the AUROC of image scores for each of `COMPARISONS`, with its patient-clustered 95 % interval.

    The third ranks what is suspicious among what is merely unusual: a benign calcification departs from normal tissue
    as a malignant one does, and a one-class detector has no reason to score it lower.

    Parameters
    ----------
    scores
        Shape (n,), finite, higher is more abnormal.
    birads
        Category of each image, such as ``"4a"``; an image of unknown category, None, takes no part.
    patients
        Shape (n,), identifiers.
    has_calcification
        Shape (n,), bool: the image has an annotated calcification.
    rng
        Source of the draws; all comparisons start from one state.
    runs
        Shape (n,): the fold, seed or model that gave each score. Areas are averaged over the runs that have both sides,
        as in `auroc_over_seeds`. By default all are of one run.
    resamples
        How many.

    Returns
    -------
    dict
        By name of the comparison; one of which no run has both sides is absent.

    Raises
    ------
    EvaluationError
        If lengths differ, or a score that takes part is not finite.
    """
    values, who, calcified = np.asarray(scores, np.float64), np.asarray(patients), np.asarray(has_calcification)
    run_of = np.zeros(len(values), int) if runs is None else np.asarray(runs)
    lengths = [values.shape, (len(birads),), who.shape, calcified.shape, run_of.shape]
    if values.ndim != 1 or len(set(lengths)) > 1:
        raise EvaluationError(f"scores, BI-RADS, patients, calcifications and runs must be as many, got {lengths}")
    if calcified.dtype != bool:
        raise EvaluationError(f"whether an image has calcifications must be True or False, got {calcified.dtype}")
    digits = np.asarray([category[0] if category else "-" for category in birads])
    entropy = int(rng.integers(2**63))
    found = {}
    for name, comparison in COMPARISONS.items():
        sides = [np.isin(digits, list(wanted)) for wanted in (comparison.negative, comparison.positive)]
        kept = (sides[0] | sides[1]) & (calcified | (not comparison.calcified))
        parts = [np.flatnonzero(kept & (run_of == run)) for run in np.unique(run_of)]
        present = [
            Run(values[part], sides[1][part], who[part])
            for part in parts
            if sides[0][part].any() and sides[1][part].any()
        ]
        if present:
            found[name] = auroc_over_seeds(present, rng=np.random.default_rng(entropy), resamples=resamples)
    return found
