"""Metal in a mammogram: surgical clips, markers and pieces of the film's frame, which are no tissue.

They are the strongest finding of any image that shows one, and stand for nothing that a detector of tissue is asked
for. What tells metal from a calcification is that it is far brighter than tissue, in units of the tissue's own range,
and flat: most of it is nearly as bright as its brightest pixel, while a calcification is rounded: of a ball, a third.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_BRIGHT, _UTMOST = 1.53, 2.0  # of the way from the tissue's 1st percentile to its 99th
_NEARLY, _FLAT = 0.75, 0.45  # of its height above bright; the share of it that is so high
_LEAST_MM2 = 1.3
_SKIRT_MM = 0.5  # around it, where it is blurred


def find_metal(
    pixels: NDArray[Any], mask: NDArray[np.bool_], *, low: float, high: float, spacing_mm: tuple[float, float]
) -> tuple[NDArray[np.bool_] | None, int]:
    """Return where metal is, (rows, cols), bool, with what its blur reaches, and how many pieces; None without any.

    Parameters
    ----------
    pixels, mask
        Shape (rows, cols): an image in any unit, and its tissue, outside which nothing is looked for.
    low, high
        The range of the tissue: its 1st and 99th percentile, by default.
    spacing_mm
        Between the rows and the columns of these pixels.
    """
    least_px = _LEAST_MM2 / (spacing_mm[0] * spacing_mm[1])
    bright, utmost = (low + factor * (high - low) for factor in (_BRIGHT, _UTMOST))
    is_bright = (pixels > bright) & mask
    if is_bright.sum() < least_px:
        return None, 0
    labels, count = ndimage.label(is_bright)
    number, values = labels[is_bright], pixels[is_bright].astype(np.float64)
    top = np.full(count + 1, -np.inf)
    np.maximum.at(top, number, values)
    size = np.bincount(number, minlength=count + 1)
    high_px = np.bincount(number[values > bright + _NEARLY * (top[number] - bright)], minlength=count + 1)
    is_metal = (top > utmost) & (size >= least_px) & (high_px >= _FLAT * size)
    if not is_metal.any():
        return None, 0
    around = [2 * math.ceil(_SKIRT_MM / step) + 1 for step in spacing_mm]
    return ndimage.maximum_filter(is_metal[labels], around), int(is_metal.sum())
