"""The Laplacian of Gaussian over a whole image: what `unary.detectors.laplacian` does to patches, for the fusion.

Three things differ from the yardstick, which stays as it is. The skin line is not an edge (`unary.detectors.tissue`).
A patch's border is not a border, since the surroundings are there. And a response is divided by the geometric mean of
its local and its image-wide root mean square: the local one alone lets a large ring hide in the noise that it makes
itself, and forgives faint texture in quiet fat; the image-wide one alone lets dense tissue win. Nothing is learned but
the mean and spread of each scale's pooled response on normal patches. Reason to exist: without any learning it is far
ahead of the yardstick on calcifications (``docs/results.md``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unary.detectors.filters import gaussian_laplace, smooth_gaussian
from unary.detectors.laplacian import LaplacianConfig
from unary.training.threads import map_in_threads
from unary.detectors.tissue import Strip, Strips, find_typical, sample_scale
from unary.errors import TrainingError

SIGMAS_PX = (0.7, 1.0, 1.5, 2.0)
NEIGHBOURHOOD_PX = 8.0
STRONGEST = 2
_FLOOR = 1e-4
_HALO_PX = 8 + 32  # both Gaussians to four of their widths
_Measured = tuple[Strip, int, NDArray[np.float32], NDArray[np.float32]]
COARSE_LAPLACIAN = LaplacianConfig((0.7, 1.0, 1.5, 2.0, 3.0, 4.0), 8.0, 4)
"""The yardstick's parameters on a grid of twice the spacing."""


@dataclass(frozen=True)
class DenseLaplacian:
    """Per scale, mean and standard deviation of the pooled response on normal patches."""

    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def map_tissue(self, tissue: Strips) -> NDArray[np.float32]:
        """Return the best scale's standardised response, shape (rows, cols)."""
        best = np.full(tissue.mask.shape, -np.inf, np.float32)
        for rows, scale, response in _respond(tissue):
            response -= np.float32(self.means[scale])
            response /= np.float32(self.deviations[scale])
            np.maximum(best[rows], response, out=best[rows])
        return best


def scale_responses(tissue: Strips) -> list[NDArray[np.float32]]:
    """Return the normalised response of each scale, (rows, cols) each; 0 outside the breast."""
    responses = [np.zeros(tissue.mask.shape, np.float32) for _ in SIGMAS_PX]
    for rows, scale, response in _respond(tissue):
        responses[scale][rows] = response
    return responses


def _respond(tissue: Strips) -> Iterator[tuple[slice, int, NDArray[np.float32]]]:
    """Yield rows of the image, the number of a scale, and its normalised response there; 0 outside the breast.

    The image is gone through twice, since the image-wide scale must be known first; one strip is measured once.
    """
    shape = (int(tissue.mask.shape[0]), int(tissue.mask.shape[1]))
    first: Iterable[_Measured] = _measure(tissue)
    if tissue.strip_rows >= shape[0]:
        first = list(first)
    samples: list[list[NDArray[np.float32]]] = [[] for _ in SIGMAS_PX]
    for strip, scale, _, local in first:
        samples[scale].append(sample_scale(strip, local, shape))
    typical = list(map_in_threads(find_typical, samples))

    def normalise(measured: _Measured) -> tuple[slice, int, NDArray[np.float32]]:
        strip, scale, response, local = measured
        image_wide = typical[scale]
        if image_wide is None:
            return strip.rows, scale, np.zeros_like(response)
        normaliser = np.sqrt((local + np.float32(_FLOOR)) * np.float32(image_wide + _FLOOR))
        return strip.rows, scale, np.where(strip.mask[strip.own], response / normaliser, np.float32(0))

    if isinstance(first, list):
        yield from map_in_threads(normalise, first)
    else:  # one strip at a time, however many threads there are
        yield from map(normalise, _measure(tissue))


def _measure(tissue: Strips) -> Iterator[_Measured]:
    """Yield strip, scale, response and its local root mean square on the strip's own rows, scales in their order."""
    for strip in tissue.strips(_HALO_PX):
        answers = map_in_threads(functools.partial(_measure_scale, strip), SIGMAS_PX)
        for scale, (response, local) in enumerate(answers):
            yield strip, scale, response, local


def _measure_scale(strip: Strip, sigma: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    response = gaussian_laplace(torch.from_numpy(strip.intensity), sigma).mul_(-(sigma**2))
    local = smooth_gaussian(response.square(), NEIGHBOURHOOD_PX)[strip.own].clamp_(min=0).sqrt_()
    return response[strip.own].numpy(), local.numpy()


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
