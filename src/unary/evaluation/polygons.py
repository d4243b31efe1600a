"""Plane polygons: area, centre, and how far points lie outside.

A polygon is an array of shape (k, 2), k at least 3: its vertices in order, the last not a repetition of the first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.measure import points_in_poly


def polygon_area(polygon: NDArray[np.float64]) -> float:
    """Return the area, in the square of the unit of the vertices.

    >>> polygon_area(np.array([[0.0, 0.0], [0.0, 2.0], [3.0, 2.0], [3.0, 0.0]]))
    6.0
    """
    rows, cols = (polygon - polygon[0]).T
    return float(abs(rows @ np.roll(cols, -1) - cols @ np.roll(rows, -1)) / 2)


def polygon_centre(polygon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centroid of the area, shape (2,); the mean of the vertices where there is no area."""
    moved = polygon - polygon[0]
    following = np.roll(moved, -1, axis=0)
    cross = moved[:, 0] * following[:, 1] - moved[:, 1] * following[:, 0]
    centre: NDArray[np.float64] = polygon.mean(axis=0)
    if abs(cross.sum()) > 1e-12:
        centre = polygon[0] + ((moved + following) * cross[:, None]).sum(axis=0) / (3 * cross.sum())
    return centre


def distances_outside(points: NDArray[np.float64], polygon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each of (n, 2) points lies outside the polygon, shape (n,); 0 within."""
    sides = np.roll(polygon, -1, axis=0) - polygon
    offsets = points[:, None] - polygon
    lengths = np.maximum((sides**2).sum(axis=1), 1e-300)
    along = ((offsets * sides).sum(axis=2) / lengths).clip(0, 1)
    distances = np.sqrt(((offsets - along[..., None] * sides) ** 2).sum(axis=2)).min(axis=1)
    return np.where(points_in_poly(points, polygon), 0.0, distances)
