"""Which patches contain a lesion: the rule, and the geometry behind it. Lesions have coordinates in stored pixels.

A patch *contains* a lesion when it covers at least half of the lesion's area, or when the lesion covers at least a
quarter of the patch; the second clause is for lesions larger than a patch. A point is contained by the patch whose
pixels it falls on. A patch *touches* a lesion when they share any pixel. Patches that touch a lesion without
containing one are neither positive nor normal-looking, and are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from unary.datasets.annotation import find_place
from unary.patches.grid import Origins, count_pixels
from unary.records import Lesion

_LESION_SHARE = 0.5
_PATCH_SHARE = 0.25


def rasterise_lesion(
    lesion: Lesion,
    shape: tuple[int, int],
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    mask: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return a bool array that just holds the lesion's pixels on the working grid, and the (row, col) of its corner.

    Empty, of shape (0, 0), when the lesion lies outside the image (`unary.datasets.annotation.find_place`). A lesion
    smaller than a pixel, or without area, keeps the one pixel that is nearest to its centre.

    Parameters
    ----------
    shape
        Rows and columns of the working grid.
    scale
        Stored pixels per working pixel, (row, col).
    mask
        Stored-grid pixels of a lesion of kind ``mask``, bool.
    """
    factor = np.asarray(scale, float)
    if lesion.kind == "mask":
        pixels = np.rint((_mask_pixels(lesion, mask) + 0.5) / factor - 0.5).astype(int)
        pixels = pixels[((pixels >= 0) & (pixels < shape)).all(axis=1)]
        if len(pixels) == 0:
            return np.zeros((0, 0), bool), (0, 0)
        first = pixels.min(axis=0)
        inside = np.zeros(np.ptp(pixels, axis=0) + 1, bool)
        inside[tuple((pixels - first).T)] = True
        return inside, (int(first[0]), int(first[1]))
    points = (np.asarray(lesion.points, float) + 0.5) / factor - 0.5
    if lesion.kind == "circle":
        radius = (lesion.radius_px or 0.0) / factor
        low, high = points[0] - radius, points[0] + radius
    elif lesion.kind == "box":  # half-open, in whole pixels: corners are pixel edges, not centres
        low, high = (np.asarray(point) / factor - 0.5 for point in lesion.points)
    else:
        low, high = points.min(axis=0), points.max(axis=0)
    stored_rows, stored_cols = np.rint(np.multiply(shape, factor)).astype(int)
    if find_place(lesion, (stored_rows, stored_cols)) == "outside":
        return np.zeros((0, 0), bool), (0, 0)
    # whoever puts the origin at a pixel's corner may place a point one pixel beyond the last
    border = np.asarray(shape) - 1
    first, last = (np.clip(bound(end).astype(int), 0, border) for bound, end in ((np.floor, low), (np.ceil, high)))
    centre = np.clip(np.rint((low + high) / 2).astype(int), first, last)
    extent = last - first + 1
    rows, cols = np.ogrid[first[0] : last[0] + 1, first[1] : last[1] + 1]
    if lesion.kind == "circle":
        safe = np.maximum(radius, 0.5)
        inside = ((rows - points[0, 0]) / safe[0]) ** 2 + ((cols - points[0, 1]) / safe[1]) ** 2 <= 1
    elif lesion.kind == "contour":
        inside = polygon2mask(tuple(extent), points - first)
    elif lesion.kind == "box":
        inside = (rows >= low[0]) & (rows < high[0]) & (cols >= low[1]) & (cols < high[1])
    else:
        inside = np.zeros(tuple(extent), bool)
    if not inside.any():
        inside[tuple(centre - first)] = True
    return inside, (int(first[0]), int(first[1]))


def _mask_pixels(lesion: Lesion, mask: NDArray[np.bool_] | None) -> NDArray[np.int_]:
    """The (row, col) of the pixels of a lesion of kind ``mask``, shape (n, 2)."""
    if mask is None:
        raise ValueError(f"the mask of lesion {lesion.name!r} of image {lesion.image_id} is needed")
    return np.argwhere(mask)


def measure_lesion(lesion: Lesion, spacing_mm: tuple[float, float], *, mask: NDArray[np.bool_] | None = None) -> float:
    """Return the longer side, in mm, of the upright box that holds the lesion's outline; 0 for a point, an empty mask.

    ``spacing_mm`` is that of the stored pixels, (between rows, between columns); ``mask`` as in `rasterise_lesion`.
    """
    if lesion.kind == "mask":
        where = _mask_pixels(lesion, mask)
        extent = np.ptp(where, axis=0) + 1.0 if len(where) else np.zeros(2)
    elif lesion.kind == "circle":
        extent = np.full(2, 2 * (lesion.radius_px or 0.0))
    else:
        extent = np.ptp(np.asarray(lesion.points, float), axis=0)
    return float((extent * spacing_mm).max())


def judge_patches(
    inside: NDArray[np.bool_], corner: tuple[int, int], origins: Origins, *, size_px: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which patches contain the lesion and which touch it, two bool arrays of shape (n,).

    ``inside`` and ``corner`` are those of `rasterise_lesion`, the origins on the same grid.
    """
    overlap = count_pixels(inside, origins - np.array(corner, np.int32), size_px=size_px)
    enough = min(_LESION_SHARE * int(inside.sum()), _PATCH_SHARE * size_px * size_px)
    touches = overlap > 0
    return touches & (overlap >= enough), touches
