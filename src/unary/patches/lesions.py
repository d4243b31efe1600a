"""Which patches contain a lesion: the rule, and the geometry behind it.

A patch *contains* a lesion when it covers at least half of the lesion's area, or when the lesion covers at least a
quarter of the patch; the second clause is for lesions larger than a patch. A point is contained by the patch whose
pixels it falls on. A patch *touches* a lesion when they share any pixel. Patches that touch a lesion without
containing one are neither positive nor normal-looking, and are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from unary.patches.grid import Origins
from unary.records import Lesion

LESION_SHARE = 0.5
PATCH_SHARE = 0.25


def rasterise_lesion(
    lesion: Lesion,
    shape: tuple[int, int],
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    mask: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the lesion's pixels on the working grid.

    Parameters
    ----------
    lesion
        With coordinates in stored pixels.
    shape
        Rows and columns of the working grid.
    scale
        Stored pixels per working pixel, (row, col).
    mask
        Stored-grid pixels of a lesion of kind ``mask``, bool.

    Returns
    -------
    tuple
        A bool array that just holds the lesion, and the (row, col) of its corner. Empty, of shape (0, 0), when the
        lesion lies outside the image. A lesion smaller than a pixel keeps the one pixel that holds its centre.
    """
    factor = np.asarray(scale, float)
    if lesion.kind == "mask":
        if mask is None:
            raise ValueError(f"the mask of lesion {lesion.name!r} of image {lesion.image_id} is needed")
        points = (np.argwhere(mask) + 0.5) / factor - 0.5
        if len(points) == 0:
            return np.zeros((0, 0), bool), (0, 0)
        return _crop_pixels(np.unique(np.rint(points).astype(int), axis=0), shape)
    points = (np.asarray(lesion.points, float) + 0.5) / factor - 0.5
    if lesion.kind == "circle":
        radius = (lesion.radius_px or 0.0) / factor
        low, high = points[0] - radius, points[0] + radius
    elif lesion.kind == "box":  # half-open, in whole pixels: corners are pixel edges, not centres
        low, high = (np.asarray(point) / factor - 0.5 for point in lesion.points)
    else:
        low, high = points.min(axis=0), points.max(axis=0)
    first = np.clip(np.floor(low).astype(int), 0, None)
    last = np.minimum(np.ceil(high).astype(int), np.asarray(shape) - 1)
    centre = np.rint((low + high) / 2).astype(int)
    if (last < first).any():
        return np.zeros((0, 0), bool), (0, 0)
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
    held = centre - first
    if not inside.any() and (held >= 0).all() and (held < extent).all():
        inside[held[0], held[1]] = True
    return inside, (int(first[0]), int(first[1]))


def _crop_pixels(pixels: NDArray[np.int_], shape: tuple[int, int]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    pixels = pixels[((pixels >= 0) & (pixels < np.asarray(shape))).all(axis=1)]
    if len(pixels) == 0:
        return np.zeros((0, 0), bool), (0, 0)
    first, last = pixels.min(axis=0), pixels.max(axis=0)
    inside = np.zeros(tuple(last - first + 1), bool)
    inside[tuple((pixels - first).T)] = True
    return inside, (int(first[0]), int(first[1]))


def measure_lesion(lesion: Lesion, spacing_mm: tuple[float, float], *, mask: NDArray[np.bool_] | None = None) -> float:
    """Return the longer side, in mm, of the upright box that holds the lesion's outline; 0 for a point.

    Parameters
    ----------
    lesion
        With coordinates in stored pixels.
    spacing_mm
        Of the stored pixels, (between rows, between columns).
    mask
        Stored-grid pixels of a lesion of kind ``mask``, bool; an empty one measures 0.
    """
    if lesion.kind == "mask":
        if mask is None:
            raise ValueError(f"the mask of lesion {lesion.name!r} of image {lesion.image_id} is needed")
        where = np.argwhere(mask)
        extent = np.ptp(where, axis=0) + 1.0 if len(where) else np.zeros(2)
    elif lesion.kind == "circle":
        extent = np.full(2, 2 * (lesion.radius_px or 0.0))
    else:
        extent = np.ptp(np.asarray(lesion.points, float), axis=0)
    return float((extent * spacing_mm).max())


def patch_overlaps(
    inside: NDArray[np.bool_], corner: tuple[int, int], origins: Origins, *, size_px: int
) -> NDArray[np.int64]:
    """Return the number of lesion pixels in each patch, shape (n,).

    Parameters
    ----------
    inside, corner
        From `rasterise_lesion`.
    origins
        Shape (n, 2): the patches' top-left corners on the same grid.
    """
    integral = np.zeros((inside.shape[0] + 1, inside.shape[1] + 1), np.int64)
    integral[1:, 1:] = inside.cumsum(axis=0).cumsum(axis=1)
    low = np.clip(origins - np.asarray(corner), 0, inside.shape)
    high = np.clip(origins - np.asarray(corner) + size_px, 0, inside.shape)
    counts: NDArray[np.int64] = (
        integral[high[:, 0], high[:, 1]]
        - integral[low[:, 0], high[:, 1]]
        - integral[high[:, 0], low[:, 1]]
        + integral[low[:, 0], low[:, 1]]
    )
    return counts


def judge_patches(
    inside: NDArray[np.bool_], corner: tuple[int, int], origins: Origins, *, size_px: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which patches contain the lesion and which touch it, two bool arrays of shape (n,).

    Parameters
    ----------
    inside, corner
        From `rasterise_lesion`.
    origins
        Shape (n, 2): (row, col) of the patches' first pixels on the same grid.
    size_px
        Side of a patch.
    """
    overlap = patch_overlaps(inside, corner, origins, size_px=size_px)
    enough = min(LESION_SHARE * int(inside.sum()), PATCH_SHARE * size_px * size_px)
    touches = overlap > 0
    return touches & (overlap >= enough), touches
