"""What the dense detectors read of an image: intensity with the outside filled, the mask, and the local noise.

The skin line, and the rim of the film or of the collimated field, are the strongest edges of a mammogram. Outside the
breast a prepared image is zero; filled there with the mean of the tissue near by, the edge is gone, and the detectors
can look at the last millimetres of tissue as at any other. The outermost pixels of the breast mix both and count as
outside.

Detectors read an image in strips of rows, each with a halo of all that its pixels depend on, so that an image of a
hundred megapixels takes little more memory than its own map. An ordinary image is a single strip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.training.threads import map_in_threads
from unary.patches.preparation import FULL_SCALE

MEAN_WINDOW_PX = 15
NOISE_WINDOW_PX = 31
NOISE_SIGMA_PX = 2.0
NOISE_HALO_PX = 2 * (NOISE_WINDOW_PX // 2) + 8  # two windows, and the Gaussian to four of its widths
_MEAN_HALO_PX = 2 * (MEAN_WINDOW_PX // 2)
_RIM_PX = 4
_FLOOR = 2e-3  # of intensity: one grey level in 500, below which "noise" is quantisation
_STRIP_PX = 4_000_000
_STRIP_STEP = 32  # strips begin at multiples of it, as blocks of pixels and pooling networks need
_FLOAT64_PX = 300_000
_SAMPLE_PX = 16_000_000


@dataclass(frozen=True, eq=False)
class Strip:
    """Some rows of an image with the rows around them.

    Attributes
    ----------
    rows
        Of the image: those that the strip stands for.
    own
        The same rows within the arrays below.
    intensity, mask
        As in `Tissue`, of the strip's rows and up to a halo above and below, less at the image's borders.
    """

    rows: slice
    own: slice
    intensity: NDArray[np.float32]
    mask: NDArray[np.bool_]


class Strips(Protocol):
    """Tissue that can be read in strips: `Tissue` or `TissueScan`."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Shape (rows, cols), as in `Tissue`."""
        ...

    @property
    def strip_rows(self) -> int:
        """How many rows a strip stands for; those of the image or more where there is a single one."""
        ...

    def strips(self, halo_px: int) -> Iterator[Strip]:
        """Yield the strips from above, each with ``halo_px`` more rows on either side as far as there are any."""
        ...


@dataclass(frozen=True, eq=False)
class Tissue:
    """One prepared image as the dense detectors see it, whole.

    Attributes
    ----------
    intensity
        Shape (rows, cols), float32, in [0, 1]; outside the mask the local mean of the tissue.
    mask
        Shape (rows, cols), bool: the breast without its outermost four pixels.
    noise
        Shape (rows, cols), float32, positive: the root mean square of the fine structure near each pixel.
    """

    intensity: NDArray[np.float32]
    mask: NDArray[np.bool_]
    noise: NDArray[np.float32]

    @property
    def strip_rows(self) -> int:
        """All rows."""
        return len(self.mask)

    def strips(self, halo_px: int) -> Iterator[Strip]:
        """Yield the image as one strip."""
        whole = slice(0, len(self.mask))
        yield Strip(whole, whole, self.intensity, self.mask)


@dataclass(frozen=True, eq=False)
class TissueScan:
    """The same of an image of any size, computed strip by strip whenever it is read.

    Attributes
    ----------
    pixels
        The prepared image, shape (rows, cols), uint16.
    mask
        As in `Tissue`.
    strip_rows
        Rows of a strip.
    intensity
        As in `Tissue`, kept where the image is a single strip; else None.
    """

    pixels: NDArray[np.uint16]
    mask: NDArray[np.bool_]
    strip_rows: int
    intensity: NDArray[np.float32] | None

    def strips(self, halo_px: int) -> Iterator[Strip]:
        """Yield the strips from above."""
        rows = len(self.mask)
        for start in range(0, rows, self.strip_rows):
            stop = min(start + self.strip_rows, rows)
            first, last = max(start - halo_px, 0), min(stop + halo_px, rows)
            if self.intensity is None:
                intensity = fill_outside(self.pixels, self.mask, first, last)
            else:
                intensity = self.intensity[first:last]
            yield Strip(slice(start, stop), slice(start - first, stop - first), intensity, self.mask[first:last])


