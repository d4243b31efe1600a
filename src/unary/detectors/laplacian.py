"""The no-learning baseline: a multi-scale Laplacian of Gaussian with local normalisation.

A microcalcification is a bright speck of a few pixels. The negative Laplacian of a Gaussian of matching width responds
to it; divided by the response's own local root mean square it no longer favours busy tissue, and the mean of the
strongest few pixels is not diluted by the thousands of quiet ones, as a patch-wide RMSE is. Only two numbers per scale,
the mean and spread of that pooled response on normal patches, are estimated. A learned detector that does not beat
this has no claim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from unary.detectors.filters import bend_kernel, gaussian_kernel, mirror_kernel
from unary.detectors.laplacian_native import CompiledFilters, compile_filters
from unary.detectors.protocol import DetectorState, Examination, Grid, Knowledge, View
from unary.detectors.states import describe_config, read_config, require_fitted, require_size
from unary.detectors.windows import PatchExamination, examine_in_batches, examine_windows, spread_evenly
from unary.errors import TrainingError, require_positive
from unary.patches.grid import Origins
from unary.patches.patch_set import PatchSet, find_constant
from unary.patches.preparation import FULL_SCALE
from unary.training.context import FitContext

_FLOOR = 1e-4  # of intensity, added to the local RMS: an empty region answers 0 rather than noise over noise
_WIDEST_PX = 1000.0  # of a filter
_FITTED_PATCHES = 4000  # more say nothing new

Values = NDArray[np.uint16] | NDArray[np.float32]
"""Patches, (n, rows, cols): uint16, 65535 being intensity 1, or values of any kind in float32."""


@dataclass(frozen=True)
class LaplacianConfig:
    """Parameters of the filter bank.

    Attributes
    ----------
    sigmas_px
        Widths of the Gaussians in pixels; a disc of radius r answers most at r / sqrt(2).
    neighbourhood_px
        Standard deviation of the Gaussian window of the local root mean square.
    strongest
        How many of the largest pixels of a patch are averaged.
    """

    sigmas_px: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    neighbourhood_px: float = 16.0
    strongest: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "sigmas_px", "neighbourhood_px", "strongest")
        if max(*self.sigmas_px, self.neighbourhood_px) > _WIDEST_PX:
            raise ValueError(
                f"sigmas_px and neighbourhood_px must not exceed {_WIDEST_PX:g} px, got {self.sigmas_px} and "
                f"{self.neighbourhood_px}"
            )


COARSE_LAPLACIAN = LaplacianConfig((0.7, 1.0, 1.5, 2.0, 3.0, 4.0), 8.0, 4)
"""The baseline's parameters on a working grid of about twice the stored spacing."""


