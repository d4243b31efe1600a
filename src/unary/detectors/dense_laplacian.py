"""The Laplacian of Gaussian over a whole image: what `unary.detectors.laplacian` does to patches, for the fusion.

Three things differ from the baseline, which stays as it is. The rim of the tissue is not an edge
(`unary.detectors.tissue`). A patch's border is not a border, since the surroundings are there. And a response is
divided by the geometric mean of its local and its image-wide root mean square: the local one alone lets a large ring
hide in the noise that it makes itself, and forgives faint texture in quiet regions; the image-wide one alone lets dense
tissue win. Nothing is learned but the mean and spread of each scale's pooled response on normal patches. Reason to
exist: without any learning it is far ahead of the baseline on calcifications (``docs/results/bench.md``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from unary.detectors.filters import gaussian_kernel, gaussian_laplace, smooth_gaussian
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.scoring import measure_normals
from unary.detectors.states import describe_config, read_config, require_fitted
from unary.detectors.tissue import Strip, Tissue, examine_answer, find_typical, pool_patches, sample_scale
from unary.errors import TrainingError, require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.threads import map_in_threads

FLOOR = 1e-4  # of intensity, added to either root mean square
_Measured = tuple[Strip, int, NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class DenseLaplacianConfig:
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

    sigmas_px: tuple[float, ...] = (0.7, 1.0, 1.5, 2.0)
    neighbourhood_px: float = 8.0
    strongest: int = 2

    def __post_init__(self) -> None:
        require_positive(self, "sigmas_px", "strongest")
        if not all(0.1 <= sigma <= 100 for sigma in (*self.sigmas_px, self.neighbourhood_px)):
            raise ValueError(
                f"sigmas_px and neighbourhood_px must lie in [0.1, 100] px: {self.sigmas_px}, {self.neighbourhood_px}"
            )


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of one scale's pooled response on normal patches."""

    mean: float
    deviation: float


@dataclass(frozen=True, eq=False)
class DenseLaplacian:
    """Multi-scale Laplacian of Gaussian over the whole image, in units of its local and image-wide strength.

    The score is the mean of a patch's strongest pixels; the map holds the best scale's response in standard deviations
    of what normal patches reach. That is in ``scales``, one for each width, None before fitting.
    """

    grid: ClassVar[Grid] = "working"
    knowledge: ClassVar[Knowledge] = "no learning"
    config: DenseLaplacianConfig = DenseLaplacianConfig()
    scales: tuple[Scale, ...] | None = None

    def fit(self, normals: PatchSet, context: FitContext) -> DenseLaplacian:
        """Measure the pooled response of each scale; see `unary.detectors.protocol.Detector.fit`."""
        if len(normals) < 2:
            raise TrainingError(f"dense_laplacian needs at least two normal patches, there are {len(normals)}")

        def pool(view: View, origins: Origins) -> list[NDArray[np.float64]]:
            return [
                pool_patches(response, origins, size_px=normals.size_px, strongest=self.config.strongest)
                for response in measure_responses(view.tissue, self.config)
            ]

        pooled = measure_normals(pool, normals, title=context.name_bar("dense_laplacian"))
        scales = tuple(Scale(float(values.mean()), float(values.std())) for values in pooled)
        if not all(scale.deviation > 0 for scale in scales):
            raise TrainingError("dense_laplacian: the normal patches all answer alike; are the images blank?")
        return dataclasses.replace(self, scales=scales)

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score and map a view; see `unary.detectors.protocol.Detector.examine`."""
        scales = require_fitted(self.scales, "dense_laplacian")
        best = np.full(view.shape, -np.inf, np.float32)
        for rows, number, response in _respond(view.tissue, self.config):
            response -= np.float32(scales[number].mean)
            response /= np.float32(scales[number].deviation)
            np.maximum(best[rows], response, out=best[rows])
        return examine_answer(view, best, origins, size_px=size_px, strongest=self.config.strongest, with_map=with_map)

    def get_state(self) -> DetectorState:
        """Return configuration and scales."""
        scales = [describe_config(scale) for scale in require_fitted(self.scales, "dense_laplacian")]
        return DetectorState({"config": describe_config(self.config), "scales": scales})

    @classmethod
    def from_state(cls, state: DetectorState) -> DenseLaplacian:
        config = read_config(DenseLaplacianConfig, state.settings["config"])
        scales = tuple(read_config(Scale, scale) for scale in state.settings["scales"])
        if len(scales) != len(config.sigmas_px) or not all(scale.deviation > 0 for scale in scales):
            raise ValueError(f"dense_laplacian: scales must be {len(config.sigmas_px)}, with positive deviations")
        return cls(config, scales)


def measure_responses(tissue: Tissue, config: DenseLaplacianConfig) -> list[NDArray[np.float32]]:
    """Return the normalised response of each scale, (rows, cols) each; 0 outside the tissue."""
    responses = [np.zeros(tissue.shape, np.float32) for _ in config.sigmas_px]
    for rows, scale, response in _respond(tissue, config):
        responses[scale][rows] = response
    return responses


def _respond(tissue: Tissue, config: DenseLaplacianConfig) -> Iterator[tuple[slice, int, NDArray[np.float32]]]:
    """Yield rows of the image, the number of a scale, and its normalised response there; 0 outside the tissue.

    The image is gone through twice, since the image-wide scale must be known first; one strip is measured once.
    """
    whole = tissue.strip_rows >= tissue.shape[0]
    first = list(_measure(tissue, config)) if whole else _measure(tissue, config)
    samples: list[list[NDArray[np.float32]]] = [[] for _ in config.sigmas_px]
    for strip, scale, _, local in first:
        samples[scale].append(sample_scale(strip, local, tissue.shape))
    typical = list(map_in_threads(find_typical, samples))

    def normalise(measured: _Measured) -> tuple[slice, int, NDArray[np.float32]]:
        strip, scale, response, local = measured
        image_wide = typical[scale]
        if image_wide is None or not strip.mask[strip.own].any():
            return strip.rows, scale, np.zeros_like(response)
        normaliser = np.sqrt((local + np.float32(FLOOR)) * np.float32(image_wide + FLOOR))
        return strip.rows, scale, np.where(strip.mask[strip.own], response / normaliser, np.float32(0))

    # One strip at a time, however many threads there are.
    yield from map_in_threads(normalise, first) if whole else map(normalise, _measure(tissue, config))


def _measure(tissue: Tissue, config: DenseLaplacianConfig) -> Iterator[_Measured]:
    """Yield strip, scale, response and its local root mean square on the strip's own rows, scales in their order."""
    halo = len(gaussian_kernel(max(config.sigmas_px))) // 2 + len(gaussian_kernel(config.neighbourhood_px)) // 2
    for strip in tissue.strips(halo):
        measure = functools.partial(_measure_scale, strip, config.neighbourhood_px)
        for scale, measured in enumerate(map_in_threads(measure, config.sigmas_px)):
            yield strip, scale, *measured


def _measure_scale(
    strip: Strip, neighbourhood_px: float, sigma: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if not strip.mask[strip.own].any():
        nothing = np.zeros(strip.mask[strip.own].shape, np.float32)
        return nothing, nothing
    response = gaussian_laplace(torch.from_numpy(strip.intensity), sigma).mul_(-(sigma**2))
    local = smooth_gaussian(response.square(), neighbourhood_px)[strip.own].clamp_(min=0).sqrt_()
    return response[strip.own].numpy(), local.numpy()
