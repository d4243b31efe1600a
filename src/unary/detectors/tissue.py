"""What the dense detectors read of an image: intensity with the outside filled in, the mask, and the local noise.

The rim of the tissue, of a film or of a collimated field is often the strongest edge of an image. Outside the tissue a
prepared image is zero; filled there with the mean of the tissue near by, the edge is gone, and the detectors can look
at the last millimetres of tissue as at any other. The outermost pixels mix both and count as outside.

Detectors read an image in strips of rows, each with a halo of all that its pixels depend on, so that an image of a
hundred megapixels takes little more memory than its own map. An ordinary image is a single strip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.detectors.filters import MEAN_WINDOW_PX, smooth_gaussian
from unary.detectors.protocol import Examination, View
from unary.patches.grid import Origins
from unary.patches.preparation import FULL_SCALE, erode_mask
from unary.training.threads import map_in_threads

STRIP_STEP = 32  # strips begin at multiples of it, as blocks of pixels and pooling networks need
NOISE_WINDOW_PX = 31
NOISE_SIGMA_PX = 2.0
NOISE_HALO_PX = 2 * (NOISE_WINDOW_PX // 2) + 8  # two windows, and the Gaussian to four of its widths
_MEAN_HALO_PX = 2 * (MEAN_WINDOW_PX // 2)
RIM_PX = 4
NOISE_FLOOR = 2e-3  # of intensity: one grey level in 500, below which "noise" is quantisation
_STRIP_PX = 4_000_000
_FLOAT64_PX = 300_000
SAMPLE_PX = 16_000_000


@dataclass(frozen=True, eq=False)
class Strip:
    """Some rows of an image with the rows around them.

    ``rows`` are those of the image that the strip stands for, ``own`` the same within intensity and mask, which are as
    in `Tissue`, of the strip's rows and up to a halo above and below, less at the image's borders.
    """

    rows: slice
    own: slice
    intensity: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tissue:
    """One prepared image, (rows, cols), as the dense detectors see it, read strip by strip.

    Attributes
    ----------
    mask
        The tissue without its outermost four pixels.
    strip_rows
        Rows of a strip; those of the image or more where there is a single one.
    intensity
        Float32, in [0, 1]; outside the mask the local mean of the tissue. None where there are several strips: then it
        is computed whenever one is read.
    """

    pixels: NDArray[np.uint16]
    mask: NDArray[np.bool_]
    strip_rows: int
    intensity: NDArray[np.float32] | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.mask.shape[0]), int(self.mask.shape[1])

    def strips(self, halo_px: int, *, most_rows: int | None = None) -> Iterator[Strip]:
        """Yield the strips from above, with so many more rows on either side, as far as there are any.

        They are as low as ``most_rows``, a multiple of 32, if they are not lower anyway.
        """
        rows = len(self.mask)
        step = self.strip_rows if most_rows is None else min(self.strip_rows, most_rows)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            first, last = max(start - halo_px, 0), min(stop + halo_px, rows)
            own = slice(start - first, stop - first)
            yield Strip(slice(start, stop), own, self.read_intensity(first, last), self.mask[first:last])

    def read_intensity(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the intensity of the rows from ``first`` up to ``last``, float32."""
        if self.intensity is not None:
            return self.intensity[first:last]
        return _fill_outside(self.pixels, self.mask, first, last)


