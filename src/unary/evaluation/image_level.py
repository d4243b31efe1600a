"""Whole images told apart by their score, by the category of their reading: what a profile's comparisons say."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike

from unary.evaluation.intervals import Estimate, Run, auroc_over_seeds
from unary.evaluation.roc import EvaluationError
from unary.profiles import Comparison, is_among

BY_LABEL = "label_negative_against_positive"
"""The name of the comparison that needs no assessment."""


def compare_images(
    scores: ArrayLike,
    *,
    comparisons: Sequence[Comparison],
    assessments: Sequence[str | None],
    patients: ArrayLike,
    groups: Sequence[Collection[str]],
    rng: np.random.Generator,
    runs: ArrayLike | None = None,
    resamples: int = 2000,
) -> dict[str, Estimate]:
    """Return the AUROC of image scores for each comparison, with its patient-clustered 95 % interval.

    A comparison within a group of lesions ranks what is suspicious among what is merely unusual: a benign calcification
    departs from normal tissue as a malignant one does, and a one-class detector has no reason to score it lower.

    Parameters
    ----------
    scores
        Shape (n,), finite, higher is more abnormal.
    comparisons
        Of `unary.profiles.Reading.comparisons`.
    assessments
        Category of each image, such as ``"4a"``; an image of unknown category, None, takes no part.
    patients
        Shape (n,), identifiers.
    groups
        Of each image, the groups that its annotated lesions belong to.
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
    values, who = np.asarray(scores, np.float64), np.asarray(patients)
    run_of = np.zeros(len(values), int) if runs is None else np.asarray(runs)
    lengths = [values.shape, (len(assessments),), who.shape, (len(groups),), run_of.shape]
    if values.ndim != 1 or len(set(lengths)) > 1:
        raise EvaluationError(f"scores, assessments, patients, groups and runs must be as many, got {lengths}")
    entropy = int(rng.integers(2**63))
    found = {}
    for comparison in comparisons:
        within = np.asarray([comparison.group is None or comparison.group in own for own in groups], bool)
        negative, positive = (
            within & np.asarray([is_among(each, categories) for each in assessments], bool)
            for categories in (comparison.negative, comparison.positive)
        )
        parts = [np.flatnonzero((negative | positive) & (run_of == run)) for run in np.unique(run_of)]
        present = [
            Run(values[part], positive[part], who[part])
            for part in parts
            if negative[part].any() and positive[part].any()
        ]
        if present:
            found[comparison.name] = auroc_over_seeds(present, rng=np.random.default_rng(entropy), resamples=resamples)
    return found
