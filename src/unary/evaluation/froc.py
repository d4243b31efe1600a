"""Free-response operating characteristic: how many lesions are found at how many false findings per image.

A target (a lesion, or a cluster of them; `unary.evaluation.matching`) is found at a threshold when its best
finding scores at or above it. False findings are counted on images where every finding is known to be false. A target
that nothing hit has no score and is found at no threshold: as a score of 0 it would be found or not depending on where
a detector's scores happen to lie. Hence no increasing map of the scores changes anything here but the thresholds.

Several runs (folds, seeds, models) are averaged and never pooled, since the scores of two models share no unit.
Intervals resample patients as in `unary.evaluation.intervals`; ``docs/statistics.md`` gives the reasons and the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unary.evaluation.intervals import Estimate, attach_intervals, average_resamples, draw_patients, estimate
from unary.evaluation.roc import EvaluationError, OneClassError, ScoreError, cumulate_weights, divide_defined

FALSE_RATES = (0.1, 0.5, 1.0, 2.0)
FalseOn = Literal["normal", "complete"]


@dataclass(frozen=True)
class ImageOutcome:
    """What one detector did on one image.

    Attributes
    ----------
    patient
        The unit of every interval.
    normal
        The image is known to show no lesion: it has no targets, and whatever was found is false.
    complete
        Every lesion of the image is annotated. In a partially annotated image a finding outside the lesions may be
        right, so that its false findings are never counted.
    false_scores
        Of the findings that hit nothing, in any order; not of those that are ignored.
    target_scores
        One per target: the score of the best finding that hit it, or None where none did.

    Raises
    ------
    EvaluationError
        If a normal image has targets.
    ScoreError
        If a score is not finite.
    """

    patient: str = field(repr=False)
    normal: bool
    complete: bool
    false_scores: tuple[float, ...] = ()
    target_scores: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if self.normal and self.target_scores:
            raise EvaluationError(
                f"a normal image has no lesions to find, but this one has {len(self.target_scores)}; "
                "give benign lesions as ignored, or the image as not normal"
            )
        scores = [score for score in (*self.false_scores, *self.target_scores) if score is not None]
        wrong = int(np.count_nonzero(~np.isfinite(scores)))
        if wrong:
            raise ScoreError(
                f"scores must be finite, but {wrong} of {len(scores)} in one image are NaN or infinite; "
                "a missed lesion is None"
            )

    def counts_false(self, on: FalseOn) -> bool:
        """Return whether the image's false findings are counted."""
        return self.complete and (self.normal or on == "complete")


Outcomes = Sequence[ImageOutcome]


@dataclass(frozen=True)
class FrocSummary:
    """Sensitivities of one detector, means over its runs, with 95 % intervals over patients.

    The sensitivity is the share of targets found at each rate of false findings per image; its mean over the rates is
    one number to compare detectors by. Counts of targets, and of images on which false findings are counted, are sums
    over runs; those of their patients are of distinct ones.
    """

    rates: tuple[float, ...]
    sensitivities: tuple[Estimate, ...]
    mean: Estimate
    targets: int
    images: int
    target_patients: int
    image_patients: int


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Patients (as codes) of whatever is counted, and how many false findings stand at or above each found target."""

    false: NDArray[np.intp]
    images: NDArray[np.intp]
    targets: NDArray[np.intp]
    found: NDArray[np.intp]
    above: NDArray[np.intp]


def froc_curve(
    outcomes: Outcomes, *, on: FalseOn = "normal"
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the curve of sensitivity against false findings per image.

    Parameters
    ----------
    outcomes
        One per image.
    on
        Which images count false findings: those known to be normal, or all that are annotated completely.

    Returns
    -------
    tuple
        ``false_rates``, ``sensitivities`` and ``thresholds``, each of shape (k + 1,) for k distinct scores, float64.
        Point i reports every finding that scores at or above ``thresholds[i]``; the first threshold is infinity. The
        last sensitivity is the share of targets that any finding hit.

    Raises
    ------
    OneClassError
        If there are no targets, or no image counts false findings.
    """
    order = _rank(outcomes, on=on)
    false = np.sort([score for place in order.images for score in outcomes[place].false_scores])
    found = np.sort([score for outcome in outcomes for score in outcome.target_scores if score is not None])
    thresholds = np.append(np.inf, np.unique(np.concatenate([false, found]))[::-1])
    false_rates = (len(false) - np.searchsorted(false, thresholds)) / len(order.images)
    sensitivities = (len(found) - np.searchsorted(found, thresholds)) / len(order.targets)
    return false_rates, sensitivities, thresholds


