"""Shares of things that come in clusters, such as images of patients: exact in kind, and fit for few patients.

The bootstrap of `unary.evaluation.intervals` is too narrow below some ten patients. Here the spread between patients is
turned into the number of independent observations that would spread as much, of which the exact binomial interval is
taken (Korn and Graubard, Survey Methodology 24:193, 1998; Clopper and Pearson, Biometrika 26:404, 1934).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from unary.evaluation.intervals import Estimate, bound_extreme

_TAIL = 0.025


def estimate_share(found: ArrayLike, counts: ArrayLike, *, observations: int | None = None) -> Estimate:
    """Return the share found of all that was counted, with an exact 95 % interval over patients.

    Parameters
    ----------
    found, counts
        Shape (patients,): of each patient how many were found, and of how many; each at least 0, and ``found`` at most
        ``counts``. Patients of whom nothing was counted play no part.
    observations
        How many things were counted, where ``counts`` are weights (1 for each patient); by default their sum. An
        interval is never narrower than that of so many independent things.

    Returns
    -------
    Estimate
        Of a share of 0 or 1, which says nothing of the spread between patients, the interval is that of as many
        observations as there are patients. With fewer than two patients there is none.

    Raises
    ------
    ValueError
        If nothing was counted.

    Examples
    --------
    >>> found = estimate_share([1, 0, 1, 1, 0, 1, 1, 1, 0, 1], [1] * 10)
    >>> found.value, round(found.low, 3), round(found.high, 3)  # of independent things: Clopper and Pearson
    (0.7, 0.348, 0.933)
    """
    hits, sizes = np.asarray(found, np.float64), np.asarray(counts, np.float64)
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    patients, total = len(sizes), float(sizes.sum())
    if not patients:
        raise ValueError("nothing was counted")
    share = float(hits.sum() / total)
    if patients < 2:
        return Estimate(share, None, None)
    if not 1e-12 < share < 1 - 1e-12:
        return Estimate(share, *bound_extreme(round(share), patients))
    most = total if observations is None else float(observations)
    variance = patients / (patients - 1) * float(np.square(hits - share * sizes).sum()) / total**2
    effective = most
    if most > patients and variance > 0:  # else there is one thing of each patient: they are independent
        # by how much the spread of so few patients may be mistaken
        few = (stats.t.isf(_TAIL, most - 1) / stats.t.isf(_TAIL, patients - 1)) ** 2
        effective = min(most, few * share * (1 - share) / variance)
    low = float(stats.beta.ppf(_TAIL, share * effective, (1 - share) * effective + 1))
    high = float(stats.beta.isf(_TAIL, share * effective + 1, (1 - share) * effective))
    return Estimate(share, low, high)


def weigh_alarms(alarms: int, patients: int, rate: float, calibrated: int) -> float:
    """Return how often so many or more of new normal patients alarm, if they are like those of the calibration.

    A threshold that k - 1 of n calibration patients exceed guarantees k / (n + 1), and of m new patients, exchangeable
    with them and one image each, the number that exceeds it is beta-binomial with k and n + 1 - k: the chance of the
    calibration is in it as well as that of the new patients (it is the negative hypergeometric distribution of ranks).

    Parameters
    ----------
    alarms, patients
        New patients whose image has a finding, of how many.
    rate
        The guaranteed bound on the share of normal images with a finding, k / (n + 1), in (0, 1).
    calibrated
        Normal patients of the calibration, n.

    Examples
    --------
    >>> round(weigh_alarms(3, 10, 1 / 21, 20), 4), weigh_alarms(0, 10, 1 / 21, 20)
    (0.0296, 1.0)
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie in (0, 1), got {rate}")
    if alarms <= 0:
        return 1.0
    first, second = rate * (calibrated + 1), (1 - rate) * (calibrated + 1)
    return min(1.0, float(stats.betabinom.sf(alarms - 1, patients, first, second)))


def bound_long_run(rate: float, calibrated: int, *, doubt: float) -> float:
    """Return the share of normal images that may alarm in the long run with a calibration like this one.

    The guarantee is of the mean over calibrations. Of one calibration the rate that its threshold has for ever scatters
    as Beta(k, n + 1 - k), k = rate (n + 1) (Vovk, *Conditional validity of inductive conformal predictors*, 2012); it
    exceeds what is returned in a share ``doubt`` of all calibrations.

    >>> round(bound_long_run(0.1, 19, doubt=0.025), 3), round(bound_long_run(0.1, 999, doubt=0.025), 3)
    (0.26, 0.119)
    """
    if rate >= 1:
        return 1.0
    found = float(stats.beta.isf(doubt, rate * (calibrated + 1), (1 - rate) * (calibrated + 1)))
    return 1.0 if math.isnan(found) else found
