"""Shapes of masses: circumscribed, irregular and spiculated (BI-RADS atlas, 5th edition: shape and margin)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Plane = NDArray[np.float32]
Margin = Literal["circumscribed", "irregular", "spiculated"]

REACH: dict[Margin, float] = {"circumscribed": 1.25, "irregular": 1.6, "spiculated": 2.6}
"""How far a mass reaches from its centre, in units of the radius of its body, at the most."""

_FAINT = 0.02  # of the peak, where a mass ends


def draw_mass(
    diameter_px: float, margin: Margin, rng: np.random.Generator, *, pixels_per_mm: float
) -> tuple[Plane, NDArray[np.bool_]]:
    """Return what a mass adds, on a square of odd side, float32, and its body, bool.

    The body has about the diameter and a mean of 1 within; strands of a spiculated mass reach beyond it and are no part
    of it. Nothing is left where less than 2 % would be added.
    """
    radius = diameter_px / 2
    half = math.ceil(radius * REACH[margin]) + 2
    side = 2 * half + 1
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    ratio = np.hypot(rows, cols) / (radius * _draw_outline(np.arctan2(rows, cols), margin, rng))
    if margin == "circumscribed":
        profile = np.clip(1 - ratio ** rng.uniform(2, 5), 0, None) ** 0.5  # a ball, or flatter
        uneven = 0.06
    else:
        profile = 1 / (1 + np.exp(np.clip((ratio - 0.95) / rng.uniform(0.03, 0.12), -30, 30)))
        uneven = 0.2
    layer = profile * np.clip(1 + uneven * _draw_texture(side, radius, rng), 0.2, None)
    body = ratio <= 1
    layer /= layer[body].mean()
    if margin == "spiculated":
        layer += _draw_strands(side, radius, rng, pixels_per_mm=pixels_per_mm)
    fade = np.clip((half - np.hypot(rows, cols)) / (0.1 * half), 0, 1)
    layer = (layer * fade).astype(np.float32)
    return np.where(layer > _FAINT, layer, np.float32(0)), body


def _draw_outline(angle: Plane, margin: Margin, rng: np.random.Generator) -> NDArray[np.float64]:
    """Radius by angle in units of the mean one: an ellipse with lobes, ragged where it is not circumscribed."""
    highest, size = (4, 0.08) if margin == "circumscribed" else (12, 0.2)
    outline: NDArray[np.float64] = np.ones(angle.shape)
    for order in range(2, highest + 1):
        outline += size * rng.normal() / order * np.cos(order * angle + rng.uniform(0, 2 * math.pi))
    np.clip(outline, 0.55, 1.5, out=outline)
    return outline


def _draw_texture(side: int, radius: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Clumps at a third and a tenth of the radius, with mean 0 and standard deviation 1."""
    total = np.zeros((side, side))
    for share, weight in ((0.3, 1.0), (0.1, 0.6)):
        noise = ndimage.gaussian_filter(rng.standard_normal((side, side), np.float32), max(share * radius, 0.5))
        total += weight * noise / noise.std()
    total /= total.std()
    return total


def _draw_strands(side: int, radius: float, rng: np.random.Generator, *, pixels_per_mm: float) -> Plane:
    """Thin lines that leave the body, bent, fading outwards; 0.2 to 0.5 of the body's mean where they begin."""
    centre, total = (side - 1) / 2, np.zeros((side, side), np.float32)
    count = int(np.clip(rng.normal(8 + 0.9 * radius / pixels_per_mm, 4), 6, 36))
    for width_mm in (0.15, 0.3, 0.5):  # standard deviations across
        sigma = max(width_mm * pixels_per_mm, 0.4)
        lines = np.zeros((side, side), np.float32)
        for _ in range(max(count // 3, 1)):
            heading = rng.uniform(0, 2 * math.pi)
            steps = np.arange(0.5 * radius, radius * (1.1 + rng.gamma(2.5, 0.25)), 0.5)
            if len(steps) < 2:
                continue
            turn = heading + rng.normal(0, 0.12) * (steps / radius - 0.5) + rng.normal(0, 0.04) * (steps / radius) ** 2
            row = np.rint(centre + steps * np.sin(turn)).astype(int)
            col = np.rint(centre + steps * np.cos(turn)).astype(int)
            height = rng.uniform(0.2, 0.5) * np.linspace(1, 0, len(steps)) ** rng.uniform(0.5, 1.2)
            inside = (row >= 0) & (row < side) & (col >= 0) & (col < side)
            np.add.at(lines, (row[inside], col[inside]), height[inside] / 2)  # two steps fall on a pixel
        total += ndimage.gaussian_filter(lines, sigma) * np.float32(sigma * math.sqrt(2 * math.pi))
    return total