@dataclass(frozen=True, eq=False)
class Laplacian:
    """Laplacian of Gaussian at several scales, locally normalised, strongest pixels; nothing is learned.

    ``means`` and ``deviations`` are per scale, of the pooled response on normal patches, and None before `fit`;
    ``size_px`` is the side of the patches it was fitted on.
    """

    grid: ClassVar[Grid] = "stored"
    knowledge: ClassVar[Knowledge] = "no learning"

    config: LaplacianConfig = LaplacianConfig()
    means: tuple[float, ...] | None = field(default=None, repr=False)
    deviations: tuple[float, ...] | None = field(default=None, repr=False)
    size_px: int | None = None

    def fit(self, normals: PatchSet, context: FitContext) -> Self:
        """Estimate the response of normal tissue on at most 4,000 evenly spaced patches."""
        return self.fit_values(normals, lambda patches: patches, name="laplacian", title=context.name_bar("laplacian"))

    def fit_values(
        self,
        normals: PatchSet,
        convert: Callable[[NDArray[np.uint16]], Values],
        *,
        name: str,
        title: str | None = None,
    ) -> Self:
        """Do the same to what is made of patches, (n, rows, cols), such as the error of a reconstruction.

        ``name`` is that of the detector, for messages; with a title, a bar is shown.

        Raises
        ------
        TrainingError
            If there are fewer than two patches, or their values are all alike or not finite.
        """
        if len(normals) < 2:
            raise TrainingError(f"{name} needs at least two normal patches, there are {len(normals)}")
        pooled = examine_in_batches(
            lambda patches: pool_values(convert(patches), self.config),
            normals.gather,
            spread_evenly(len(normals), _FITTED_PATCHES),
            title=title,
        )
        return self.fit_pooled(pooled, size_px=normals.size_px, name=name)

    def fit_pooled(self, pooled: NDArray[np.float64], *, size_px: int, name: str = "laplacian") -> Self:
        """Do the same to what `pool_values` makes of normal patches, of shape (n, scales); raises as `fit_values`."""
        pooled = pooled[spread_evenly(len(pooled), _FITTED_PATCHES)]
        if not np.isfinite(pooled).all():
            raise TrainingError(f"{name}: normal patches do not answer with finite numbers; has training diverged?")
        deviations = pooled.std(axis=0)
        if not (deviations > 0).all():
            raise TrainingError(f"{name}: the normal patches all answer alike; are the images blank?")
        means, spread = tuple(pooled.mean(axis=0).tolist()), tuple(deviations.tolist())
        return dataclasses.replace(self, means=means, deviations=spread, size_px=size_px)

    def score_pooled(self, pooled: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of patches, shape (n,), from what `pool_values` makes of them, (n, scales)."""
        means, deviations = require_fitted(self.means, "laplacian"), require_fitted(self.deviations, "laplacian")
        scores: NDArray[np.float64] = ((pooled - np.asarray(means)) / np.asarray(deviations)).max(axis=1)
        return scores

    def examine(self, view: View, origins: Origins, *, size_px: int, with_map: bool = True) -> Examination:
        """Score by the largest standardised pooled response over scales.

        The map holds, at each pixel, the response of the best scale in standard deviations of what the strongest
        pixels of normal patches reach.
        """
        require_size(size_px, require_fitted(self.size_px, "laplacian"), "laplacian")
        return examine_windows(
            lambda patches: PatchExamination(np.empty(0), self.draw_maps(patches)),
            *(view, origins),
            size_px=size_px,
            with_map=with_map,
            score=self.score_values,
        )

    def score_values(self, values: Values) -> NDArray[np.float64]:
        """Return the scores of `examine_values` alone, several times as fast."""
        return self.score_pooled(pool_values(values, self.config))

    def examine_patches(self, patches: NDArray[np.uint16]) -> PatchExamination:
        """Examine patches of shape (n, size, size), uint16, 65535 being intensity 1."""
        return self.examine_values(patches)

    def examine_values(self, values: Values) -> PatchExamination:
        """Do the same to what is not an image of intensities, shape (n, rows, cols), such as a residual."""
        return PatchExamination(self.score_values(values), self.draw_maps(values))

    def draw_maps(self, values: Values) -> NDArray[np.float32]:
        """Return the maps of `examine_values` alone."""
        means, deviations = require_fitted(self.means, "laplacian"), require_fitted(self.deviations, "laplacian")
        compiled = _compile(values, self.config)
        if compiled is not None:
            return compiled.draw_maps(values, means, deviations)
        maps = np.full(values.shape, -np.inf, np.float32)
        responses = compute_responses(as_values(values), self.config)
        for response, mean, deviation in zip(responses, means, deviations, strict=True):
            np.maximum(maps, (response - np.float32(mean)) / np.float32(deviation), out=maps)
        return maps

    def get_state(self) -> DetectorState:
        """Return configuration, means and deviations as arrays, float64, and the side of patches."""
        fitted = {"means": self.means, "deviations": self.deviations}
        tensors = {name: np.asarray(require_fitted(values, "laplacian")) for name, values in fitted.items()}
        return DetectorState({"config": describe_config(self.config), "size_px": self.size_px}, tensors)

    @classmethod
    def from_state(cls, state: DetectorState) -> Self:
        config = read_config(LaplacianConfig, state.settings["config"])
        for name in ("means", "deviations"):
            values = state.tensors[name]
            if values.shape != (len(config.sigmas_px),) or values.dtype != np.float64 or not np.isfinite(values).all():
                raise ValueError(f"{name} must hold one finite number for each of the {len(config.sigmas_px)} scales")
        means, deviations = (tuple(state.tensors[name].tolist()) for name in ("means", "deviations"))
        fitted = cls(config, means, deviations, state.settings["size_px"])
        require_positive(fitted, "deviations", "size_px")
        return fitted


def pool_patch_set(
    patches: PatchSet, config: LaplacianConfig = LaplacianConfig(), *, title: str | None = None
) -> NDArray[np.float64]:
    """Return `pool_values` of every patch, shape (n, scales): once for any number of fits and scorings.

    Patches of one single value answer 0 and take no time. With a title, a bar is shown.
    """
    pooled = np.zeros((len(patches), len(config.sigmas_px)))
    varied = np.flatnonzero(find_constant(patches) < 0)
    if len(varied):
        pooled[varied] = examine_in_batches(lambda some: pool_values(some, config), patches.gather, varied, title=title)
    return pooled


def pool_values(values: Values, config: LaplacianConfig) -> NDArray[np.float64]:
    """Return the mean of the strongest pixels per scale, shape (n, scales), float64.

    Compiled where that can be; the difference is that of rounding in float32.
    """
    compiled = _compile(values, config)
    if compiled is None:
        return pool_plainly(values, config)
    pooled = compiled.pool(values)
    left = np.isnan(pooled).any(axis=1)
    if left.any():
        pooled[left] = pool_plainly(values[left], config)
    return pooled


def _compile(values: Values, config: LaplacianConfig) -> CompiledFilters | None:
    """The compiled filters for patches of this size, if there are any."""
    rows, cols = values.shape[1:]
    if rows != cols:
        return None
    return compile_filters(rows, config.sigmas_px, config.neighbourhood_px, config.strongest, floor=_FLOOR)


def as_values(values: Values) -> NDArray[np.float32]:
    """Return patches as intensities, and values as they are, float32."""
    return values.astype(np.float32) / np.float32(FULL_SCALE if values.dtype == np.uint16 else 1)


def pool_plainly(values: Values, config: LaplacianConfig) -> NDArray[np.float64]:
    """Do the same in numpy."""
    responses = compute_responses(as_values(values), config)
    return np.stack([pool_strongest(response, config.strongest) for response in responses], axis=1)


def compute_responses(values: NDArray[np.float32], config: LaplacianConfig) -> list[NDArray[np.float32]]:
    """Return locally normalised responses, (n, rows, cols), float32, one array per scale; bright blobs positive."""
    rows, cols = values.shape[1:]
    responses = []
    for sigma in config.sigmas_px:
        across = _smoothing_matrix(rows, sigma, 2) @ values @ _smoothing_matrix(cols, sigma, 0).T
        along = _smoothing_matrix(rows, sigma, 0) @ values @ _smoothing_matrix(cols, sigma, 2).T
        response: NDArray[np.float32] = np.multiply(across + along, -np.float32(sigma * sigma))
        responses.append(response / (local_rms(response, config.neighbourhood_px) + np.float32(_FLOOR)))
    return responses


def local_rms(values: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Return the root mean square in a Gaussian window around each pixel, (n, rows, cols), borders mirrored."""
    rows, cols = values.shape[1:]
    window_rows, window_cols = _smoothing_matrix(rows, sigma_px, 0), _smoothing_matrix(cols, sigma_px, 0).T
    rms: NDArray[np.float32] = np.sqrt(window_rows @ (values * values) @ window_cols)
    return rms


def pool_strongest(response: NDArray[np.float32], strongest: int) -> NDArray[np.float64]:
    """Return the mean of the strongest pixels of each patch, shape (n,), of a response of shape (n, rows, cols)."""
    flat = response.reshape(len(response), -1)
    first = max(flat.shape[1] - strongest, 0)
    pooled: NDArray[np.float64] = np.partition(flat, first, axis=1)[:, first:].mean(axis=1, dtype=np.float64)
    return pooled


@cache
def _smoothing_matrix(length: int, sigma: float, order: Literal[0, 2]) -> NDArray[np.float32]:
    """A Gaussian filter, or its second derivative, as a (length, length) matrix with mirrored borders.

    A separable filter of a fixed-size patch is two matrix products, which BLAS does faster than any filtering loop.
    """
    kernel = gaussian_kernel(sigma) if order == 0 else bend_kernel(sigma)
    result = mirror_kernel(kernel, length).astype(np.float32)
    result.flags.writeable = False
    return result
