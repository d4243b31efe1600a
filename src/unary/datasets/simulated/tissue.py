"""What must be known of an image of normal tissue before a lesion is put into it: its noise, blur and brightness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.errors import ImageError

Plane = NDArray[np.float32]
Window = tuple[slice, slice]

_BLOCK_MM = 0.14  # of the pixels on which noise is measured, as nearly as whole pixels allow
_CELL = 4  # blocks a side
_FINE_BLOCKS = 2.0  # standard deviation of the Gaussian above which structure is not fine
_NOISE_BLOCKS = 31
_RIM_BLOCKS = 4
_REGION_MM = 4.5
_LEVEL_MM = 0.7
_LEVELS = 12
_BLUR_PX = (0.3, 1.5)
_BLUR_BLOCK_PX = 64


@dataclass(frozen=True, eq=False)
class TissueMeasures:
    """Measures of one image; maps are on cells of ``step`` x ``step`` pixels, (cell rows, cell cols).

    Attributes
    ----------
    mask
        Shape (rows, cols), bool: where tissue is.
    spacing_mm
        Distance between pixels.
    block_px
        Side of the blocks, about 0.14 mm wide, on which noise is measured, so that it means the same at any spacing.
    noise
        Root mean square of the fine structure within some millimetres, in the unit of the pixels; float32.
    level
        Brightness over a millimetre, in the unit of the pixels; float32.
    rank
        Place of the brightness over centimetres among those of all tissue, in [0, 1]; float32.
    depth_mm
        Distance from the edge of the tissue and of the image; 0 outside; float32.
    spread
        Standard deviation of the brightness over centimetres, in the unit of the pixels.
    blur_px
        Standard deviation of the Gaussian that blurs the image's noise.
    levels, grain_at
        Ascending levels, and the typical pixel noise in tissue of each, shape (k,) each: what is left of the fine
        structure when all but the differences between neighbours is taken away.
    """

    mask: NDArray[np.bool_]
    spacing_mm: float
    block_px: int
    noise: Plane
    level: Plane
    rank: Plane
    depth_mm: Plane
    spread: float
    blur_px: float
    levels: NDArray[np.float64]
    grain_at: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the image."""
        return int(self.mask.shape[0]), int(self.mask.shape[1])

    @property
    def step(self) -> int:
        """Side of a cell in pixels."""
        return self.block_px * _CELL

    def find_noise(self, row: float, col: float) -> float:
        """Return the noise near a pixel, positive."""
        return float(self.noise[self._find_cell(row, 0), self._find_cell(col, 1)])

    def locate(self, rows: Any, cols: Any) -> tuple[Any, Any]:
        """Return the (row, col), in pixels, of the middles of cells."""
        return (rows + 0.5) * self.step - 0.5, (cols + 0.5) * self.step - 0.5

    def draw_noise(self, window: Window, added: Plane, rng: np.random.Generator) -> Plane:
        """Return the noise that tissue which becomes brighter by ``added`` lacks, of the image's grain, float32."""
        rows, cols = (np.arange(part.start, part.stop) // self.step for part in window)
        level = self.level[np.minimum(rows, len(self.level) - 1)][:, np.minimum(cols, self.level.shape[1] - 1)]
        before, after = (np.interp(values, self.levels, self.grain_at) for values in (level, level + added))
        lacking = np.sqrt(np.clip(after**2 - before**2, 0, None))
        grain = ndimage.gaussian_filter(rng.standard_normal(added.shape, np.float32), self.blur_px)
        result: Plane = (lacking * grain / max(float(grain.std()), 1e-6)).astype(np.float32)
        return result

    def _find_cell(self, place: float, axis: int) -> int:
        return int(np.clip(int(place) // self.step, 0, self.noise.shape[axis] - 1))


def measure_tissue(pixels: NDArray[Any], mask: NDArray[np.bool_], spacing_mm: float) -> TissueMeasures:
    """Measure an image, (rows, cols), stored or prepared, and its tissue, of the same shape.

    Raises
    ------
    ImageError
        If there is no tissue, or it is all of one brightness.
    """
    if pixels.shape != mask.shape:
        raise ValueError(f"pixels and mask must have one shape, got {pixels.shape} and {mask.shape}")
    if not 0 < spacing_mm < math.inf:
        raise ValueError(f"spacing_mm must be positive, got {spacing_mm}")
    block = max(1, round(_BLOCK_MM / spacing_mm))
    share = _block_means(mask, block)
    inner = ndimage.binary_erosion(share > 0.5, iterations=_RIM_BLOCKS, border_value=1)
    if not inner.any():
        raise ImageError(
            "no tissue to put a lesion into: the mask is empty or nowhere wider than a millimetre; is the image blank?",
            reason="BLANK",
        )
    means = _block_means(np.where(mask, pixels, 0), block) / np.maximum(share, 1e-3)
    filled = np.where(inner, means, _smooth_inside(means, inner, ndimage.uniform_filter, 31))
    noise = _measure_noise(filled, inner)
    weight, cell_mm = _block_means(inner, _CELL), block * _CELL * spacing_mm
    bright = _block_means(means * inner, _CELL) / np.maximum(weight, 1e-3)
    tissue = weight > 0.5 if (weight > 0.5).any() else weight > 0
    level = _smooth_inside(bright, weight > 0, ndimage.gaussian_filter, _LEVEL_MM / cell_mm)
    regional = _smooth_inside(bright, tissue, ndimage.gaussian_filter, _REGION_MM / cell_mm)
    if not regional[tissue].std() > 0:
        raise ImageError("the tissue has one single brightness; is the image blank?", reason="BLANK")
    rank = np.searchsorted(np.sort(regional[tissue]), regional) / tissue.sum()
    depth = ndimage.distance_transform_edt(np.pad(tissue, 1))[1:-1, 1:-1] * cell_mm
    noise_cells = _block_means(noise, _CELL)
    blur, grain = _measure_grain(pixels, mask, block * _CELL)
    levels, grain_at = _relate(level[tissue], grain[tissue])
    return TissueMeasures(
        mask,
        spacing_mm,
        block,
        noise_cells.astype(np.float32),
        level.astype(np.float32),
        rank.astype(np.float32),
        depth.astype(np.float32),
        float(regional[tissue].std()),
        blur,
        levels,
        grain_at,
    )


def _block_means(values: NDArray[Any], block: int) -> NDArray[np.float64]:
    """Means of blocks; of those that reach past the border, of what is inside."""
    rows, cols = (np.arange(0, length, block) for length in values.shape)
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float64), rows, axis=0), cols, axis=1)
    sizes = [np.diff(np.append(starts, length)) for starts, length in zip((rows, cols), values.shape, strict=True)]
    means: NDArray[np.float64] = sums / np.multiply.outer(*sizes)
    return means


