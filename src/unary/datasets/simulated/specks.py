"""Shapes of single calcifications: templates with peak 1, drawn finely and averaged onto the grid.

Each is drawn four times finer than the grid around a random place within a pixel, averaged onto the grid and blurred as
by a detector. The shapes are those of the radiologist's words (reporting atlas of the American College of Radiology,
BI-RADS, 5th edition, 2013): round and punctate, amorphous, pleomorphic, fine linear, and rims of calcified walls.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Plane = NDArray[np.float32]
Shape = Literal["compact", "ring", "rod", "clump", "round", "haze"]

_FINER = 4
_REACH: dict[Shape, float] = {"compact": 1.4, "ring": 1.4, "rod": 2.2, "clump": 2.2, "round": 1.3, "haze": 2.0}
_BLUR_PX = (0.4, 0.9)


def draw_calcification(
    diameter_px: float, shape: Shape, rng: np.random.Generator, *, blur_px: float | None = None
) -> Plane:
    """Return one calcification with peak 1 on a square of odd side, float32.

    ``compact`` has an irregular outline and ``round`` a smooth one; ``haze`` is a ragged outline that fades away;
    ``ring`` a bright wall around a core; ``rod`` straight; ``clump`` several grains. The detector's blur is the
    standard deviation of a Gaussian, by default drawn between 0.4 and 0.9 px.
    """
    radius = diameter_px / 2 * _FINER
    half = math.ceil(diameter_px / 2 * _REACH[shape]) + 4 + math.ceil(2 * (blur_px or 0))
    side = (2 * half + 1) * _FINER
    centre = side / 2 - 0.5 + rng.uniform(-_FINER / 2, _FINER / 2, 2)
    if shape == "ring":
        distance = _outline_distance(side, centre, radius, rng, aspect=1 + 0.2 * abs(rng.normal()), roughness=0.1)
        wall, core = rng.uniform(0.15, 0.5), rng.uniform(0.0, 0.8)
        thickness = np.where(distance > 1, 0.0, np.where(distance > 1 - wall, 1.0, core))
    elif shape == "clump":
        thickness = np.zeros((side, side))
        for _ in range(int(rng.integers(2, 6))):
            grain = radius * rng.uniform(0.3, 0.7)
            distance = _outline_distance(side, centre + rng.normal(0, 0.7 * radius, 2), grain, rng, roughness=0.3)
            thickness = np.maximum(thickness, np.sqrt(np.clip(1 - distance**2, 0, None)) * rng.uniform(0.5, 1))
    elif shape == "haze":
        distance = _outline_distance(side, centre, radius, rng, aspect=1 + 0.3 * abs(rng.normal()), roughness=0.4)
        thickness = np.exp(-2 * distance**2)
    elif shape == "round":
        distance = _outline_distance(side, centre, radius, rng, aspect=1 + 0.1 * abs(rng.normal()), roughness=0.05)
        thickness = np.sqrt(np.clip(1 - distance**2, 0, None))
    else:
        aspect = rng.uniform(2, 5) if shape == "rod" else 1 + 0.2 * abs(rng.normal())
        size = radius / math.sqrt(aspect) if shape == "rod" else radius
        distance = _outline_distance(side, centre, size, rng, aspect=aspect, roughness=rng.uniform(0.05, 0.35))
        flatness = 0.5 if shape == "rod" else rng.choice([0.25, 0.5, 1.0])
        thickness = np.clip(1 - distance**2, 0, None) ** flatness
    return _image(thickness, rng.uniform(*_BLUR_PX) if blur_px is None else blur_px)


def draw_line(length_px: float, width_px: float, heading: float, rng: np.random.Generator, *, blur_px: float) -> Plane:
    """Return one fine linear calcification with peak 1, bent and uneven, on a square of odd side, float32.

    ``heading`` is the angle, in radians, of its middle from the direction of the columns towards that of the rows.
    """
    half = math.ceil(length_px / 2 + width_px) + 4 + math.ceil(2 * blur_px)
    side = (2 * half + 1) * _FINER
    along = np.linspace(-0.5, 0.5, max(int(2 * length_px), 2) + 1)
    bend = length_px * (0.25 * rng.normal() * (along**2 - 1 / 12) + 0.02 * rng.normal(size=len(along)))
    steps = np.stack([along * length_px, bend])
    turn = np.array([[math.sin(heading), math.cos(heading)], [math.cos(heading), -math.sin(heading)]])
    places = (turn @ steps) * _FINER + (side / 2 - 0.5 + rng.uniform(-_FINER / 2, _FINER / 2, (2, 1)))
    uneven = np.clip(1 + 0.3 * ndimage.gaussian_filter1d(rng.normal(size=len(along)), 1), 0.4, 2)
    radii = np.maximum(width_px / 2 * _FINER * uneven, 1.0)
    rows, cols = np.mgrid[:side, :side].astype(np.float32)
    thickness = np.zeros((side, side), np.float32)
    for row, col, radius in zip(*places, radii, strict=True):
        distance = np.square(rows - row) + np.square(cols - col)
        np.maximum(thickness, np.sqrt(np.clip(1 - distance / radius**2, 0, None)), out=thickness)
    return _image(thickness, blur_px)


def _image(thickness: NDArray[np.floating], blur_px: float) -> Plane:
    """Average onto the grid, blur, and divide by the peak."""
    side = len(thickness) // _FINER
    blocks = thickness.reshape(side, _FINER, side, _FINER).mean(axis=(1, 3))
    blurred = ndimage.gaussian_filter(blocks, blur_px)
    template: Plane = (blurred / blurred.max()).astype(np.float32)
    return template


def _outline_distance(
    side: int,
    centre: NDArray[np.float64],
    radius: float,
    rng: np.random.Generator,
    *,
    aspect: float = 1.0,
    roughness: float,
) -> NDArray[np.float64]:
    """Distance from the centre in units of an irregular ellipse's own radius: 1 on its outline."""
    angle = rng.uniform(0, math.pi)
    rows, cols = np.mgrid[:side, :side].astype(np.float64)
    rows -= centre[0]
    cols -= centre[1]
    along = (cols * math.cos(angle) + rows * math.sin(angle)) / aspect
    across = rows * math.cos(angle) - cols * math.sin(angle)
    bearing = np.arctan2(across, along)
    outline = np.ones((side, side))
    for order in range(2, 6):
        outline += roughness * rng.normal() / order * np.cos(order * bearing + rng.uniform(0, 2 * math.pi))
    distance: NDArray[np.float64] = np.hypot(along, across) / (radius * np.maximum(outline, 0.3))
    return distance
