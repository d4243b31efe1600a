"""Four numbers of an image's tissue by which a scanner's brightness, contrast and noise can be watched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SAMPLE_PX = 400_000
_ROWS = 600
_CUT = 4.0  # times the median: what is rougher is an edge, not noise


@dataclass(frozen=True)
class TissueValues:
    """Of the stored values of an image's tissue, in the unit of the pixels.

    Attributes
    ----------
    level
        The median.
    dark, bright
        The 10th and the 90th percentile.
    noise
        Standard deviation of the noise of single pixels, from second differences along rows.
    """

    level: float
    dark: float
    bright: float
    noise: float


def measure_values(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> TissueValues | None:
    """Measure an image, (rows, cols), as stored, on its tissue, of the same shape; None where there is none.

    At most some hundred thousand pixels are looked at, evenly spread.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(1000, 20, (400, 400))
    >>> found = measure_values(noise, np.ones(noise.shape, bool))
    >>> round(found.level), round(found.noise)
    (1000, 20)
    """
    if pixels.shape != mask.shape:
        raise ValueError(f"pixels and mask must have one shape, got {pixels.shape} and {mask.shape}")
    step = max(1, round((pixels.size / _SAMPLE_PX) ** 0.5))
    values = pixels[::step, ::step][mask[::step, ::step]]
    if not values.size:
        return None
    dark, level, bright = (float(value) for value in np.percentile(values, [10, 50, 90]))
    rows = slice(None, None, max(1, pixels.shape[0] // _ROWS))
    lines, inside = pixels[rows].astype(np.float32), mask[rows]
    rough = np.abs(lines[:, 2:] - 2 * lines[:, 1:-1] + lines[:, :-2])[inside[:, 2:] & inside[:, 1:-1] & inside[:, :-2]]
    if not rough.size:
        return TissueValues(level, dark, bright, 0.0)
    # the mean, not the median, which is a whole number where pixels are; without edges, which are rough as well
    kept = rough[rough <= _CUT * max(float(np.median(rough)), 1.0)]
    noise = float(kept.mean(dtype=np.float64)) * float(np.sqrt(np.pi / 2) / np.sqrt(6))
    return TissueValues(level, dark, bright, noise)
