"""Simulated lesions in images of normal tissue: calcifications of many kinds, and masses.

What a lesion adds is drawn on the grid of the image, blurred as the image is and scaled by what hides it: a
calcification by the fine noise near it, a mass by the spread of regional brightness of this breast. It is added to the
tissue that is there, as attenuation adds up along a ray, so that the image's own noise stays on it; where a mass makes
tissue brighter and the image is noisier in bright tissue, noise of the same grain is added.

Kinds, sizes, numbers and distributions follow the reporting atlas of the American College of Radiology (BI-RADS, 5th
edition, 2013), not the annotations of any data set: punctate calcifications are below 0.5 mm, round ones below 1 mm,
fine pleomorphic and fine linear ones below 0.5 mm, and a group is at least five within 1 cm up to a segment of several
centimetres. How bright they are is not in the atlas; contrasts run from what cannot be seen to the obvious.

Simulated lesions serve to choose among designs, as a prior for detectors that say so, and to ask a model what it finds
in a hospital's own normal images. They prove nothing about real ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from unary.datasets.simulated.groups import draw_specks
from unary.datasets.simulated.masses import draw_mass
from unary.datasets.simulated.plans import MASSES, LesionClass, LesionPlan, draw_plan
from unary.datasets.simulated.specks import Plane
from unary.datasets.simulated.tissue import TissueMeasures
from unary.errors import ImageError
from unary.records import Lesion

_RIM_MM = 3.0  # of tissue around a lesion
_TRIES = 20
_POINT_MM = 0.3  # below it a speck is annotated as a point
_FAINT = 0.02  # of a speck's peak, where it ends


@dataclass(frozen=True, eq=False)
class SimulatedLesion:
    """An image with a lesion.

    Attributes
    ----------
    plan
        What was inserted.
    pixels
        Of the shape and type of the image.
    changed
        Shape (rows, cols), bool: the pixels that may differ from the image.
    inside
        The lesion: specks where they exceed 0.4 of their peak, the body of a mass.
    lesions
        Annotated as by a reader: every speck, around three or more a contour called ``"Cluster"``, or the contour of a
        mass; in pixels, (row, col).
    centre
        (row, col), in pixels.
    """

    plan: LesionPlan
    pixels: NDArray[Any]
    changed: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    lesions: tuple[Lesion, ...]
    centre: tuple[float, float]


def insert_lesion(
    pixels: NDArray[Any],
    tissue: TissueMeasures,
    plan: LesionPlan,
    rng: np.random.Generator,
    *,
    value_range: tuple[float, float] | None = None,
    away_from: Sequence[tuple[float, float]] = (),
    apart_mm: float = 20.0,
    image_id: str = "image",
) -> SimulatedLesion:
    """Return an image of normal tissue with a lesion somewhere inside the tissue.

    Parameters
    ----------
    pixels
        Shape (rows, cols), as `measure_tissue` saw them, perhaps with other lesions inserted; stay as they are.
    value_range
        Lowest and highest value of a pixel; by default those of an integer type, and none for floats.
    away_from
        Centres, (row, col), of lesions that are there, from which this one lies at least ``apart_mm``, its own reach
        not counted.

    Raises
    ------
    ImageError
        If there is no place with enough tissue around.
    """
    if pixels.shape != tissue.shape:
        raise ValueError(f"the tissue was measured on another image: {tissue.shape} against {pixels.shape}")
    centre = _draw_centre(tissue, plan, rng, away_from, apart_mm)
    layer = np.zeros(pixels.shape, np.float32)
    inside = np.zeros(pixels.shape, bool)
    if plan.kind in MASSES:
        lesions = _add_mass(layer, inside, tissue, plan, centre, rng, image_id)
    else:
        lesions = _add_specks(layer, inside, tissue, plan, centre, rng, image_id)
    changed = layer != 0
    low, high = _find_range(pixels, value_range)
    values = np.clip(pixels[changed].astype(np.float32) + layer[changed], low, high)
    result = pixels.copy()
    result[changed] = np.rint(values) if pixels.dtype.kind in "iu" else values
    return SimulatedLesion(plan, result, changed, inside, lesions, centre)


def simulate_lesion(
    pixels: NDArray[Any],
    tissue: TissueMeasures,
    kind: LesionClass,
    rng: np.random.Generator,
    *,
    value_range: tuple[float, float] | None = None,
    away_from: Sequence[tuple[float, float]] = (),
    image_id: str = "image",
) -> SimulatedLesion:
    """Draw a plan of a class and insert it; one that finds no place is drawn again, up to twenty times.

    Parameters and errors are those of `insert_lesion`.
    """
    insert = partial(insert_lesion, pixels, tissue, value_range=value_range, away_from=away_from, image_id=image_id)
    for _ in range(_TRIES - 1):
        try:
            return insert(draw_plan(kind, rng), rng)
        except ImageError:
            continue
    return insert(draw_plan(kind, rng), rng)


def _find_range(pixels: NDArray[Any], value_range: tuple[float, float] | None) -> tuple[float, float]:
    if value_range is not None:
        return value_range
    if pixels.dtype.kind in "iu":
        return float(np.iinfo(pixels.dtype).min), float(np.iinfo(pixels.dtype).max)
    return -math.inf, math.inf


def _draw_centre(
    tissue: TissueMeasures,
    plan: LesionPlan,
    rng: np.random.Generator,
    away_from: Sequence[tuple[float, float]],
    apart_mm: float,
) -> tuple[float, float]:
    """Draw a place whose surroundings hold the lesion, more often in tissue of middling to high brightness."""
    allowed = tissue.depth_mm >= _RIM_MM + plan.reach_mm * (0.8 if plan.kind in MASSES else 1.0)
    rows, cols = np.nonzero(allowed)
    for row, col in away_from:
        places = tissue.locate(rows, cols)
        near = np.hypot(places[0] - row, places[1] - col) * tissue.spacing_mm < apart_mm + plan.reach_mm
        rows, cols = rows[~near], cols[~near]
    if len(rows) == 0:
        raise ImageError(
            f"no place for a {plan.kind} of {2 * plan.reach_mm:.3g} mm: it needs {_RIM_MM:g} mm of tissue around it, "
            f"and no tissue lies deeper than {float(tissue.depth_mm.max(initial=0)):.3g} mm; is the breast small, the "
            "mask empty, or the place taken by other lesions?"
        )
    rank = tissue.rank[rows, cols]
    weight = np.where((rank > 0.3) & (rank < 0.9), 1.0, 0.3)
    chosen = int(rng.choice(len(rows), p=weight / weight.sum()))
    row, col = tissue.locate(rows[chosen], cols[chosen])
    jitter = rng.uniform(-0.5, 0.5, 2) * tissue.step
    return float(row + jitter[0]), float(col + jitter[1])


def _add_specks(
    layer: Plane,
    inside: NDArray[np.bool_],
    tissue: TissueMeasures,
    plan: LesionPlan,
    centre: tuple[float, float],
    rng: np.random.Generator,
    image_id: str,
) -> tuple[Lesion, ...]:
    lesions = []
    for speck in draw_specks(tissue, plan, centre, rng):
        half = len(speck.template) // 2
        low = np.array([speck.row, speck.col]) - half
        if (low < 0).any() or (low + len(speck.template) > layer.shape).any():
            continue  # a template that reaches past the border of the image
        window = (slice(low[0], low[0] + 2 * half + 1), slice(low[1], low[1] + 2 * half + 1))
        peak = speck.contrast * tissue.find_noise(speck.row, speck.col) / _coarse_peak(speck.template, tissue)
        layer[window] += np.where(speck.template > _FAINT, np.float32(peak) * speck.template, np.float32(0))
        inside[window] |= speck.template > 0.4
        radius = speck.size_mm / 2 / tissue.spacing_mm
        place = ((float(speck.row), float(speck.col)),)
        small = speck.size_mm < _POINT_MM
        lesions.append(
            Lesion(image_id, "Calcification", "point" if small else "circle", place, None if small else radius)
        )
    if len(lesions) >= 3:
        points = np.asarray([lesion.points[0] for lesion in lesions])
        try:
            hull = points[ConvexHull(points).vertices]
        except QhullError:  # all on one line
            return tuple(lesions)
        middle = hull.mean(axis=0)
        hull = middle + (hull - middle) * (1 + 0.5 / tissue.spacing_mm / np.hypot(*(hull - middle).T).clip(1))[:, None]
        lesions.append(Lesion(image_id, "Cluster", "contour", tuple((float(r), float(c)) for r, c in hull)))
    return tuple(lesions)


def _coarse_peak(template: Plane, tissue: TissueMeasures) -> float:
    """The peak as it stands where noise is measured, on blocks of pixels."""
    return float(ndimage.uniform_filter(template, tissue.block_px, mode="constant").max())


def _add_mass(
    layer: Plane,
    inside: NDArray[np.bool_],
    tissue: TissueMeasures,
    plan: LesionPlan,
    centre: tuple[float, float],
    rng: np.random.Generator,
    image_id: str,
) -> tuple[Lesion, ...]:
    """Add a mass, cut off where the image or the tissue ends, and noise as the image has it in tissue so bright."""
    margin = MASSES[plan.kind]
    drawn, body = draw_mass(plan.size_mm / tissue.spacing_mm, margin, rng, pixels_per_mm=1 / tissue.spacing_mm)
    half = len(drawn) // 2
    corner = np.rint(centre).astype(int) - half
    low, high = np.clip(corner, 0, layer.shape), np.clip(corner + len(drawn), 0, layer.shape)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    own = (slice(low[0] - corner[0], high[0] - corner[0]), slice(low[1] - corner[1], high[1] - corner[1]))
    held = tissue.mask[window]
    added = np.where(held, np.float32(plan.contrast * tissue.spread) * drawn[own], np.float32(0))
    noise = tissue.draw_noise(window, added, rng)
    layer[window] = added + np.where(added != 0, noise, np.float32(0))
    inside[window] = body[own] & held
    return (Lesion(image_id, "Mass", "contour", _trace(body, corner)),)


def _trace(body: NDArray[np.bool_], corner: NDArray[np.int_]) -> tuple[tuple[float, float], ...]:
    """Vertices of a body that is star-shaped around its middle, at 72 angles."""
    middle = len(body) // 2
    steps = np.arange(0, middle, 0.5)
    points = []
    for angle in np.linspace(0, math.tau, 72, endpoint=False):
        rows = np.rint(middle + steps * math.sin(angle)).astype(int)
        cols = np.rint(middle + steps * math.cos(angle)).astype(int)
        last = steps[body[rows, cols]].max(initial=0.5)
        points.append((corner[0] + middle + last * math.sin(angle), corner[1] + middle + last * math.cos(angle)))
    return tuple((float(row), float(col)) for row, col in points)
