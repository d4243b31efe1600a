"""Tissue on a coarse grid, for what is as large as a mass: its brightness, where it is, and means that stay inside.

Outside the tissue nothing is known. A mean near the edge is that of the tissue within reach, by weight, so that an edge
of the film or of a muscle that is left out is no step of brightness.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unary.detectors.filters import smooth_gaussian
from unary.detectors.tissue import STRIP_STEP, Tissue
from unary.training.threads import using_threads

STEP = 8  # working pixels of a cell, 1.12 mm of a mammogram
MOSTLY = 0.5
LEAST_WEIGHT = 1e-3

assert STRIP_STEP % STEP == 0  # a strip begins with a cell


@dataclass(frozen=True, eq=False)
class Coarse:
    """An image in cells of 8 x 8 working pixels, each (rows, cols).

    ``bright``, float32, is the mean intensity of a cell's tissue, 0 outside; ``inside``, bool, where at least half of
    a cell is tissue.
    """

    bright: NDArray[np.float32]
    inside: NDArray[np.bool_]

    @cached_property
    def muscle(self) -> NDArray[np.bool_]:
        """Where the pectoral muscle is, (rows, cols), searched for once."""
        from unary.detectors.pectoral import find_muscle

        return find_muscle(self)

    def leave_out(self, region: NDArray[np.bool_]) -> Coarse:
        """Return the same without a region, (rows, cols), as if it were no tissue."""
        kept = self.inside & ~region
        return Coarse(np.where(kept, self.bright, np.float32(0)), kept)


def shrink_tissue(tissue: Tissue) -> Coarse:
    """Return the cells of a tissue, those at the lower and right border smaller where the image ends."""
    if not tissue.mask.any():
        nothing = np.zeros([-(-length // STEP) for length in tissue.shape], np.float32)
        return Coarse(nothing, nothing > 0)
    strips = [
        (sum_cells(strip.mask.astype(np.float32), STEP), sum_cells(strip.intensity * strip.mask, STEP))
        for strip in tissue.strips(0)
    ]
    share, bright = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    inside = share >= MOSTLY * STEP * STEP
    return Coarse(np.where(inside, bright / np.maximum(share, 1), np.float32(0)).astype(np.float32), inside)


def enlarge_cells(cells: NDArray[Any], shape: tuple[int, int], step: int = STEP) -> NDArray[Any]:
    """Return the value of each pixel's cell, (rows, cols) of that shape, of as many pixels a side as ``step``."""
    rows, cols = shape
    return np.repeat(np.repeat(cells, step, axis=1)[:, :cols], step, axis=0)[:rows]


def smooth_inside(coarse: Coarse, sigma: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the Gaussian mean of the tissue around each cell, and how much of the Gaussian lies in tissue."""
    import torch

    with using_threads(1):  # on some processors several sum in another order
        weight = smooth_gaussian(torch.from_numpy(coarse.inside.astype(np.float32)), sigma).numpy()
        summed = smooth_gaussian(torch.from_numpy(np.ascontiguousarray(coarse.bright)), sigma).numpy()
    return summed / np.maximum(weight, np.float32(LEAST_WEIGHT)), weight


def sum_cells(values: NDArray[Any], step: int) -> NDArray[Any]:
    """Return the sum of each cell of ``step`` x ``step`` pixels, zero counting beyond the lower and right border."""
    padded = np.pad(values, [(0, -length % step) for length in values.shape])
    cells = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    sums: NDArray[Any] = cells.sum(axis=(1, 3))
    return sums
