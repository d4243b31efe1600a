"""Receiver operating characteristic: curves and areas.

Higher scores are more abnormal. Nothing here rescales a score, and no result but the thresholds changes when all
scores go through one increasing map. Intervals are in `unary.evaluation.intervals`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unary.errors import UnaryError


class EvaluationError(UnaryError):
    """Scores and truth do not allow the statistic that was asked for."""


class ScoreError(EvaluationError):
    """Scores are not finite numbers, or do not match the truth in length."""


class OneClassError(EvaluationError):
    """The positives or the negatives are missing, so that no detector can be told from another."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Which score lies where, computed once; ties are exact because only positions are kept.

    Attributes
    ----------
    negatives, positives
        Indices of either class in increasing order of score.
    below, up_to
        For each positive, how many negatives score lower, and how many score lower or equal.
    first_alike
        For each positive, how many positives score lower.
    """

    negatives: NDArray[np.intp]
    positives: NDArray[np.intp]
    below: NDArray[np.intp]
    up_to: NDArray[np.intp]
    first_alike: NDArray[np.intp]

    @functools.cached_property
    def without_ties(self) -> bool:
        """Whether no positive scores as a negative does."""
        return np.array_equal(self.below, self.up_to)


Statistic = Callable[[Ranking, NDArray[np.float64]], NDArray[np.float64]]
"""What is computed of a ranking for each row of (resamples, n) weights, shape (resamples,)."""


def roc_curve(
    scores: ArrayLike, positive: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the curve of sensitivity against false-positive rate.

    Parameters and errors are those of `auroc`.

    Returns
    -------
    tuple
        ``fpr``, ``tpr`` and ``thresholds``, each of shape (k + 1,) for k distinct scores, float64. Point i calls
        positive every score at or above ``thresholds[i]``; the first threshold is infinity and calls none.
    """
    values, truth = _check_scores(scores, positive)
    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    true_calls = np.cumsum(truth)[last]
    false_calls = last + 1 - true_calls
    return (
        np.append(0.0, false_calls / false_calls[-1]),
        np.append(0.0, true_calls / true_calls[-1]),
        np.append(np.inf, values[last]),
    )


