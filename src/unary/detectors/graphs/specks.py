"""The graphs of `unary.detectors.dense_laplacian` and `unary.detectors.clusters`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from unary.detectors.clusters import COARSE, SPARE, Clusters
from unary.detectors.dense_laplacian import FLOOR, DenseLaplacian, DenseLaplacianConfig, Scale
from unary.detectors.graphs.builder import Graph, Value
from unary.detectors.graphs.filters import gaussian_laplace, smooth_gaussian, sum_cells
from unary.detectors.graphs.view import Examined, Inputs, examine_cells, find_typical, over_patches
from unary.detectors.states import require_fitted

_LOWEST = np.float32(-1e30)


def examine_dense_laplacian(g: Graph, view: Inputs, detector: DenseLaplacian) -> Examined:
    """Write what the detector does."""
    best = _find_best(g, view, detector.config, require_fitted(detector.scales, "dense_laplacian"))
    return examine_cells(g, view, best, 1, detector.config.strongest)


def _find_best(g: Graph, view: Inputs, config: DenseLaplacianConfig, scales: Sequence[Scale]) -> Value:
    """The response of the best scale."""
    best = None
    for sigma, scale in zip(config.sigmas_px, scales, strict=True):
        response = gaussian_laplace(g, view.intensity, sigma) * np.float32(-(sigma**2))
        local = smooth_gaussian(g, response * response, config.neighbourhood_px)
        local = g.op("Sqrt", g.op("Relu", local))
        image_wide = find_typical(g, local, view) + np.float32(FLOOR)
        normaliser = g.op("Sqrt", (local + np.float32(FLOOR)) * image_wide)
        response = g.where(view.tissue, response / normaliser, np.float32(0))
        standing = (response - np.float32(scale.mean)) / np.float32(scale.deviation)
        best = standing if best is None else g.op("Max", best, standing)
    assert best is not None
    return best


def examine_clusters(g: Graph, view: Inputs, detector: Clusters) -> Examined:
    """Write what the detector does."""
    laplacian = require_fitted(detector.laplacian, "clusters")
    scale = require_fitted(detector.scale, "clusters")
    response = _find_best(g, view, laplacian.config, require_fitted(laplacian.scales, "clusters"))
    response = g.where(view.tissue, response, _LOWEST)
    highest = g.plane(g.op("MaxPool", g.planes(response), kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    specks = (response > np.float32(scale.level)) & (response >= highest)
    above = (response - np.float32(scale.level)) / np.float32(scale.excess)
    counted = g.where(specks, g.op("Log", g.op("Relu", above) + np.float32(1)), np.float32(0))
    weight = sum_cells(g, counted, COARSE)
    inside = sum_cells(g, g.cast(view.tissue, np.float32), COARSE) * np.float32(1 / COARSE**2)
    sigma = detector.config.reach_px / COARSE
    around, share = (smooth_gaussian(g, plane, sigma, border="zero") for plane in (weight, inside))
    sums = around / (share + np.float32(SPARE)) * np.float32(2 * math.pi * sigma**2)
    sums = g.where(inside > np.float32(0), sums, np.float32(0))
    step, last = np.asarray([COARSE]), np.asarray([view.size_px + COARSE - 1])

    def score(row: Value, col: Value) -> Value:
        blocks = g.cut(g.cut(sums, 0, row // step, (row + last) // step), 1, col // step, (col + last) // step)
        return g.cast(g.largest(blocks), np.float64)

    return Examined(over_patches(g, view, score), sums, COARSE, view.tissue)