def scan_tissue(pixels: NDArray[np.uint16], mask: NDArray[np.bool_]) -> Tissue:
    """Describe a prepared image, (rows, cols), in memory for some strips; no pixel outside the mask has influence."""
    rows, cols = pixels.shape
    inner = find_tissue(mask)
    strip_rows = max(_STRIP_PX // max(cols, 1) // STRIP_STEP, 1) * STRIP_STEP
    intensity = _fill_outside(pixels, inner, 0, rows) if rows <= strip_rows else None
    return Tissue(pixels, inner, strip_rows, intensity)


def find_tissue(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask, (rows, cols), without its outermost four pixels; whole where nothing would be left."""
    inner = erode_mask(mask, RIM_PX)
    return inner if inner.any() else mask


def _fill_outside(pixels: NDArray[np.uint16], mask: NDArray[np.bool_], first: int, last: int) -> NDArray[np.float32]:
    """Return the intensity of the rows from ``first`` up to ``last``: outside the mask the local mean."""
    high = max(_FLOAT64_PX // max(mask.shape[1], 1), 2 * _MEAN_HALO_PX)

    def fill(start: int) -> NDArray[np.float32]:
        stop = min(start + high, last)
        top, bottom = max(start - _MEAN_HALO_PX, 0), min(stop + _MEAN_HALO_PX, len(mask))
        own = slice(start - top, stop - top)
        if not mask[top:bottom].any():
            return np.zeros((stop - start, mask.shape[1]), np.float32)
        inside = mask[top:bottom].astype(np.float64)
        raw = pixels[top:bottom] / np.float64(FULL_SCALE)
        local_mean = smooth(raw * inside, MEAN_WINDOW_PX)[own] / (smooth(inside, MEAN_WINDOW_PX)[own] + 1e-3)
        return np.where(mask[start:stop], raw[own], local_mean).astype(np.float32)

    filled = list(map_in_threads(fill, range(first, last, high)))
    return np.concatenate(filled) if filled else np.zeros((0, mask.shape[1]), np.float32)


def measure_noise(intensity: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the root mean square of the fine structure near each pixel, positive, (rows, cols) as both arguments."""
    import torch

    inside = mask.astype(np.float64)
    fine = (intensity - smooth_gaussian(torch.from_numpy(intensity), NOISE_SIGMA_PX).numpy()) * inside
    share = smooth(inside, NOISE_WINDOW_PX) + 1e-3
    noise: NDArray[np.float64] = np.sqrt(smooth(np.square(fine), NOISE_WINDOW_PX) / share) + NOISE_FLOOR
    return noise.astype(np.float32)


def sample_scale(strip: Strip, local: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return values of a local scale, of a strip's own rows, on its tissue, shape (n,), for `find_typical`.

    Of an image, of that shape, of more than sixteen million pixels every second row and column count, or every third,
    and so on: a scale that is a mean over a neighbourhood changes little from pixel to pixel.
    """
    step = math.isqrt(max(shape[0] * shape[1] - 1, 0) // SAMPLE_PX) + 1
    grid = (slice(-strip.rows.start % step, None, step), slice(None, None, step))
    sample: NDArray[np.float32] = local[grid][strip.mask[strip.own][grid]]
    return sample


def find_typical(samples: Sequence[NDArray[np.float32]]) -> float | None:
    """Return the median over all strips of an image; None where it holds no tissue."""
    values = np.concatenate([np.zeros(0, np.float32), *samples])
    return float(np.median(values, overwrite_input=True)) if values.size else None


def smooth(values: NDArray[np.floating], window_px: int) -> NDArray[np.float64]:
    """Two passes of a square window, zero beyond the border: nearly a Gaussian, at a cost free of its width.

    Running sums leave rounding errors of either sign, so that results are for non-negative values and clipped at 0.
    """
    once = ndimage.uniform_filter(values.astype(np.float64), window_px, mode="constant")
    twice: NDArray[np.float64] = np.maximum(ndimage.uniform_filter(once, window_px, mode="constant"), 0)
    return twice


def examine_answer(
    view: View,
    answer: NDArray[np.float32],
    origins: Origins,
    *,
    size_px: int,
    strongest: int | None,
    with_map: bool,
) -> Examination:
    """Read patch scores off a dense detector's answer to a view, as `pool_patches` does, and make a map of it.

    The answer, shape (rows, cols), float32, finite, becomes the map, NaN outside the tissue.
    """
    scores = pool_patches(answer, origins, size_px=size_px, strongest=strongest)
    if not with_map:
        return Examination(scores, None)
    np.copyto(answer, np.float32(np.nan), where=~view.tissue.mask)
    return Examination(scores, answer)


def pool_patches(
    answer: NDArray[np.float32], origins: Origins, *, size_px: int, strongest: int | None
) -> NDArray[np.float64]:
    """Return the mean of each patch's strongest pixels, of all for None, shape (n,).

    Of a patch that reaches past the border of the answer, (rows, cols), what lies inside counts.
    """
    pooled = np.empty(len(origins))
    for number, (row, col) in enumerate(origins.tolist()):
        values = answer[row : row + size_px, col : col + size_px].ravel()
        if strongest is not None and strongest < len(values):
            values = np.partition(values, -strongest)[-strongest:]
        pooled[number] = values.mean(dtype=np.float64)
    return pooled
