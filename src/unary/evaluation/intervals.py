"""Intervals that respect patients: bootstrap of the ROC statistics by patient, within and over seeds.

Patches of one patient resemble each other, so every interval resamples patients, never patches (Rutter, Academic
Radiology 7:413, 2000; Obuchowski, Biometrics 53:567, 1997). ``docs/statistics.md`` gives the reasons and the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.roc import (
    EvaluationError,
    Ranking,
    ScoreError,
    auroc,
    check_scores,
    rank_scores,
    weighted_aurocs,
)

CHUNK = 1 << 20  # weights held at once: small enough for the cache to help, large enough for numpy to be busy


class FewPatientsError(EvaluationError):
    """There are too few patients for an interval."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; ``low`` and ``high`` are None when the patients do not allow one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class Run:
    """What one seed's test set gave.

    Attributes
    ----------
    scores
        Shape (n,), float64, finite, higher is more abnormal.
    positive
        Shape (n,), bool.
    patients
        Shape (n,), patient identifiers, the same between seeds.
    """

    scores: NDArray[np.float64]
    positive: NDArray[np.bool_]
    patients: NDArray[Any]


def auroc_over_seeds(runs: Sequence[Run], *, rng: np.random.Generator, resamples: int = 2000) -> Estimate:
    """Return the mean AUROC over seeds, each with its own test set, and its patient-clustered 95 % interval.

    Patients are drawn with replacement, once per resample, from the union over seeds; a drawn patient brings all its
    patches. Patients with only positives, with only negatives, and with both are drawn separately, each kind as often
    as it occurs, so that every resample of the union has both classes and the interval is conditional on how many
    patients of each kind were studied. A seed whose test set keeps only one class in a resample is left out of that
    resample's mean, and a resample that no seed survives is dropped. The interval speaks of the patients, given the
    models that were trained; the spread over seeds is a different matter and is best shown as it is.

    Parameters
    ----------
    runs
        One per seed, at least one.
    rng
        Source of the draws.
    resamples
        How many.

    Returns
    -------
    Estimate
        Without an interval where no kind of patient has two members.

    Raises
    ------
    ScoreError, OneClassError
        As `auroc`, for any seed.
    """
    return estimate_over_seeds(runs, compute=weighted_aurocs, rng=rng, resamples=resamples)


def estimate_over_seeds(
    runs: Sequence[Run],
    *,
    compute: Callable[[Ranking, NDArray[np.float64]], NDArray[np.float64]],
    rng: np.random.Generator,
    resamples: int = 2000,
) -> Estimate:
    """As `auroc_over_seeds`, for another statistic of the ranking.

    Parameters
    ----------
    runs, rng, resamples
        As for `auroc_over_seeds`.
    compute
        The statistic for each row of weights, as `unary.evaluation.roc.weighted_average_precisions`.

    Raises
    ------
    ScoreError, OneClassError
        As `auroc`, for any seed.
    """
    checked = [_check_run(run) for run in _at_least_one(runs)]
    plain = [compute(rank_scores(run.scores, run.positive), np.ones((1, len(run.scores))))[0] for run in checked]
    value = float(np.mean(plain))
    try:
        low, high = percentile_interval(_resample([checked], compute=compute, resamples=resamples, rng=rng)[0])
    except FewPatientsError:
        return Estimate(value, None, None)
    return Estimate(value, low, high)


def difference_over_seeds(
    first: Sequence[Run], second: Sequence[Run], *, rng: np.random.Generator, resamples: int = 2000
) -> Estimate:
    """Return the difference of two detectors' mean AUROC over seeds, first minus second, with its 95 % interval.

    Both meet the same drawn patients in each resample, so that what makes a patient easy for both cancels.

    Parameters
    ----------
    first, second
        One run per seed; the same number of either, each pair on the same patches.
    rng, resamples
        As for `auroc_over_seeds`.

    Raises
    ------
    EvaluationError
        If the pairs do not share patients and truth, if no kind of patient has two members, and as `auroc`.
    """
    pairs = [[_check_run(run) for run in _at_least_one(runs)] for runs in (first, second)]
    if len(first) != len(second) or any(
        not np.array_equal(one.positive, other.positive) or not np.array_equal(one.patients, other.patients)
        for one, other in zip(*pairs, strict=True)
    ):
        raise EvaluationError("a paired difference needs both detectors' scores of the same patches, in the same order")
    resampled = _resample(pairs, compute=weighted_aurocs, resamples=resamples, rng=rng)
    value = float(
        np.mean(
            [
                auroc(one.scores, one.positive) - auroc(other.scores, other.positive)
                for one, other in zip(*pairs, strict=True)
            ]
        )
    )
    return Estimate(value, *percentile_interval(resampled[0] - resampled[1]))