def auroc(scores: ArrayLike, positive: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Return the area under the ROC curve: how often a positive outscores a negative, a tie counting half.

    Parameters
    ----------
    scores
        Shape (n,), finite.
    positive
        Shape (n,), bool.
    weights
        Shape (n,), finite and not negative; 1 each by default. A weight of 2 counts an entry twice.

    Raises
    ------
    ScoreError
        If a score is not finite, or lengths differ.
    OneClassError
        If there is no positive or no negative of positive weight.

    Examples
    --------
    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    >>> auroc([1.0, 1.0, 1.0], [True, False, False])
    0.5
    """
    return _compute(weighted_aurocs, scores, positive, weights)


def average_precision(scores: ArrayLike, positive: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Return the precision averaged over positives, each taken at the threshold that just includes it.

    The step-wise sum of ``(R_n - R_{n-1}) P_n`` over distinct thresholds, without interpolation, as scikit-learn's
    ``average_precision_score``. Its chance level is the share of positives, so it compares only within one test set.
    Parameters and errors are those of `auroc`.
    """
    return _compute(weighted_average_precisions, scores, positive, weights)


def sensitivity_at_specificity(scores: ArrayLike, positive: ArrayLike, *, specificity: float) -> float:
    """Return the share of positives that score above a threshold set by the negatives.

    The threshold is the smallest score of a negative that has at least the demanded share of negatives at or below
    it, and a score is called positive when it lies strictly above. Ties therefore never lower the specificity below
    what was asked; a positive that ties with the threshold is missed. No interpolation between thresholds. At
    specificity 0 everything is called positive; errors are those of `auroc`, and ValueError outside [0, 1].

    Examples
    --------
    >>> sensitivity_at_specificity([1, 2, 3, 4, 4, 9], [False, False, False, False, True, True], specificity=0.75)
    1.0
    >>> sensitivity_at_specificity([1, 2, 3, 4, 4, 9], [False, False, False, False, True, True], specificity=0.9)
    0.5
    """
    if not 0 <= specificity <= 1:
        raise ValueError(f"specificity must lie in [0, 1], got {specificity}")
    return _compute(functools.partial(weighted_sensitivities, specificity=specificity), scores, positive, None)


def _compute(compute: Statistic, scores: ArrayLike, positive: ArrayLike, weights: ArrayLike | None) -> float:
    """One statistic of entries with the given weights, or of 1 each."""
    ranking, truth = rank_scores(scores, positive), np.asarray(positive)
    row = np.ones(len(truth)) if weights is None else np.asarray(weights, dtype=np.float64)
    if row.shape != truth.shape or not np.isfinite(row).all() or (row < 0).any():
        raise ScoreError(f"weights must be {len(truth)} finite numbers, none negative")
    if not row[truth].any() or not row[~truth].any():
        raise OneClassError("both classes need some weight, but all entries of one class have weight 0")
    return float(compute(ranking, row[None])[0])


def rank_scores(scores: ArrayLike, positive: ArrayLike) -> Ranking:
    """Return the order of scores, the part of a statistic that no weight changes; errors are those of `auroc`."""
    values, truth = _check_scores(scores, positive)
    negatives, positives = np.flatnonzero(~truth), np.flatnonzero(truth)
    negatives = negatives[np.argsort(values[negatives], kind="stable")]
    positives = positives[np.argsort(values[positives], kind="stable")]
    low, high = values[negatives], values[positives]
    return Ranking(
        negatives,
        positives,
        np.searchsorted(low, high, side="left"),
        np.searchsorted(low, high, side="right"),
        np.searchsorted(high, high, side="left"),
    )


def weighted_aurocs(order: Ranking, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the AUROC for each row of (resamples, n) weights; NaN where a class has no weight."""
    lost = cumulate_weights(weights, order.negatives)
    gained = weights[:, order.positives]
    won = np.einsum("ij,ij->i", gained, lost[:, order.below])
    won = won + (won if order.without_ties else np.einsum("ij,ij->i", gained, lost[:, order.up_to]))
    return divide_defined(won, 2 * gained.sum(axis=1) * lost[:, -1])


def weighted_average_precisions(order: Ranking, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the average precision for each row of (resamples, n) weights; NaN where a class has no weight."""
    negatives, positives = cumulate_weights(weights, order.negatives), cumulate_weights(weights, order.positives)
    true_calls = positives[:, -1:] - positives[:, order.first_alike]
    false_calls = negatives[:, -1:] - negatives[:, order.below]
    precision = divide_defined(true_calls, true_calls + false_calls)
    gained = np.where(np.isnan(precision), 0, weights[:, order.positives])
    found = np.einsum("ij,ij->i", gained, np.nan_to_num(precision))
    return np.where(negatives[:, -1] > 0, divide_defined(found, positives[:, -1]), np.nan)


def weighted_sensitivities(order: Ranking, weights: NDArray[np.float64], *, specificity: float) -> NDArray[np.float64]:
    """Return `sensitivity_at_specificity` for each row of (resamples, n) weights; NaN where a class has no weight."""
    lost, gained = cumulate_weights(weights, order.negatives), weights[:, order.positives]
    total = lost[:, -1]
    needed = specificity * total - 1e-9 * np.maximum(total, 1)
    # How many negatives lie at or below the threshold, which is the first that makes up the needed weight.
    passed = (lost[:, 1:] < needed[:, None]).sum(axis=1) + 1 if specificity > 0 else np.zeros(len(weights), int)
    found = np.where(order.below >= passed[:, None], gained, 0).sum(axis=1)
    return np.where(total > 0, divide_defined(found, gained.sum(axis=1)), np.nan)


def cumulate_weights(weights: NDArray[np.float64], chosen: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the sums of the first 0, 1, ... chosen weights of each row, shape (resamples, len(chosen) + 1)."""
    sums = np.zeros((len(weights), len(chosen) + 1))
    np.cumsum(weights[:, chosen], axis=1, out=sums[:, 1:])
    return sums


def divide_defined(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quotients, of one shape, NaN where the divisor is not above 0."""
    quotient: NDArray[np.float64] = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return quotient


def _check_scores(scores: ArrayLike, positive: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores as float64 and truth as bool, both of shape (n,)."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if values.ndim != 1 or truth.shape != values.shape:
        raise ScoreError(f"scores and truth must be two lists of one length, got shapes {values.shape}, {truth.shape}")
    if truth.dtype != bool and len(truth):
        raise ScoreError(f"the truth must be given as True and False, got {truth.dtype}")
    wrong = int(np.count_nonzero(~np.isfinite(values)))
    if wrong:
        raise ScoreError(
            f"scores must be finite, but {wrong} of {len(values)} are NaN or infinite; "
            "has training diverged, or does an image hold non-finite pixels?"
        )
    positives = int(np.count_nonzero(truth))
    if positives == 0 or positives == len(truth):
        raise OneClassError(
            f"both classes are needed, but there are {positives} positives and {len(truth) - positives} negatives"
        )
    return values, truth
