"""Laying patch maps back on the image that they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

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


def stitch_patches(
    batches: Iterable[tuple[NDArray[np.float32], Origins]],
    shape: tuple[int, int],
    *,
    blend: Literal["mean", "max", "taper"] = "mean",
) -> NDArray[np.float32]:
    """Lay patch maps back on the image they came from, a batch at a time so that memory stays bounded.

    Parameters
    ----------
    batches
        Pairs of maps, shape (n, size, size), float32, and their origins, shape (n, 2).
    shape
        Rows and columns of the result.
    blend
        Where patches overlap: ``"mean"`` averages, ``"max"`` keeps the largest, ``"taper"`` averages with the weights
        of `taper_window`, which hides the seams.

    Returns
    -------
    NDArray
        Shape ``shape``, float32. NaN where no patch lies: not scored is not the same as normal.
    """
    if blend not in ("mean", "max", "taper"):
        raise ValueError(f"blend must be 'mean', 'max' or 'taper', not {blend!r}")
    result = np.full(shape, np.nan, np.float32) if blend == "max" else np.zeros(shape, np.float32)
    laid: list[tuple[int, Origins]] = []
    for maps, origins in batches:
        laid.append((int(maps.shape[-1]), origins))
        if blend == "max":
            for window, inside in _each_covered(result, maps, origins):
                np.fmax(window, inside, out=window)
        else:
            _add_weighted(result, maps, origins, _blend_ramp(blend, int(maps.shape[-1])))
    if blend != "max":
        OverlapWeights(laid, shape[1], blend=blend).divide(result)
    return result


def split_grid(origins: Origins, rows: int) -> list[Origins]:
    """Split patches in reading order into runs of so many of the grid's rows each."""
    tops, number = np.unique(origins[:, 0], return_inverse=True)
    bounds = np.searchsorted(number, np.arange(rows, len(tops), rows))
    return [run for run in np.split(origins, bounds) if len(run)]


def add_tapered(sums: NDArray[np.float32], maps: NDArray[np.float32], origins: Origins) -> None:
    """Add patch maps, shape (n, size, size), float32, times the weights of `taper_window`, to an image's ``sums``."""
    _add_weighted(sums, maps, origins, taper_ramp(int(maps.shape[-1])))


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
    blend
        As for `stitch_patches`.
    """

    def __init__(
        self, laid: Iterable[tuple[int, Origins]], cols: int, *, blend: Literal["mean", "taper"] = "taper"
    ) -> None:
        self._lines: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]] = []
        for size_px, origins in laid:
            ramp = _blend_ramp(blend, size_px)
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


def _each_covered(
    image: NDArray[np.float32], maps: NDArray[np.float32], origins: Origins
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """What a patch covers of the image, and what of the patch lies in it."""
    size_px = int(maps.shape[-1])
    for patch, (row, col) in zip(maps, origins.tolist(), strict=True):
        window = image[row : row + size_px, col : col + size_px]
        yield window, patch[: window.shape[0], : window.shape[1]]


def _add_weighted(
    sums: NDArray[np.float32], maps: NDArray[np.float32], origins: Origins, ramp: NDArray[np.float32]
) -> None:
    weights = np.outer(ramp, ramp)
    for window, inside in _each_covered(sums, maps, origins):
        window += weights[: window.shape[0], : window.shape[1]] * inside


def _blend_ramp(blend: Literal["mean", "taper"], size_px: int) -> NDArray[np.float32]:
    """A patch's weights along one axis."""
    return taper_ramp(size_px) if blend == "taper" else np.ones(size_px, np.float32)
