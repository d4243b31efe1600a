"""Prominence: how bright a region is within its own breast. No learning.

A mass is a region of several millimetres that is denser than the tissue around it. Its brightness in absolute terms
says more about the patient than about the lesion; its standing among the regions of the same breast does not. The
mean over some millimetres, less the median of the breast and divided by its spread, is that standing. Reason to
exist: it needs no training, sees what the speck detectors cannot, and no learned mass detector was accepted here that
did not beat it.

What it assumes: that the whole breast is given, not a cut-out, and that the densest region deserves the look. The
pectoral muscle of an oblique view is such a region and is its usual false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.detectors.tissue import Strips

_COARSE = 4  # the mean over millimetres needs no fine grid


@dataclass(frozen=True)
class Prominence:
    """Regional brightness against the breast's own distribution.

    Attributes
    ----------
    region_px
        Standard deviation of the Gaussian mean, in working pixels; 32 are 4.5 mm at 0.14 mm per pixel.
    """

    region_px: float = 32.0

    def __post_init__(self) -> None:
        if not self.region_px > 0:
            raise ValueError(f"region_px must be positive, got {self.region_px}")

    def map_tissue(self, tissue: Strips) -> NDArray[np.float32]:
        """Return the standing of each pixel's region, shape (rows, cols), in spreads above the breast's median."""
        strips = [
            (_block_means(strip.mask.astype(np.float32)), _block_means(strip.intensity * strip.mask))
            for strip in tissue.strips(0)  # a strip begins at a multiple of the block
        ]
        inside, bright = (np.concatenate(parts) for parts in zip(*strips, strict=True))
        sigma = self.region_px / _COARSE
        regional = ndimage.gaussian_filter(bright, sigma) / (ndimage.gaussian_filter(inside, sigma) + 1e-3)
        own = regional[inside > 0.5]
        rows, cols = tissue.mask.shape
        if own.size == 0 or not own.std() > 0:
            return np.zeros((rows, cols), np.float32)
        standing = ((regional - np.median(own)) / own.std()).astype(np.float32)
        return np.repeat(np.repeat(standing, _COARSE, axis=1)[:, :cols], _COARSE, axis=0)[:rows]


def _block_means(values: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, cols = values.shape
    padded = np.pad(values, ((0, -rows % _COARSE), (0, -cols % _COARSE)))
    blocks = padded.reshape(padded.shape[0] // _COARSE, _COARSE, padded.shape[1] // _COARSE, _COARSE)
    means: NDArray[np.float32] = blocks.mean(axis=(1, 3))
    return means
