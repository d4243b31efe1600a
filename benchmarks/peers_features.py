"""Simple features of grey patches and images, for the peers that take a row of numbers: numpy and scipy alone."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

QUANTILES = (0, 1, 10, 25, 50, 75, 90, 99, 100)
SIGMAS_PX = (1, 2, 4, 8, 16)
_THUMBNAIL = 8

NAMES = (
    *("mean", "standard_deviation", "skewness", "kurtosis"),
    *(f"quantile_{at}" for at in QUANTILES),
    *("gradient_mean", "gradient_deviation", "gradient_quantile_99", "gradient_max"),
    *("laplacian_deviation", "laplacian_min", "laplacian_max"),
    *(f"band_{low}_{high}_{name}" for low, high in itertools.pairwise(SIGMAS_PX) for name in ("sd", "max")),
)
"""What the columns of `measure_patches` are."""


def measure_patches(patches: NDArray[np.uint16], *, aligned: bool = False) -> NDArray[np.float64]:
    """Return features of patches of shape (n, side, side), one row each, float64.

    They are the columns of `NAMES`: moments and quantiles of intensity (65535 being 1), the gradient's magnitude, the
    Laplacian, and the octave bands between Gaussians. ``aligned`` pictures, in which a place means the same thing
    in each, also give the means of 8 x 8 fields.
    """
    values = patches.astype(np.float64) / 65535
    rows = np.array([_measure(one) for one in values]).reshape(len(values), len(NAMES))
    return np.concatenate([rows, shrink(values, _THUMBNAIL).reshape(len(values), -1)], axis=1) if aligned else rows


def shrink(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return the means of side x side equal fields of each picture, (n, size, size) to (n, side, side).

    The size must be a multiple of the side, or it is a ValueError.
    """
    count, size, _ = values.shape
    means: NDArray[np.float64] = values.reshape(count, side, size // side, side, -1).mean(axis=(2, 4))
    return means


def _measure(values: NDArray[np.float64]) -> list[float]:
    mean, deviation = values.mean(), values.std()
    standard = (values - mean) / max(deviation, 1e-9)
    gradient = np.hypot(ndimage.sobel(values, 0), ndimage.sobel(values, 1))
    laplacian = ndimage.laplace(values)
    smooth = [ndimage.gaussian_filter(values, sigma) for sigma in SIGMAS_PX]
    bands = [fine - coarse for fine, coarse in itertools.pairwise(smooth)]
    return [
        *(mean, deviation, (standard**3).mean(), (standard**4).mean()),
        *np.percentile(values, QUANTILES),
        *(gradient.mean(), gradient.std(), np.percentile(gradient, 99), gradient.max()),
        *(laplacian.std(), laplacian.min(), laplacian.max()),
        *(figure for band in bands for figure in (band.std(), np.abs(band).max())),
    ]
