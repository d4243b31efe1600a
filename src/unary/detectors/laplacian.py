"""The no-learning yardstick: a multi-scale Laplacian of Gaussian with local normalisation.

A microcalcification is a bright speck of a few pixels. The negative Laplacian of a Gaussian of matching width responds
to it; divided by the response's own local root mean square it no longer favours busy tissue, and the mean of the
strongest few pixels is not diluted by the thousands of quiet ones, as a patch-wide RMSE is. Only two numbers per scale,
the mean and spread of that pooled response on normal patches, are estimated. A learned detector that does not beat
this has no claim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from unary.detectors.protocol import Examination
from unary.errors import TrainingError
from unary.patches.patch_set import PatchSet
from unary.patches.preparation import FULL_SCALE

_FLOOR = 1e-4  # of intensity, added to the local RMS: an empty region answers 0 rather than noise over noise
_CHUNK = 64


@dataclass(frozen=True)
class LaplacianConfig:
    """Parameters of the filter bank.

    Attributes
    ----------
    sigmas_px
        Widths of the Gaussians in working pixels; a disc of radius r answers most at r / sqrt(2).
    neighbourhood_px
        Standard deviation of the Gaussian window of the local root mean square.
    strongest
        How many of the largest pixels of a patch are averaged.
    """

    sigmas_px: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    neighbourhood_px: float = 16.0
    strongest: int = 8

    def __post_init__(self) -> None:
        if not self.sigmas_px or min(self.sigmas_px) <= 0 or self.neighbourhood_px <= 0 or self.strongest < 1:
            raise ValueError(f"sigmas_px, neighbourhood_px and strongest must be positive: {self}")


@dataclass(frozen=True)
class Laplacian:
    """The fitted filter bank: per scale, mean and standard deviation of the pooled response on normal patches."""

    config: LaplacianConfig
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def examine(self, patches: NDArray[np.uint16]) -> Examination:
        """Score by the largest standardised pooled response over scales.

        The map holds, at each pixel, the response of the best scale in standard deviations of what the strongest
        pixels of normal patches reach.
        """
        return self.examine_values(_to_intensity(patches))

    def examine_values(self, values: NDArray[np.float32]) -> Examination:
        """Do the same to what is not an image of intensities, shape (n, rows, cols), such as a residual."""
        maps = np.full(values.shape, -np.inf, np.float32)
        scores = np.full(len(values), -np.inf)
        responses = _responses(values, self.config)
        for response, mean, deviation in zip(responses, self.means, self.deviations, strict=True):
            np.maximum(scores, (_pool(response, self.config.strongest) - mean) / deviation, out=scores)
            np.maximum(maps, (response - np.float32(mean)) / np.float32(deviation), out=maps)
        return Examination(scores, maps)


def fit_laplacian(patches: PatchSet, config: LaplacianConfig, *, at_most: int = 4000) -> Laplacian:
    """Estimate the response of normal tissue on at most ``at_most`` evenly spaced patches.

    Raises
    ------
    TrainingError
        If there are fewer than two patches, or they show no structure at all.
    """
    if len(patches) < 2:
        raise TrainingError(f"laplacian needs at least two normal patches, there are {len(patches)}")
    chosen = np.unique(np.linspace(0, len(patches) - 1, at_most).round().astype(int))
    chunks = [pooled_responses(patches.gather(chosen[k : k + _CHUNK]), config) for k in range(0, len(chosen), _CHUNK)]
    return standardise_scales(np.concatenate(chunks), config)


def standardise_scales(pooled: NDArray[np.float64], config: LaplacianConfig) -> Laplacian:
    """Return the filter bank from the pooled responses of normal patches, shape (n, scales).

    Raises
    ------
    TrainingError
        If they are all alike, or not finite.
    """
    deviations = pooled.std(axis=0)
    if not (deviations > 0).all():
        raise TrainingError("laplacian: the normal patches all answer alike; are the images blank?")
    return Laplacian(config, tuple(pooled.mean(axis=0).tolist()), tuple(deviations.tolist()))


def pooled_responses(patches: NDArray[np.uint16], config: LaplacianConfig) -> NDArray[np.float64]:
    """Return the mean of the strongest pixels per scale, shape (n, scales), float64."""
    return pool_values(_to_intensity(patches), config)


def pool_values(values: NDArray[np.float32], config: LaplacianConfig) -> NDArray[np.float64]:
    """Do the same to what is not an image of intensities, shape (n, rows, cols)."""
    return np.stack([_pool(response, config.strongest) for response in _responses(values, config)], axis=1)


def local_rms(values: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Return the root mean square in a Gaussian window around each pixel, (n, rows, cols), borders mirrored."""
    rows, cols = values.shape[1:]
    window_rows, window_cols = _smoothing_matrix(rows, sigma_px, 0), _smoothing_matrix(cols, sigma_px, 0).T
    rms: NDArray[np.float32] = np.sqrt(window_rows @ (values * values) @ window_cols)
    return rms


def _to_intensity(patches: NDArray[np.uint16]) -> NDArray[np.float32]:
    return patches.astype(np.float32) / np.float32(FULL_SCALE)


def _pool(response: NDArray[np.float32], strongest: int) -> NDArray[np.float64]:
    flat = response.reshape(len(response), -1)
    first = max(flat.shape[1] - strongest, 0)
    pooled: NDArray[np.float64] = np.partition(flat, first, axis=1)[:, first:].mean(axis=1, dtype=np.float64)
    return pooled


def _responses(values: NDArray[np.float32], config: LaplacianConfig) -> list[NDArray[np.float32]]:
    """Locally normalised responses, one (n, size, size) float32 array per scale, bright blobs positive."""
    rows, cols = values.shape[1:]
    responses = []
    for sigma in config.sigmas_px:
        across = _smoothing_matrix(rows, sigma, 2) @ values @ _smoothing_matrix(cols, sigma, 0).T
        along = _smoothing_matrix(rows, sigma, 0) @ values @ _smoothing_matrix(cols, sigma, 2).T
        response: NDArray[np.float32] = np.multiply(across + along, -np.float32(sigma * sigma))
        responses.append(response / (local_rms(response, config.neighbourhood_px) + np.float32(_FLOOR)))
    return responses


@cache
def _smoothing_matrix(length: int, sigma: float, order: int) -> NDArray[np.float32]:
    """A Gaussian filter, or its second derivative, as a (length, length) matrix with mirrored borders.

    A separable filter of a fixed-size patch is two matrix products, which BLAS does faster than any filtering loop.
    """
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    if order == 2:
        kernel *= offsets**2 / sigma**4 - 1 / sigma**2
        kernel -= kernel.mean()  # flat tissue must answer exactly 0, whatever the truncation
    matrix = np.zeros((length, length))
    for row in range(length):
        reflected = (row + offsets) % (2 * length)
        np.add.at(matrix[row], np.where(reflected < length, reflected, 2 * length - 1 - reflected), kernel)
    result = matrix.astype(np.float32)
    result.flags.writeable = False
    return result