def scan_tissue(pixels: NDArray[np.uint16]) -> TissueScan:
    """Describe a prepared image, shape (rows, cols), uint16, zero outside the breast, in memory for some strips."""
    rows, cols = pixels.shape
    mask = find_tissue(pixels)
    strip_rows = max(_STRIP_PX // cols // _STRIP_STEP, 1) * _STRIP_STEP
    intensity = fill_outside(pixels, mask, 0, rows) if rows <= strip_rows else None
    return TissueScan(pixels, mask, strip_rows, intensity)


def read_tissue(pixels: NDArray[np.uint16], *, with_noise: bool = True) -> Tissue:
    """Describe a prepared image, shape (rows, cols), uint16, zero outside the breast.

    Without noise, which takes as long as all else and which simulated lesions alone need, it is 1 everywhere.
    """
    mask = find_tissue(pixels)
    intensity = fill_outside(pixels, mask, 0, len(pixels))
    noise = measure_noise(intensity, mask) if with_noise else np.broadcast_to(np.float32(1), mask.shape)
    return Tissue(intensity, mask, noise)


def find_tissue(pixels: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Return the breast without its outermost pixels, shape (rows, cols); whole where nothing would be left."""
    breast: NDArray[np.bool_] = ndimage.binary_fill_holes(pixels > 0)
    inner = breast.copy()
    for _ in range(_RIM_PX):
        before = inner.copy()
        inner[1:] &= before[:-1]
        inner[:-1] &= before[1:]
        inner[:, 1:] &= before[:, :-1]
        inner[:, :-1] &= before[:, 1:]
    return inner if inner.any() else breast


def fill_outside(pixels: NDArray[np.uint16], mask: NDArray[np.bool_], first: int, last: int) -> NDArray[np.float32]:
    """Return the intensity of the rows from ``first`` up to ``last``, float32: outside the mask the local mean."""
    high = max(_FLOAT64_PX // mask.shape[1], 2 * _MEAN_HALO_PX)

    def fill(start: int) -> NDArray[np.float32]:
        stop = min(start + high, last)
        top, bottom = max(start - _MEAN_HALO_PX, 0), min(stop + _MEAN_HALO_PX, len(mask))
        own = slice(start - top, stop - top)
        inside = mask[top:bottom].astype(np.float64)
        raw = pixels[top:bottom] / np.float64(FULL_SCALE)
        local_mean = smooth(raw * inside, MEAN_WINDOW_PX)[own] / (smooth(inside, MEAN_WINDOW_PX)[own] + 1e-3)
        return np.where(mask[start:stop], raw[own], local_mean).astype(np.float32)

    return np.concatenate(list(map_in_threads(fill, range(first, last, high))))


def measure_noise(intensity: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the root mean square of the fine structure near each pixel, (rows, cols) as both arguments."""
    inside = mask.astype(np.float64)
    fine = (intensity - ndimage.gaussian_filter(intensity, NOISE_SIGMA_PX)) * inside
    share = smooth(inside, NOISE_WINDOW_PX) + 1e-3
    noise: NDArray[np.float64] = np.sqrt(smooth(np.square(fine), NOISE_WINDOW_PX) / share) + _FLOOR
    return noise.astype(np.float32)


def sample_scale(strip: Strip, local: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return values of a local scale on a strip's own tissue, shape (n,), for `find_typical`.

    Of an image of more than sixteen million pixels every second row and column count, or every third, and so on: a
    scale that is a mean over a neighbourhood changes little from pixel to pixel.

    Parameters
    ----------
    local
        Of the strip's own rows.
    shape
        Of the image.
    """
    step = math.isqrt((shape[0] * shape[1] - 1) // _SAMPLE_PX) + 1
    grid = (slice(-strip.rows.start % step, None, step), slice(None, None, step))
    sample: NDArray[np.float32] = local[grid][strip.mask[strip.own][grid]]
    return sample


def find_typical(samples: Sequence[NDArray[np.float32]]) -> float | None:
    """Return the median over all strips of an image; None where it holds no tissue."""
    values = np.concatenate(samples)
    return float(np.median(values, overwrite_input=True)) if values.size else None


def smooth(values: NDArray[np.floating], window_px: int) -> NDArray[np.float64]:
    """Two passes of a square window, zero beyond the border: nearly a Gaussian, at a cost free of its width.

    Running sums leave rounding errors of either sign, so that results are for non-negative values and clipped at 0.
    """
    once = ndimage.uniform_filter(values.astype(np.float64), window_px, mode="constant")
    twice: NDArray[np.float64] = np.maximum(ndimage.uniform_filter(once, window_px, mode="constant"), 0)
    return twice
