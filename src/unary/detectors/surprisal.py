"""How surprising a value is among normal ones: -log p, in natural units, whatever the value's own unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.errors import TrainingError, require_positive

FEWEST_PATCHES = 100  # normal patches, for the tail to hold one
_TAIL = 0.01
_KNOTS = 400


@dataclass(frozen=True)
class Surprisal:
    """-log p of a value among normal values, continued past the strongest 1 % by their exponential tail.

    Below the tail it is linear between the ascending knots ``values`` and ``surprisals``. At ``tail_start`` it is
    ``tail_surprisal``, -log of the share of normal values beyond: that of 1 %, or of more where the strongest values
    are equal, as they are when overlapping patches share their strongest pixel. From there the value must rise by
    ``tail_scale`` for one more unit.
    """

    values: tuple[float, ...]
    surprisals: tuple[float, ...]
    tail_start: float
    tail_scale: float
    tail_surprisal: float

    def __post_init__(self) -> None:
        if not self.values or len(self.values) != len(self.surprisals):
            raise ValueError(f"values and surprisals must be as many: {len(self.values)}, {len(self.surprisals)}")
        if not np.isfinite([*self.values, *self.surprisals, self.tail_start, self.tail_surprisal]).all():
            raise ValueError("a surprisal must be finite")
        if any((np.diff(knots) < 0).any() for knots in (self.values, self.surprisals)):
            raise ValueError("the values and surprisals of a surprisal must ascend")
        require_positive(self, "tail_scale")
        if self.values[-1] > self.tail_start + self.tail_scale * (1 + 1e-9):
            raise ValueError("the values of a surprisal must end where its tail starts")

    def __call__(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the surprisal of each value, float64, non-negative and never clamped above; NaN of NaN."""
        body = np.interp(values, self.values, self.surprisals)
        tail = self.tail_surprisal + (values - self.tail_start) / self.tail_scale
        result: NDArray[np.float64] = np.where(values > self.tail_start, tail, body)
        return result

    def invert(self, surprisals: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the lowest value, but for rounding, that is as surprising; NaN of NaN."""
        heights, first = np.unique(self.surprisals, return_index=True)
        body = np.interp(surprisals, heights, np.asarray(self.values)[first])
        tail = self.tail_start + (surprisals - self.tail_surprisal) * self.tail_scale
        result: NDArray[np.float64] = np.where(surprisals > self.tail_surprisal, tail, body)
        return result


@dataclass(frozen=True)
class StandIn:
    """What normal patches add up to with all parts, and without those that are silent."""

    silent: tuple[str, ...]
    whole: Surprisal
    rest: Surprisal

    def __call__(self, sums: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the whole sum that is as rare among normal patches as these sums without the silent parts."""
        return self.whole.invert(self.rest(sums))


def fit_surprisal(normal: NDArray[np.floating]) -> Surprisal:
    """Estimate the curve from the values of normal patches, shape (n,).

    A `TrainingError` says that there are fewer than 100 values, they are not finite, or they hardly differ.
    """
    require_enough(len(normal))
    ordered = np.sort(np.asarray(normal, np.float64))
    if not np.isfinite(ordered).all():
        raise TrainingError("a detector gave scores that are not finite on normal patches")
    start = float(np.quantile(ordered, 1 - _TAIL))
    if start == ordered[-1]:
        start = float(ordered[max(int(np.searchsorted(ordered, start)) - 1, 0)])
    beyond = ordered[ordered > start]
    if len(beyond) == 0 or not start > ordered[0]:
        raise TrainingError("a detector gives (nearly) the same score to all normal patches; are the images blank?")
    positions = np.unique(np.linspace(0, np.searchsorted(ordered, start), _KNOTS).round().astype(int))
    knots, first = np.unique(ordered[positions], return_index=True)
    exceeding = (len(ordered) - positions[first]) / (len(ordered) + 1)
    share = max(_TAIL, len(beyond) / len(ordered))
    heights = np.minimum.accumulate((-np.log(np.maximum(exceeding, share)))[::-1])[::-1]
    scale = float((beyond - start).mean())
    return Surprisal(tuple(knots.tolist()), tuple(heights.tolist()), start, scale, float(-np.log(share)))


def require_enough(count: int) -> None:
    """Refuse by a `TrainingError` fewer normal patches than a surprisal is estimated from."""
    if count < FEWEST_PATCHES:
        raise TrainingError(
            f"calibrating a fusion needs at least {FEWEST_PATCHES} normal patches, there are {count}: give more "
            "images, a smaller --stride-px or --min-tissue, or --held-out 0"
        )
