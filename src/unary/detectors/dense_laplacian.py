"""The Laplacian of Gaussian over a whole image: what `unary.detectors.laplacian` does to patches, for the fusion.

Three things differ from the yardstick, which stays as it is. The skin line is not an edge (`unary.detectors.tissue`).
A patch's border is not a border, since the surroundings are there. And a response is divided by the geometric mean of
its local and its image-wide root mean square: the local one alone lets a large ring hide in the noise that it makes
itself, and forgives faint texture in quiet fat; the image-wide one alone lets dense tissue win. Nothing is learned but
the mean and spread of each scale's pooled response on normal patches. Reason to exist: without any learning it is far
ahead of the yardstick on calcifications (``docs/results.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.detectors.laplacian import LaplacianConfig
from unary.detectors.tissue import Tissue, share_scale
from unary.errors import TrainingError

SIGMAS_PX = (0.7, 1.0, 1.5, 2.0)
NEIGHBOURHOOD_PX = 8.0
STRONGEST = 2
_FLOOR = 1e-4
COARSE_LAPLACIAN = LaplacianConfig((0.7, 1.0, 1.5, 2.0, 3.0, 4.0), 8.0, 4)
"""The yardstick's parameters on a grid of twice the spacing."""


@dataclass(frozen=True)
class DenseLaplacian:
    """Per scale, mean and standard deviation of the pooled response on normal patches."""

    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def map_tissue(self, tissue: Tissue) -> NDArray[np.float32]:
        """Return the best scale's standardised response, shape (rows, cols)."""
        best = np.full(tissue.mask.shape, -np.inf, np.float32)
        for response, mean, deviation in zip(scale_responses(tissue), self.means, self.deviations, strict=True):
            np.maximum(best, (response - np.float32(mean)) / np.float32(deviation), out=best)
        return best


def scale_responses(tissue: Tissue) -> list[NDArray[np.float32]]:
    """Return the normalised response of each scale, (rows, cols) each; 0 outside the breast."""
    responses = []
    for sigma in SIGMAS_PX:
        response = -np.float32(sigma**2) * ndimage.gaussian_laplace(tissue.intensity, sigma)
        local = np.sqrt(np.maximum(ndimage.gaussian_filter(response * response, NEIGHBOURHOOD_PX), 0))
        normaliser = share_scale(local, tissue.mask, floor=_FLOOR)
        responses.append(np.where(tissue.mask, response / normaliser, np.float32(0)))
    return responses


def fit_dense_laplacian(pooled: Sequence[NDArray[np.float64]]) -> DenseLaplacian:
    """Return the detector from the pooled responses of normal patches, one array of shape (n,) per scale.

    Raises
    ------
    TrainingError
        If the patches show no structure.
    """
    means = tuple(float(values.mean()) for values in pooled)
    deviations = tuple(float(values.std()) for values in pooled)
    if not all(deviation > 0 for deviation in deviations):
        raise TrainingError("the normal patches all answer alike; are the images blank?")
    return DenseLaplacian(means, deviations)