def _smooth_inside(
    values: NDArray[np.float64], inside: NDArray[np.bool_], smooth: Any, width: float
) -> NDArray[np.float64]:
    """Means of what is inside; where nothing is near, the mean of all of it."""
    overall = float(values[inside].mean())
    weight = smooth(inside.astype(np.float64), width)
    total = smooth(np.where(inside, values, 0.0), width)
    smoothed: NDArray[np.float64] = (total + 1e-4 * overall) / (weight + 1e-4)
    return smoothed


def _measure_noise(filled: NDArray[np.float64], inner: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Root mean square of the fine structure near each block; never below a thousandth of the range of brightness."""
    fine = (filled - ndimage.gaussian_filter(filled, _FINE_BLOCKS)) * inner
    power, share = fine**2, inner.astype(np.float64)
    for _ in range(2):  # twice a square window is nearly a Gaussian
        power = ndimage.uniform_filter(power, _NOISE_BLOCKS, mode="constant")
        share = ndimage.uniform_filter(share, _NOISE_BLOCKS, mode="constant")
    low, high = np.percentile(filled[inner], [1, 99])
    noise: NDArray[np.float64] = np.sqrt(np.clip(power, 0, None) / (share + 1e-3)) + max(1e-3 * (high - low), 1e-9)
    return noise


def _measure_grain(pixels: NDArray[Any], mask: NDArray[np.bool_], step: int) -> tuple[float, NDArray[np.float64]]:
    """Return how wide a Gaussian blurs the noise, and the noise of every cell, of the mask's rows and columns / step.

    Second differences in both directions leave little but noise; their correlation between neighbours in a row is -2/3
    for white noise and rises with the blur. The median over blocks counts, on which bright specks have no influence.
    """
    values = np.where(mask, pixels, pixels[mask].mean()).astype(np.float32)
    fine = np.pad(np.diff(np.diff(values, 2, axis=0), 2, axis=1), 1)
    whole = _block_means(mask, _BLUR_BLOCK_PX) == 1
    if min(mask.shape) > _BLUR_BLOCK_PX:
        whole = ndimage.binary_erosion(whole)
    waves, widths = np.linspace(0, math.pi, 512), np.linspace(*_BLUR_PX, 60)
    taps = np.arange(-6, 7)
    kernels = np.exp(-0.5 * np.square(taps / widths[:, None]))
    kernels /= kernels.sum(axis=1, keepdims=True)
    passed = np.square(kernels @ np.cos(np.multiply.outer(taps, waves)))
    power = (2 - 2 * np.cos(waves)) ** 2 * passed
    blur = 0.5
    if whole.any():
        square = _block_means(fine**2, _BLUR_BLOCK_PX)[whole]
        product = _block_means(fine * np.roll(fine, 1, axis=1), _BLUR_BLOCK_PX)[whole]
        found = float(np.median(product / np.maximum(square, 1e-12)))
        blur = float(np.interp(found, (power * np.cos(waves)).sum(axis=1) / power.sum(axis=1), widths))
    gains = power.sum(axis=1) / passed.sum(axis=1)  # of either direction, on noise of variance 1
    return blur, np.sqrt(_block_means(fine**2, step)) / float(np.interp(blur, widths, gains))


def _relate(level: NDArray[np.float64], noise: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median noise by level, in classes of as many cells."""
    parts = np.array_split(np.argsort(level, kind="stable"), min(_LEVELS, len(level)))
    return (
        np.asarray([np.median(level[part]) for part in parts]),
        np.asarray([np.median(noise[part]) for part in parts]),
    )