def sensitivity_at_rates(
    outcomes: Outcomes, *, rates: ArrayLike = FALSE_RATES, on: FalseOn = "normal"
) -> NDArray[np.float64]:
    """Return the share of targets found at most so many false findings per image, one per rate.

    The highest sensitivity of any threshold that keeps to the rate: nothing is interpolated, and a target that ties
    with a false finding too many is missed. Over 20 images, a rate of 0.1 allows two false findings in all, and over 9
    images none. Where a detector makes fewer false findings than a rate allows, all its findings are reported.

    Parameters and errors are those of `froc_curve`; a rate that is negative or not finite is a ValueError.

    Examples
    --------
    >>> healthy = ImageOutcome("a", normal=True, complete=True, false_scores=(3.0, 1.0))
    >>> ill = ImageOutcome("b", normal=False, complete=True, target_scores=(4.0, 2.0, None))
    >>> sensitivity_at_rates([healthy, ill], rates=[0, 1, 2]).round(2).tolist()
    [0.33, 0.67, 0.67]
    """
    row: NDArray[np.float64]
    (row,) = _sensitivities(_rank(outcomes, on=on), np.ones((1, len(outcomes))), _check_rates(rates))
    return row


def summarise_froc(
    runs: Sequence[Outcomes],
    *,
    rng: np.random.Generator,
    rates: Sequence[float] = FALSE_RATES,
    on: FalseOn = "normal",
    resamples: int = 2000,
) -> FrocSummary:
    """Return the mean over runs of the sensitivities at given rates, with patient-clustered 95 % intervals.

    Patients are drawn once per resample from the union over runs: those with targets, those whose images count false
    findings, and those with both apart, each kind as often as it occurs. Every resample sets its thresholds anew from
    the drawn images, so that the interval holds the uncertainty of the false findings too. A run that keeps no target
    or no such image in a resample is left out of that resample's mean.

    There is one run per fold, seed or model, each of one outcome per image and with a threshold of its own. Rates and
    images to count ``on`` are as for `sensitivity_at_rates`. No intervals with fewer than two patients on either
    side; those of 0 and 1 are exact, over the patients with targets.

    Raises
    ------
    EvaluationError
        If there is no run, or any lacks what `froc_curve` needs.
    """
    allowed = _check_rates(rates)
    plain = _average_plain(runs, allowed, on=on)
    counting = [outcome for run in runs for outcome in run if outcome.counts_false(on)]
    holding = [outcome for run in runs for outcome in run if outcome.target_scores]
    patients = len({outcome.patient for outcome in holding})
    normals = len({outcome.patient for outcome in counting})
    estimates = tuple(Estimate(float(value), None, None) for value in plain)
    if min(patients, normals) >= 2:
        estimates = estimate(
            plain, lambda: _resample([runs], allowed, on=on, resamples=resamples, rng=rng)[0], patients
        )
    return FrocSummary(
        tuple(allowed.tolist()),
        estimates[:-1],
        estimates[-1],
        sum(len(outcome.target_scores) for outcome in holding),
        len(counting),
        patients,
        normals,
    )


def compare_froc(
    first: Sequence[Outcomes],
    second: Sequence[Outcomes],
    *,
    rng: np.random.Generator,
    rates: Sequence[float] = FALSE_RATES,
    on: FalseOn = "normal",
    resamples: int = 2000,
) -> tuple[Estimate, ...]:
    """Return the sensitivities of ``first`` minus those of ``second``, with paired 95 % intervals.

    Both detectors meet the same drawn patients in each resample, so what makes a patient easy for both cancels. They
    have as many runs, each pair on the same images in the same order; else parameters and errors are those of
    `summarise_froc`.

    Returns
    -------
    tuple
        One per rate, and last that of the mean over the rates.

    Raises
    ------
    EvaluationError
        If the pairs do not share images and targets, or if there are too few patients for an interval.
    """
    allowed = _check_rates(rates)
    plain = [_average_plain(runs, allowed, on=on) for runs in (first, second)]
    told = [
        [[(each.patient, each.normal, each.complete, len(each.target_scores)) for each in run] for run in runs]
        for runs in (first, second)
    ]
    if told[0] != told[1]:
        raise EvaluationError("a paired difference needs both detectors' findings in the same images, in one order")
    resampled = _resample([first, second], allowed, on=on, resamples=resamples, rng=rng)
    return attach_intervals(plain[0] - plain[1], resampled[0] - resampled[1])


