"""Tests that may be looked at after every image, for ever, with a stated chance of a false alarm.

**Against a bound.** Whoever believes that the mean of values in [0, 1] is at most m may bet against it: after each
value the capital is multiplied by 1 + l (value - m). While the belief is true the capital is a non-negative
supermartingale, and the chance that it *ever* reaches 1 / a is at most a (Ville 1939). The values may depend on each
other, as long as the mean of each, given all before, is at most m. Here the capital is divided evenly among a few bets
l (Waudby-Smith and Ramdas, Journal of the Royal Statistical Society B 86:1, 2024), so that no alternative is named.

**Against what was before.** The rank of each value among all before it and itself, ties broken at random, is uniform
and independent of every other rank as long as nothing changes, whatever the distribution (Renyi 1962; McDonald, *A
CUSUM procedure based on sequential ranks*, Naval Research Logistics 37:627, 1990). A two-sided CUSUM of these has a
known mean number of values until a false signal, its in-control average run length, that does not depend on how long
the baseline was. It is found by the method of Brook and Evans (Biometrika 59:539, 1972).
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ALLOWANCE = 0.25  # of the CUSUM, in standard deviations: it is tuned to shifts of twice as much
_BETS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)  # shares of the largest bet that cannot ruin
_MOST_LOG = 100 * math.log(10)
_STATES = 250
_HALF = math.sqrt(3.0)  # a uniform value of variance 1 lies in [-sqrt(3), sqrt(3)]


def bet_against(values: ArrayLike, bound: float) -> NDArray[np.float64]:
    """Return the capital after each value of a bettor who begins with 1 and bets that the mean exceeds a bound.

    Values, shape (n,), lie in [0, 1], the bound in (0, 1]. Returns shape (n,); no bet counts for more than 1e100, which
    is evidence enough and can be written down.

    >>> bet_against([0, 0, 1, 1, 1, 1], 0.1).round(2).tolist()
    [0.75, 0.63, 1.35, 3.93, 15.66, 78.75]
    """
    found = np.asarray(values, np.float64)
    if found.size and not (found.min() >= 0 and found.max() <= 1):
        raise ValueError("values must lie in [0, 1]")
    if not 0 < bound <= 1:
        raise ValueError(f"bound must lie in (0, 1], got {bound}")
    grown = [np.cumsum(np.log1p(share / bound * (found - bound))) for share in _BETS]
    return np.asarray(np.exp(np.minimum(grown, _MOST_LOG)).mean(axis=0))


def rank_in_sequence(values: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Return the place of each value among all before it and itself, shape (n,), uniform in (0, 1) without a change.

    Ties, and the place within a step, are drawn by the seed. The first value says nothing: its place is drawn too.
    """
    found = np.asarray(values, np.float64)
    if not np.isfinite(found).all():
        raise ValueError("values must be finite")
    rng = np.random.default_rng(seed)
    drawn = rng.random(len(found))
    ordered: list[float] = []
    places = np.empty(len(found))
    for number, value in enumerate(found.tolist()):
        low, high = bisect.bisect_left(ordered, value), bisect.bisect_right(ordered, value)
        places[number] = (low + drawn[number] * (high - low + 1)) / (number + 1)
        ordered.insert(high, value)
    return places


@dataclass(frozen=True, eq=False)
class Chart:
    """A two-sided CUSUM of sequential ranks.

    Attributes
    ----------
    up, down
        Shape (n,): what has gathered against "not higher than before" and "not lower"; it begins anew after a signal.
    limit
        A signal where one reaches it.
    signals
        Positions of the values at which there was one, and ``"higher"`` or ``"lower"``.
    """

    up: NDArray[np.float64]
    down: NDArray[np.float64]
    limit: float
    signals: tuple[tuple[int, str], ...]


def chart_ranks(values: ArrayLike, *, run_length: float, seed: int = 0) -> Chart:
    """Return the CUSUM of values, shape (n,), with an in-control average run length of so many values."""
    limit = find_limit(run_length)
    steps = 2 * _HALF * (rank_in_sequence(values, seed=seed) - 0.5)
    up, down = np.zeros(len(steps)), np.zeros(len(steps))
    signals: list[tuple[int, str]] = []
    high = low = 0.0
    for number, step in enumerate(steps.tolist()):
        high, low = max(0.0, high + step - ALLOWANCE), max(0.0, low - step - ALLOWANCE)
        up[number], down[number] = high, low
        if high >= limit or low >= limit:
            signals.append((number, "higher" if high >= limit else "lower"))
            high = low = 0.0
    return Chart(up, down, limit, tuple(signals))


@functools.lru_cache(maxsize=64)
def find_limit(run_length: float) -> float:
    """Return the limit of a two-sided CUSUM of uniform values whose mean time to a false signal is ``run_length``.

    Each side alone has twice the run length.
    """
    if not 10 <= run_length <= 1e8:
        raise ValueError(f"run_length must lie between 10 and 1e8, got {run_length}")
    low = high = 0.5
    while find_run_length(high) < 2 * run_length:  # in small steps: far beyond, nothing can be computed
        low, high = high, high + 1
    for _ in range(30):
        middle = (low + high) / 2
        if find_run_length(middle) < 2 * run_length:
            low = middle
        else:
            high = middle
    return high


def find_run_length(limit: float) -> float:
    """Return the in-control average run length of a one-sided CUSUM with a limit, begun at 0 (Brook and Evans)."""
    width = limit / _STATES
    states = (np.arange(_STATES) + 0.5) * width
    states[0] = 0.0
    edges = np.arange(_STATES + 1) * width
    edges[0] = -np.inf
    reached = stats.uniform.cdf(edges[None] - states[:, None] + ALLOWANCE, -_HALF, 2 * _HALF)
    moves = np.diff(reached, axis=1)
    return float(np.linalg.solve(np.eye(_STATES) - moves, np.ones(_STATES))[0])


def predict_interval(baseline: Sequence[float], false_alarm: float) -> tuple[float, float] | None:
    """Return what a further value of a normal distribution lies outside of with a chance of ``false_alarm``.

    Of a baseline of n values: mean plus and minus t(n - 1) s sqrt(1 + 1 / n); that the baseline is short is in it. None
    with fewer than three values, or where all are alike.
    """
    values = np.asarray(baseline, np.float64)
    if len(values) < 3 or not values.std() > 0:
        return None
    reach = stats.t.isf(false_alarm / 2, len(values) - 1) * values.std(ddof=1) * math.sqrt(1 + 1 / len(values))
    return float(values.mean() - reach), float(values.mean() + reach)
