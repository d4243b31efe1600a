"""Filters, cells and medians in a graph: what `unary.detectors.filters` and its neighbours do to arrays.

All values are (rows, cols), float32, where nothing else is said.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unary.detectors.filters import MEAN_WINDOW_PX, gaussian_kernel
from unary.detectors.graphs.builder import Graph, Operand, Value

Border = Literal["reflect", "edge", "zero"]
_BLOCK_PX = 64


def correlate(g: Graph, values: Value, kernel: NDArray[np.float64], *, axis: int, border: Border = "reflect") -> Value:
    """Correlate along an axis; beyond the border zero, the outermost value, or a mirror image that begins with it.

    A block of 64 results is one band matrix times what it sees, written as a convolution with a channel for each
    result of the block: a convolution with a single channel is several times as slow.
    """
    reach, length = len(kernel) // 2, g.length(values, axis)
    values = extend(g, values, reach, axis=axis, border=border)
    blocks = (length + np.asarray([_BLOCK_PX - 1])) // np.asarray([_BLOCK_PX])
    missing: list[int | Value] = [0, 0]
    missing[axis] = blocks * np.asarray([_BLOCK_PX]) - length
    padded = g.pad(values, [0, 0], missing, np.float32(0))
    band = np.zeros((_BLOCK_PX, _BLOCK_PX + 2 * reach), np.float32)
    for row in range(_BLOCK_PX):
        band[row, row : row + len(kernel)] = kernel
    shape, strides = [_BLOCK_PX, 1, 1, 1], [1, 1]
    shape[2 + axis], strides[axis] = band.shape[1], _BLOCK_PX
    found = g.op("Conv", g.planes(padded), band.reshape(shape), strides=strides)
    found = g.op("Transpose", found, perm=[0, 2, 1, 3] if axis == 0 else [0, 2, 3, 1])
    rows, cols = (-1 if axis == 0 else g.length(values, 0)), (-1 if axis == 1 else g.length(values, 1))
    return g.cut(g.reshape(found, rows, cols), axis, 0, length)


def extend(g: Graph, values: Value, reach: int, *, axis: int, border: Border) -> Value:
    """Return values with so many more on either side of an axis."""
    if reach == 0:
        return values
    if border != "reflect":
        more = [reach if each == axis else 0 for each in (0, 1)]
        mode = "constant" if border == "zero" else "edge"
        fill = np.float32(0) if border == "zero" else None
        return g.op("Pad", values, np.asarray([*more, *more], np.int64), fill, mode=mode)
    length = g.length(values, axis)
    before = _mirror(g, np.arange(-reach, 0), length)
    after = _mirror(g, length + np.arange(reach), length)
    first, last = (g.op("Gather", values, places, axis=axis) for places in (before, after))
    return g.op("Concat", first, values, last, axis=axis)


def _mirror(g: Graph, places: Operand, length: Value) -> Value:
    """The places of an axis that those beyond its border mirror, however often."""
    period = length * np.asarray([2])
    within = g.op("Mod", places, period)  # not negative, as in Python
    return g.where(within < length, within, period - np.asarray([1]) - within)


def correlate_both(
    g: Graph, values: Value, down: NDArray[np.float64], across: NDArray[np.float64], *, border: Border = "reflect"
) -> Value:
    """Correlate along rows' axis, then along columns'."""
    return correlate(g, correlate(g, values, down, axis=0, border=border), across, axis=1, border=border)


def smooth_gaussian(g: Graph, values: Value, sigma: float, *, border: Border = "reflect") -> Value:
    """Return the Gaussian mean of `scipy.ndimage.gaussian_filter`."""
    kernel = gaussian_kernel(sigma)
    return correlate_both(g, values, kernel, kernel, border=border)


def gaussian_laplace(g: Graph, values: Value, sigma: float) -> Value:
    """Return what `unary.detectors.filters.gaussian_laplace` does."""
    kernel, bent = gaussian_kernel(sigma), gaussian_kernel(sigma, 2)
    return correlate_both(g, values, bent, kernel) + correlate_both(g, values, kernel, bent)


def smooth_windows(g: Graph, values: Value, window_px: int) -> Value:
    """Return what `unary.detectors.tissue.smooth` does: two passes of a square window, zero beyond the border."""
    window = np.full(window_px, 1 / window_px)
    once = correlate_both(g, values, window, window, border="zero")
    return g.op("Relu", correlate_both(g, once, window, window, border="zero"))


def subtract_local_mean(g: Graph, intensity: Value) -> Value:
    """Return what `unary.detectors.filters.subtract_local_mean` does."""
    window = np.full(MEAN_WINDOW_PX, 1 / MEAN_WINDOW_PX)
    twice = np.convolve(window, window)
    return intensity - correlate_both(g, intensity, twice, twice, border="edge")


def sum_cells(g: Graph, values: Value, step: int) -> Value:
    """Return what `unary.detectors.coarse.sum_cells` does."""
    rows, cols = g.length(values, 0), g.length(values, 1)
    high, wide = ((length + np.asarray([step - 1])) // np.asarray([step]) for length in (rows, cols))
    side = np.asarray([step])
    padded = g.pad(values, [0, 0], [high * side - rows, wide * side - cols], np.float32(0))
    cells = g.reshape(padded, high, step, wide, step)
    return g.op("ReduceSum", cells, np.asarray([1, 3]), keepdims=0)


def enlarge_cells(g: Graph, cells: Value, rows: Value, cols: Value, step: int) -> Value:
    """Return what `unary.detectors.coarse.enlarge_cells` does, of any type."""
    high, wide = g.length(cells, 0), g.length(cells, 1)
    spread = g.op("Expand", g.reshape(cells, high, 1, wide, 1), g.join(high, step, wide, step))
    side = np.asarray([step])
    return g.cut(g.cut(g.reshape(spread, high * side, wide * side), 0, 0, rows), 1, 0, cols)


def pick(g: Graph, values: Value, chosen: Value) -> Value:
    """Return the values at places that are chosen, bool, of the same shape; shape (n,)."""
    return g.op("Compress", g.reshape(values, -1), g.reshape(chosen, -1))


def find_median(g: Graph, values: Value) -> Value:
    """Return the median of values, shape (n,), a scalar; 0 where there are none."""
    count = g.length(values, 0)
    spare = g.op("ConstantOfShape", g.cast(g.op("Equal", count, np.asarray([0])), np.int64))
    values = g.op("Concat", values, spare, axis=0)
    count = g.length(values, 0)
    half = count // np.asarray([2])
    lower = g.ops("TopK", values, half + np.asarray([1]), largest=0, sorted=0, outputs=2)[0]
    fewer = g.op("Min", g.length(lower, 0), np.asarray([2]))
    two = g.ops("TopK", lower, fewer, outputs=2)[0]
    upper, next_lower = g.op("ReduceMax", two, keepdims=0), g.op("ReduceMin", two, keepdims=0)
    even = g.scalar(g.op("Equal", half + half, count))
    return g.where(even, (upper + next_lower) * np.float32(0.5), upper)


def measure_spread(g: Graph, values: Value) -> Value:
    """Return the standard deviation of values, shape (n,), a scalar."""
    away = values - g.mean(values)
    return g.op("Sqrt", g.mean(away * away))


def grow(g: Graph, region: Value, shape: NDArray[np.bool_]) -> Value:
    """Return a region, bool, dilated by a square shape with an odd side."""
    reach = shape.shape[0] // 2
    kernel = shape.astype(np.float32)[None, None]
    counted = g.op("Conv", g.planes(g.cast(region, np.float32)), kernel, pads=[reach] * 4)
    return g.plane(counted) > np.float32(0.5)


def erode(g: Graph, mask: Value, reach: int) -> Value:
    """Return what `unary.patches.preparation.erode_mask` does."""
    outside = g.planes(g.cast(~mask, np.float32))
    side = 2 * reach + 1
    outside = g.op("MaxPool", outside, kernel_shape=[side, 1], pads=[reach, 0, reach, 0])
    outside = g.op("MaxPool", outside, kernel_shape=[1, side], pads=[0, reach, 0, reach])
    return g.plane(outside) < np.float32(0.5)
