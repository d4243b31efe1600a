"""Intervals that respect patients: bootstrap of the ROC statistics by patient, within and over seeds.

Patches of one patient resemble each other, so every interval resamples patients, never patches (Rutter, Academic
Radiology 7:413, 2000; Obuchowski, Biometrics 53:567, 1997). ``docs/statistics.md`` gives the reasons and the limits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unary.evaluation.roc import (
    EvaluationError,
    Ranking,
    ScoreError,
    Statistic,
    divide_defined,
    rank_scores,
    weighted_aurocs,
    weighted_average_precisions,
)
from unary.training.threads import map_in_threads

_CHUNK = 1 << 20  # weights held at once: small enough for the cache to help, large enough for numpy to be busy
_TAIL = 0.025  # of a two-sided 95 % interval
_ALIKE = 1e-9


class FewPatientsError(EvaluationError):
    """There are too few patients for an interval."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; ``low`` and ``high`` are None when the patients do not allow one.

    They never coincide: see `attach_intervals`.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def interval(self) -> list[float] | None:
        """The interval as ``[low, high]``, or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]

    def scale(self, factor: float) -> Estimate:
        """Return value and interval times a factor; a negative one turns the interval over."""
        bounds = sorted(factor * bound for bound in self.interval or ())
        return Estimate(factor * self.value, *(bounds or (None, None)))


def as_pair(name: str, found: Estimate) -> dict[str, Any]:
    """Return an estimate as ``{name: value, name_ci95: [low, high] or None}``."""
    return {name: found.value, f"{name}_ci95": found.interval}


@dataclass(frozen=True, eq=False)
class Run:
    """What one seed's test set gave: finite scores, truth and identifiers of patients, each of shape (n,)."""

    scores: NDArray[np.float64]
    positive: NDArray[np.bool_]
    patients: NDArray[Any]


def estimate_over_seeds(
    runs: Sequence[Run],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    compute: Statistic = weighted_aurocs,
) -> Estimate:
    """Return the mean over seeds of a statistic, each with its own test set, and its patient-clustered 95 % interval.

    Patients are drawn with replacement, once per resample, from the union over seeds; a drawn patient brings all its
    patches. Patients with only positives, with only negatives, and with both are drawn separately, each kind as often
    as it occurs, so that every resample of the union has both classes and the interval is conditional on how many
    patients of each kind were studied. A seed whose test set keeps only one class in a resample is left out of that
    resample's mean, and a resample that no seed survives is dropped. The interval speaks of the patients, given the
    models that were trained; the spread over seeds is a different matter and is best shown as it is.

    There is at least one run. The statistic is the AUROC, or another of `unary.evaluation.roc`, whose errors may come
    of any seed. There is no interval with fewer than two patients on either side. Of an area or sensitivity of 0 or 1,
    which every draw repeats, it is the exact one of as many pairs of patients as `count_pairs` finds.
    """
    rankings = _rank_runs(runs)
    value = float(np.mean(_compute_plain(rankings, compute)))
    if min(_count_sides(runs)) < 2:
        return Estimate(value, None, None)
    units = None if compute is weighted_average_precisions else count_pairs(runs)  # which is no share of pairs
    return estimate([value], lambda: _resample(runs, [rankings], compute, resamples=resamples, rng=rng)[0], units)[0]


