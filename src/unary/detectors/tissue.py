"""What the dense detectors read of an image: intensity with the outside filled, the mask, and the local noise.

The skin line, and the rim of the film or of the collimated field, are the strongest edges of a mammogram. Outside the
breast a prepared image is zero; filled there with the mean of the tissue near by, the edge is gone, and the detectors
can look at the last millimetres of tissue as at any other. The outermost pixels of the breast mix both and count as
outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.prepare import FULL_SCALE

MEAN_WINDOW_PX = 15
NOISE_WINDOW_PX = 31
NOISE_SIGMA_PX = 2.0
_RIM_PX = 4
_FLOOR = 2e-3  # of intensity: one grey level in 500, below which "noise" is quantisation


@dataclass(frozen=True, eq=False)
class Tissue:
    """One prepared image as the dense detectors see it.

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


def read_tissue(pixels: NDArray[np.uint16]) -> Tissue:
    """Describe a prepared image, shape (rows, cols), uint16, zero outside the breast."""
    breast = ndimage.binary_fill_holes(pixels > 0)
    inner = ndimage.binary_erosion(breast, iterations=_RIM_PX, border_value=1)
    mask = inner if inner.any() else breast
    inside = mask.astype(np.float64)
    raw = pixels / np.float64(FULL_SCALE)
    local_mean = smooth(raw * inside, MEAN_WINDOW_PX) / (smooth(inside, MEAN_WINDOW_PX) + 1e-3)
    intensity = np.where(mask, raw, local_mean).astype(np.float32)
    fine = (intensity - ndimage.gaussian_filter(intensity, NOISE_SIGMA_PX)) * inside
    share = smooth(inside, NOISE_WINDOW_PX) + 1e-3
    noise = np.sqrt(smooth(np.square(fine), NOISE_WINDOW_PX) / share) + _FLOOR
    return Tissue(intensity, mask, noise.astype(np.float32))


def share_scale(local: NDArray[np.float32], mask: NDArray[np.bool_], *, floor: float) -> NDArray[np.float32]:
    """Return the geometric mean of a local scale and of its median over the image's tissue.

    Parameters
    ----------
    local
        Shape (rows, cols), float32, non-negative: how much a quantity varies near each pixel.
    mask
        Where the median is taken; where it is nowhere, the local scale alone counts.
    floor
        Added to both, to keep blank tissue from dividing by nothing.
    """
    typical = float(np.median(local[mask])) if mask.any() else None
    if typical is None:
        return local + np.float32(floor)
    shared: NDArray[np.float32] = np.sqrt((local + np.float32(floor)) * np.float32(typical + floor))
    return shared


def smooth(values: NDArray[np.floating], window_px: int) -> NDArray[np.float64]:
    """Two passes of a square window, zero beyond the border: nearly a Gaussian, at a cost free of its width.

    Running sums leave rounding errors of either sign, so that results are for non-negative values and clipped at 0.
    """
    once = ndimage.uniform_filter(values.astype(np.float64), window_px, mode="constant")
    twice: NDArray[np.float64] = np.maximum(ndimage.uniform_filter(once, window_px, mode="constant"), 0)
    return twice
