"""Laying patch maps back on the image that they came from."""

from __future__ import annotations

from collections.abc import Iterable

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
    """Add the maps of patches, times the weights of `taper_window`, to the sums of their image, in place.

    `OverlapWeights.divide` then makes means of the sums.

    Parameters
    ----------
    sums
        Shape (rows, cols), float32. What reaches past its border is left out.
    maps
        Shape (n, size, size), float32.
    origins
        Shape (n, 2).
    """
    size_px = int(maps.shape[-1])
    weights = taper_window(size_px)
    for patch, (row, col) in zip(maps, origins.tolist(), strict=True):
        window = sums[row : row + size_px, col : col + size_px]
        high, wide = window.shape
        window += weights[:high, :wide] * patch[:high, :wide]


class OverlapWeights:
    """What the weights of an image's patches add up to, so that sums of weighted patches become their means.

    Weights are a product of one along the rows and one along the columns, so that patches of one row are added up as
    lines; whole numbers are exact up to 2**24.

    Parameters
    ----------
    laid
        Sides and origins of all patches.
    cols
        Of the image.
    """

    def __init__(self, laid: Iterable[tuple[int, Origins]], cols: int) -> None:
        self._lines: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]] = []
        for size_px, origins in laid:
            ramp = taper_ramp(size_px)
            for top in np.unique(origins[:, 0]).tolist():
                line = np.zeros(cols + size_px, np.float32)
                for col in origins[origins[:, 0] == top, 1].tolist():
                    line[col : col + size_px] += ramp
                self._lines.append((top, ramp[:, None], line[:cols]))

    def divide(self, sums: NDArray[np.float32], first_row: int = 0) -> None:
        """Turn sums into means, in place; NaN where no patch lies.

        ``sums``, shape (rows, cols), float32, is the image, or its rows from ``first_row`` on. May be called from
        several threads.
        """
        for start in range(0, len(sums), _BAND_PX):  # a few rows at a time, whose weights stay near the processor
            band = sums[start : start + _BAND_PX]
            total = np.zeros(band.shape, np.float32)
            for top, ramp, line in self._lines:
                row = top - first_row - start
                if -len(ramp) < row < len(band):
                    window = total[max(row, 0) : row + len(ramp)]
                    window += ramp[max(-row, 0) : max(-row, 0) + len(window)] * line
            total[total == 0] = np.nan
            band /= total