def count_pairs(runs: Sequence[Run]) -> int:
    """Return how many pairs of a patient with positives and another with negatives can be formed, none used twice."""
    everybody = np.unique(np.concatenate([run.patients for run in runs]))
    return min(*_count_sides(runs), len(everybody) // 2)


def _count_sides(runs: Sequence[Run]) -> tuple[int, int]:
    """How many patients have positives, and how many have negatives."""
    patients, positive = (np.concatenate([getattr(run, name) for run in runs]) for name in ("patients", "positive"))
    return len(np.unique(patients[positive])), len(np.unique(patients[~positive]))


def difference_over_seeds(
    first: Sequence[Run], second: Sequence[Run], *, rng: np.random.Generator, resamples: int = 2000
) -> Estimate:
    """Return the difference of two detectors' mean AUROC over seeds, first minus second, with its 95 % interval.

    Both meet the same drawn patients in each resample, so that what makes a patient easy for both cancels. Each has one
    run per seed, each pair on the same patches.

    Raises
    ------
    EvaluationError
        If the pairs do not share patients and truth, if there are fewer than two patients on either side, and as
        `estimate_over_seeds`.
    """
    pairs = [_rank_runs(runs) for runs in (first, second)]
    if len(first) != len(second) or any(
        not np.array_equal(one.positive, other.positive) or not np.array_equal(one.patients, other.patients)
        for one, other in zip(first, second, strict=True)
    ):
        raise EvaluationError("a paired difference needs both detectors' scores of the same patches, in the same order")
    if min(sides := _count_sides(first)) < 2:
        raise FewPatientsError(f"an interval over patients needs at least two on either side, there are {sides}")
    plain = [_compute_plain(rankings, weighted_aurocs) for rankings in pairs]
    resampled = _resample(first, pairs, weighted_aurocs, resamples=resamples, rng=rng)
    return attach_intervals([np.mean(plain[0] - plain[1])], resampled[0] - resampled[1])[0]


def _rank_runs(runs: Sequence[Run]) -> list[Ranking]:
    if not runs:
        raise EvaluationError("there are no scores: no seed was run")
    for run in runs:
        if np.shape(run.patients) != np.shape(run.scores):
            counts = np.size(run.scores), np.size(run.patients)
            raise ScoreError(f"every patch needs its patient: {counts[0]} patches, {counts[1]} patients")
    return [rank_scores(run.scores, run.positive) for run in runs]


def _compute_plain(rankings: Sequence[Ranking], compute: Statistic) -> NDArray[np.float64]:
    ones = [np.ones((1, len(order.negatives) + len(order.positives))) for order in rankings]
    return np.concatenate([compute(order, row) for order, row in zip(rankings, ones, strict=True)])


def _resample(
    runs: Sequence[Run],
    detectors: Sequence[Sequence[Ranking]],
    compute: Statistic,
    *,
    resamples: int,
    rng: np.random.Generator,
) -> list[NDArray[np.float64]]:
    """Mean over seeds of each detector's statistic, shape (resamples, 1); the same draws for all."""
    codes = np.unique(np.concatenate([run.patients for run in runs]), return_inverse=True)[1]
    draws = draw_patients(codes, np.concatenate([run.positive for run in runs]), resamples=resamples, rng=rng)
    owners = np.split(codes, np.cumsum([len(run.positive) for run in runs])[:-1])

    def prepare(order: Ranking, own: NDArray[np.intp]) -> tuple[int, Callable[[NDArray[np.float64]], Any]]:
        # straight to the patient's weight: rows of weights by entry would not fit into the processor's cache
        by_patient = dataclasses.replace(order, negatives=own[order.negatives], positives=own[order.positives])
        return len(own), lambda weights: compute(by_patient, weights)[:, None]

    return [average_resamples(draws, map(prepare, rankings, owners)) for rankings in detectors]


def average_resamples(
    draws: NDArray[np.uint16],
    parts: Iterable[tuple[int, Callable[[NDArray[np.float64]], NDArray[np.float64]]]],
) -> NDArray[np.float64]:
    """Return the mean over the parts of what each computes of the draws of `draw_patients`, shape (resamples, k).

    A part is how many numbers a resample takes, so that not too many are held at once, and a function from
    (rows, patients) weights to (rows, k) statistics. A part is left out where its statistic is NaN.
    """
    found = []
    for size, compute in parts:
        step = max(1, _CHUNK // size)
        pieces = [draws[start : start + step] for start in range(0, len(draws), step)]
        found.append(np.concatenate(list(map_in_threads(functools.partial(_compute_piece, compute), pieces))))
    values = np.stack(found)
    defined = ~np.isnan(values)
    return divide_defined(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0).astype(np.float64))


def _compute_piece(
    compute: Callable[[NDArray[np.float64]], NDArray[np.float64]], draws: NDArray[np.uint16]
) -> NDArray[np.float64]:
    return compute(draws.astype(np.float64))


def estimate(
    values: ArrayLike, resample: Callable[[], NDArray[np.float64]], units: int | None = None
) -> tuple[Estimate, ...]:
    """As `attach_intervals` to what ``resample`` gives; without intervals where there are too few patients."""
    try:
        return attach_intervals(values, resample(), units=units)
    except FewPatientsError:
        return tuple(Estimate(float(value), None, None) for value in np.asarray(values))


def attach_intervals(
    values: ArrayLike, resampled: NDArray[np.float64], *, units: int | None = None
) -> tuple[Estimate, ...]:
    """Return values, shape (k,), with the percentile intervals of those resampled, shape (resamples, k).

    Where all resampled values are alike, the bootstrap knows nothing of patients unlike those seen. A share of 0 or 1
    then has the exact interval of so many independent ``units``; without them, or of another value, there is none.
    """
    pairs = zip(np.asarray(values, np.float64).tolist(), resampled.T, strict=True)
    return tuple(Estimate(value, *_enclose(value, row, units)) for value, row in pairs)


def _enclose(value: float, resampled: NDArray[np.float64], units: int | None) -> tuple[float | None, float | None]:
    low, high = percentile_interval(resampled)
    if high - low > _ALIKE:
        return low, high
    return (None, None) if not units else bound_extreme(value, units)


def bound_extreme(value: float, units: int) -> tuple[float | None, float | None]:
    """Return the exact 95 % interval (Clopper and Pearson, 1934) of a share that was 0 or 1 in all units.

    It holds too for the mean of values between 0 and 1 that were all 0, or all 1. Of another value there is none.

    >>> [round(bound, 3) for bound in bound_extreme(1.0, 10)], bound_extreme(0.5, 10)
    ([0.692, 1.0], (None, None))
    """
    if abs(value - 1) <= _ALIKE:
        return _TAIL ** (1 / units), 1.0
    return (0.0, 1 - _TAIL ** (1 / units)) if abs(value) <= _ALIKE else (None, None)


def draw_patients(
    codes: NDArray[np.intp], truth: NDArray[np.bool_], *, resamples: int, rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Draw patients with replacement, those with only positives, only negatives and both apart.

    Each entry has a patient, ``codes`` from 0 without gaps, and may be positive, both of shape (n,).

    Returns
    -------
    NDArray
        Shape (resamples, patients), uint16: how often each patient was drawn; each kind as often as it occurs.

    Raises
    ------
    FewPatientsError
        If no kind has two members, so that every resample would be alike.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
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
    for group in filter(len, groups):
        step = max(1, _CHUNK // len(group))
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
