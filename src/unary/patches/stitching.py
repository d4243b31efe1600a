"""Laying patch maps back on the image that they came from."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from unary.patches.grid import Origins

_BAND_PX = 64


def taper_ramp(size_px: int) -> NDArray[np.float32]:
    """Return the weights of `taper_window` along one axis, shape (size,), float32, in (0, 1], highest in the middle."""
    ramp: NDArray[np.float32] = np.minimum(np.arange(1, size_px + 1), np.arange(size_px, 0, -1)).astype(np.float32)
    ramp /= ramp.max()
    return ramp


def taper_window(size_px: int) -> NDArray[np.float32]:
    """Return the weights of a patch's pixels where patches overlap, shape (size, size), float32, in (0, 1].

    A pyramid, highest in the middle. It is nowhere zero, so that a pixel that one patch alone covers, as those at the
    border and in the corners of an image, keeps that patch's value to the last bit but rounding.
    """
    ramp = taper_ramp(size_px)
    window: NDArray[np.float32] = np.outer(ramp, ramp)
    return window


def split_grid(origins: Origins, rows: int) -> list[Origins]:
    """Split patches, shape (n, 2), in reading order into runs of so many of the grid's rows each."""
    tops, number = np.unique(origins[:, 0], return_inverse=True)
    bounds = np.searchsorted(number, np.arange(rows, len(tops), rows))
    return [run for run in np.split(origins, bounds) if len(run)]


def add_tapered(sums: NDArray[np.float32], maps: NDArray[np.float32], origins: Origins) -> None:
    """Add maps of patches, (n, size, size), times `taper_window`, to the sums of their image, (rows, cols), in place.

    What reaches past the border is left out. `OverlapWeights.divide` then makes means of the sums.
    """
    for weighted, (row, col) in zip(taper_window(maps.shape[-1]) * maps, origins.tolist(), strict=True):
        window = sums[row : row + len(weighted), col : col + len(weighted)]
        window += weighted[: window.shape[0], : window.shape[1]]


class OverlapWeights:
    """What the weights of an image's patches add up to, so that sums of weighted patches become their means.

    Weights are a product of one along the rows and one along the columns, so that patches of one row are added up as
    lines; whole numbers are exact up to 2**24.
    """

    def __init__(self, origins: Origins, size_px: int, cols: int) -> None:
        """Take all patches, and the columns of the image."""
        self._ramp = taper_ramp(size_px)
        self._lines = defaultdict[int, NDArray[np.float32]](lambda: np.zeros(cols + size_px, np.float32))
        for top, col in origins.tolist():
            self._lines[top][col : col + size_px] += self._ramp

    def divide(self, sums: NDArray[np.float32], first_row: int = 0) -> None:
        """Turn sums into means, in place; NaN where no patch lies.

        ``sums``, shape (rows, cols), float32, is the image, or its rows from ``first_row`` on. May be called from
        several threads.
        """
        for start in range(0, len(sums), _BAND_PX):  # a few rows at a time, whose weights stay near the processor
            band = sums[start : start + _BAND_PX]
            total = np.zeros(band.shape, np.float32)
            for top, line in self._lines.items():
                row = top - first_row - start
                if -len(self._ramp) < row < len(band):
                    window = total[max(row, 0) : row + len(self._ramp)]
                    window += np.outer(self._ramp[max(-row, 0) : max(-row, 0) + len(window)], line[: band.shape[1]])
            total[total == 0] = np.nan
            band /= total
