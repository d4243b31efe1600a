"""Linear filters along one axis as products with banded matrices: several times as fast as scipy's loops.

An axis is cut into blocks; a block of the result is a small matrix, which holds the kernel once in every row, times
the block of the input and what the kernel reaches beyond it. That is more arithmetic than it need be, but at the speed
of a matrix product. In float32, which is precise enough for sums of tens of terms near 1. torch is imported where it is
used: an exported model reads tissue without.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

MEAN_WINDOW_PX = 15
_BLOCK_PX = 64
_TRUNCATE = 4.0  # standard deviations, as in scipy


def gaussian_kernel(sigma: float, order: Literal[0, 2] = 0) -> NDArray[np.float64]:
    """Return the Gaussian of `scipy.ndimage.gaussian_filter1d`, shape (2r + 1,), or its second derivative."""
    reach = np.arange(-int(_TRUNCATE * sigma + 0.5), int(_TRUNCATE * sigma + 0.5) + 1, dtype=np.float64)
    kernel: NDArray[np.float64] = np.exp(-0.5 * np.square(reach / sigma))
    kernel /= kernel.sum()
    return kernel if order == 0 else kernel * (np.square(reach) / sigma**4 - 1 / sigma**2)


def bend_kernel(sigma: float) -> NDArray[np.float64]:
    """Return the second derivative of a Gaussian, to which flat tissue answers exactly 0, whatever the truncation."""
    kernel = gaussian_kernel(sigma, 2)
    kernel -= kernel.mean()
    return kernel


def mirror_kernel(kernel: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Return a filter along an axis of a length, mirrored at both ends, as a matrix (length, length)."""
    reach = len(kernel) // 2
    places = mirror_places(length, reach)
    matrix = np.zeros((length, length))
    for place in range(length):
        np.add.at(matrix[place], places[place : place + len(kernel)], kernel)
    return matrix


def mirror_places(length: int, reach: int) -> NDArray[np.int64]:
    """Which place lies at -reach to length + reach of a mirrored axis; the outermost comes twice."""
    return np.pad(np.arange(length), reach, mode="symmetric")


def correlate(
    values: Tensor, kernel: NDArray[np.float64], *, axis: Literal[0, 1], mode: Literal["reflect", "edge"] = "reflect"
) -> Tensor:
    """Correlate (rows, cols), float32, on any device, along an axis, as `scipy.ndimage.correlate1d` does.

    Beyond the border ``"reflect"`` mirrors, the outermost value twice; ``"edge"`` repeats the outermost value.
    """
    import torch

    reach, length = len(kernel) // 2, int(values.shape[axis])
    matrix = _band(kernel.tobytes()).to(values.device)
    result = torch.empty_like(values, memory_format=torch.contiguous_format)
    with torch.no_grad():
        for start in range(0, length, _BLOCK_PX):
            count = min(_BLOCK_PX, length - start)
            block = matrix[:count, : count + 2 * reach]
            seen = _take(values, start - reach, start + count + reach, axis, mode)
            into = result.narrow(axis, start, count)
            if axis == 0:
                torch.mm(block, seen, out=into)
            else:
                torch.mm(seen, block.T, out=into)
    return result


def _take(values: Tensor, first: int, last: int, axis: int, mode: Literal["reflect", "edge"]) -> Tensor:
    """The places from ``first`` up to ``last`` of an axis, those beyond the border filled in."""
    import torch

    length = int(values.shape[axis])
    if first >= 0 and last <= length:
        return values.narrow(axis, first, last - first)
    reach = max(-first, last - length)
    padded = np.pad(np.arange(length), reach, mode="edge" if mode == "edge" else "symmetric")
    places = padded[first + reach : last + reach]
    return values.index_select(axis, torch.from_numpy(places).to(values.device))


def smooth_gaussian(values: Tensor, sigma: float) -> Tensor:
    """Return what `scipy.ndimage.gaussian_filter` returns, (rows, cols), float32."""
    kernel = gaussian_kernel(sigma)
    return correlate(correlate(values, kernel, axis=0), kernel, axis=1)


def gaussian_laplace(values: Tensor, sigma: float) -> Tensor:
    """Return what `scipy.ndimage.gaussian_laplace` returns, (rows, cols), float32."""
    kernel, bent = gaussian_kernel(sigma), gaussian_kernel(sigma, 2)
    answer = correlate(correlate(values, bent, axis=0), kernel, axis=1)
    answer += correlate(correlate(values, kernel, axis=0), bent, axis=1)
    return answer


def subtract_local_mean(intensity: Tensor) -> Tensor:
    """Return intensity minus its mean near by, (n, 1, rows, cols) both: two square windows, borders repeated."""
    import torch

    window = np.full(MEAN_WINDOW_PX, 1 / MEAN_WINDOW_PX)
    twice = np.convolve(window, window)
    means = [
        correlate(correlate(image[0], twice, axis=0, mode="edge"), twice, axis=1, mode="edge") for image in intensity
    ]
    return intensity - torch.stack(means)[:, None]


@functools.lru_cache(maxsize=64)
def _band(kernel: bytes) -> Tensor:
    """The matrix of one block: row i holds the kernel from column i on."""
    import torch
    from scipy.linalg import toeplitz

    taps, zeros = np.frombuffer(kernel), np.zeros(_BLOCK_PX - 1)
    return torch.from_numpy(toeplitz([taps[0], *zeros], [*taps, *zeros]).astype(np.float32))