def _resample(
    detectors: Sequence[Sequence[Run]],
    *,
    compute: Callable[[Ranking, NDArray[np.float64]], NDArray[np.float64]],
    resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Mean over seeds of a statistic, shape (detectors, resamples); the same draws for all; NaN where undefined."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    seeds = detectors[0]
    codes = np.unique(np.concatenate([run.patients for run in seeds]), return_inverse=True)[1]
    draws = draw_patients(codes, np.concatenate([run.positive for run in seeds]), resamples=resamples, rng=rng)
    bounds = np.cumsum([0, *(len(run.positive) for run in seeds)])
    means = np.empty((len(detectors), resamples))
    for number, runs in enumerate(detectors):
        values = np.empty((len(runs), resamples))
        for seed, run in enumerate(runs):
            order, own = rank_scores(run.scores, run.positive), codes[bounds[seed] : bounds[seed + 1]]
            step = max(1, CHUNK // len(own))
            for start in range(0, resamples, step):
                part = slice(start, start + step)
                values[seed, part] = compute(order, draws[part].astype(np.float64)[:, own])
        kept = (~np.isnan(values)).sum(axis=0)
        means[number] = np.where(kept > 0, np.nansum(values, axis=0) / np.maximum(kept, 1), np.nan)
    return means


def draw_patients(
    codes: NDArray[np.intp], truth: NDArray[np.bool_], *, resamples: int, rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Draw patients with replacement, those with only positives, only negatives and both apart.

    Parameters
    ----------
    codes
        Shape (n,): each entry's patient, from 0 without gaps.
    truth
        Shape (n,), bool: the entry is positive.
    resamples
        How often to draw.
    rng
        Source of the draws.

    Returns
    -------
    NDArray
        Shape (resamples, patients), uint16: how often each patient was drawn; each kind as often as it occurs.

    Raises
    ------
    FewPatientsError
        If no kind has two members, so that every resample would be alike.
    """
    count = int(codes.max()) + 1
    kinds = np.zeros(count, int)
    kinds[codes[truth]] |= 1
    kinds[codes[~truth]] |= 2
    draws = np.zeros((resamples, count), np.uint16)
    groups = [np.flatnonzero(kinds == kind) for kind in (1, 2, 3)]
    if max(len(group) for group in groups) < 2:
        raise FewPatientsError(
            f"an interval over patients needs at least two patients of one kind, there are {count} in all; "
            "are patient identifiers missing?"
        )
    for group in groups:
        if len(group) == 0:
            continue
        step = max(1, CHUNK // len(group))
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            drawn = rng.integers(len(group), size=(rows, len(group))) + len(group) * np.arange(rows)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=rows * len(group)).reshape(rows, len(group))
            draws[start : start + rows, group] = counts
    return draws


def percentile_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of resampled values, shape (resamples,); NaN ones are left out.

    Raises
    ------
    FewPatientsError
        If all are NaN.
    """
    kept = values[~np.isnan(values)]
    if len(kept) == 0:
        raise FewPatientsError("no resample of the patients kept both classes in any seed's test set")
    low, high = np.percentile(kept, [2.5, 97.5])
    return float(low), float(high)


def _check_run(run: Run) -> Run:
    values, truth = check_scores(run.scores, run.positive)
    if np.shape(run.patients) != truth.shape:
        raise ScoreError(f"every patch needs its patient: {len(truth)} patches, {np.size(run.patients)} patients")
    return Run(values, truth, np.asarray(run.patients))


def _at_least_one(runs: Sequence[Run]) -> Sequence[Run]:
    if not runs:
        raise EvaluationError("there are no scores: no seed was run")
    return runs