def _average_plain(runs: Sequence[Outcomes], rates: NDArray[np.float64], *, on: FalseOn) -> NDArray[np.float64]:
    """Mean sensitivities over runs, and the mean of these over the rates, shape (rates + 1,)."""
    if not runs:
        raise EvaluationError("there are no findings to evaluate: no run was given")
    plain = np.mean([sensitivity_at_rates(run, rates=rates, on=on) for run in runs], axis=0)
    return np.append(plain, plain.mean())


def _resample(
    detectors: Sequence[Sequence[Outcomes]],
    rates: NDArray[np.float64],
    *,
    on: FalseOn,
    resamples: int,
    rng: np.random.Generator,
) -> list[NDArray[np.float64]]:
    """As `_average_plain` for each resample, shape (resamples, rates + 1), from one set of draws; NaN if undefined."""
    # patients with neither targets nor counted false findings take no part
    kept = [[[each for each in run if each.target_scores or each.counts_false(on)] for run in d] for d in detectors]
    images = [outcome for run in kept[0] for outcome in run]
    codes = np.unique([outcome.patient for outcome in images], return_inverse=True)[1]
    holding = codes[[bool(outcome.target_scores) for outcome in images]]
    members = np.concatenate([holding, codes[[outcome.counts_false(on) for outcome in images]]])
    draws = draw_patients(members, np.arange(len(members)) < len(holding), resamples=resamples, rng=rng)
    owners = np.split(codes, np.cumsum([len(run) for run in kept[0]])[:-1])

    def prepare(run: Outcomes, own: NDArray[np.intp]) -> tuple[int, Callable[[NDArray[np.float64]], Any]]:
        order = _rank(run, on=on)
        size = len(run) + len(order.false) + len(order.found)
        return size, lambda weights: _sensitivities(order, weights[:, own], rates)

    means = [average_resamples(draws, map(prepare, runs, owners)) for runs in kept]
    return [np.column_stack([values, values.mean(axis=1)]) for values in means]


def _rank(outcomes: Outcomes, *, on: FalseOn) -> _Ranking:
    """Which false findings stand above which target; places are positions in ``outcomes``."""
    if on not in ("normal", "complete"):
        raise ValueError(f"false findings are counted on 'normal' or 'complete' images, got {on!r}")
    counting = [place for place, outcome in enumerate(outcomes) if outcome.counts_false(on)]
    targets = [(place, score) for place, outcome in enumerate(outcomes) for score in outcome.target_scores]
    if not targets:
        raise OneClassError(f"there is no lesion to find in {len(outcomes)} images; does the manifest list lesions?")
    if not counting:
        what = "known to be normal" if on == "normal" else "annotated completely"
        raise OneClassError(f"false findings need images that are {what}, but none of {len(outcomes)} is")
    false = [(score, place) for place in counting for score in outcomes[place].false_scores]
    scores = np.asarray([score for score, _ in false], np.float64)
    order = np.argsort(-scores, kind="stable")
    found = [(place, score) for place, score in targets if score is not None]
    ascending = scores[order][::-1]
    above = len(false) - np.searchsorted(ascending, np.asarray([score for _, score in found], np.float64))
    highest = int(above.max(initial=0))  # what stands below every target changes nothing
    return _Ranking(
        np.asarray([place for _, place in false], np.intp)[order][:highest],
        np.asarray(counting, np.intp),
        np.asarray([place for place, _ in targets], np.intp),
        np.asarray([place for place, _ in found], np.intp),
        np.asarray(above, np.intp),
    )


def _sensitivities(order: _Ranking, weights: NDArray[np.float64], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sensitivity at each rate for each row of (resamples, images) weights; NaN where targets or images weigh nothing.

    A target is found at a rate when the false findings that score as high or higher weigh no more than the rate allows.
    """
    images = weights[:, order.images].sum(axis=1)
    total = weights[:, order.targets].sum(axis=1)
    gained = weights[:, order.found]
    price = cumulate_weights(weights, order.false)[:, order.above]
    slack = 1e-9 * np.maximum(images, 1)  # 0.1 * 30 must allow 3, whatever the rounding
    found = np.stack(
        [np.where(price <= (rate * images + slack)[:, None], gained, 0).sum(axis=1) for rate in rates], axis=1
    )
    return np.where(images[:, None] > 0, divide_defined(found, np.repeat(total[:, None], len(rates), axis=1)), np.nan)


def _check_rates(rates: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(rates, np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"rates of false findings per image must be a list of numbers, none negative, got {rates!r}")
    return values
