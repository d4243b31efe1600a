"""Where the specks of a group lie, and what each of them is like."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.datasets.simulated.plans import LesionClass, LesionPlan
from unary.datasets.simulated.specks import Plane, Shape, draw_calcification, draw_line
from unary.datasets.simulated.tissue import TissueMeasures

_SHAPES: dict[LesionClass, dict[Shape, float]] = {
    "speck": {"round": 0.4, "compact": 0.4, "rod": 0.1, "clump": 0.1},
    "round_cluster": {"round": 0.9, "compact": 0.1},
    "amorphous_cluster": {"haze": 1.0},
    "pleomorphic_cluster": {"compact": 0.45, "clump": 0.3, "rod": 0.2, "haze": 0.05},
    "faint_field": {"haze": 0.4, "compact": 0.4, "rod": 0.2},
    "ring": {"ring": 1.0},
}


@dataclass(frozen=True, eq=False)
class Speck:
    """A template, the pixel of its middle, its contrast and its diameter in mm."""

    template: Plane
    row: int
    col: int
    contrast: float
    size_mm: float


def draw_specks(
    tissue: TissueMeasures, plan: LesionPlan, centre: tuple[float, float], rng: np.random.Generator
) -> list[Speck]:
    """Return the specks of a plan around a centre, (row, col), in pixels; they may lie beyond the image."""
    draw = _draw_branches if plan.kind == "branching_cluster" else _draw_group
    return draw(tissue, plan, centre, rng)


def _draw_group(
    tissue: TissueMeasures, plan: LesionPlan, centre: tuple[float, float], rng: np.random.Generator
) -> list[Speck]:
    """Specks scattered in an ellipse, of like or, where pleomorphic, of unlike size; larger ones are brighter."""
    pixels_per_mm, single = 1 / tissue.spacing_mm, plan.count == 1
    shapes = _SHAPES[plan.kind]
    unlike = 0.0 if single else 0.15 if plan.kind == "round_cluster" else 0.35
    specks = []
    for row, col in np.asarray(centre) + _scatter(plan, rng) * pixels_per_mm:
        relative = math.exp(unlike * rng.normal())
        contrast = plan.contrast * (1.0 if single else relative * math.exp(0.35 * rng.normal()))
        shape: Shape = list(shapes)[int(rng.choice(len(shapes), p=list(shapes.values())))]
        size = plan.size_mm * relative
        template = draw_calcification(size * pixels_per_mm, shape, rng, blur_px=tissue.blur_px)
        specks.append(Speck(template, round(float(row)), round(float(col)), contrast, size))
    return specks


def _scatter(plan: LesionPlan, rng: np.random.Generator) -> NDArray[np.float64]:
    """Places in mm around (0, 0), shape (count, 2): in an ellipse, half of them near few of the others if many."""
    turn, flat = rng.uniform(0, math.pi), rng.uniform(0.4, 1.0)
    radius = plan.spread_mm / 2 * np.sqrt(rng.uniform(size=plan.count)) * rng.uniform(0.6, 1, plan.count)
    bearing = rng.uniform(0, math.tau, plan.count)
    places = np.stack([radius * np.cos(bearing), flat * radius * np.sin(bearing)], axis=1)
    if plan.count >= 10:
        nests = places[rng.integers(plan.count, size=int(rng.integers(2, 5)))]
        drawn = nests[rng.integers(len(nests), size=plan.count)] + 0.1 * plan.spread_mm * rng.normal(size=places.shape)
        away = np.hypot(*drawn.T)[:, None]
        drawn *= np.minimum(1, plan.spread_mm / 2 / np.maximum(away, 1e-9))
        places = np.where(rng.random(plan.count)[:, None] < 0.5, drawn, places)
    along = np.array([[math.sin(turn), math.cos(turn)], [math.cos(turn), -math.sin(turn)]])
    turned: NDArray[np.float64] = places @ along
    return turned


def _draw_branches(
    tissue: TissueMeasures, plan: LesionPlan, centre: tuple[float, float], rng: np.random.Generator
) -> list[Speck]:
    """Fine linear specks, end to end with gaps, along a duct that forks; `LesionPlan.spread_mm` is its length."""
    pixels_per_mm = 1 / tissue.spacing_mm
    main = rng.uniform(0, math.tau)
    start = -plan.spread_mm / 2 * np.array([math.sin(main), math.cos(main)])
    tips = [(start, main)]
    specks: list[Speck] = []
    for _ in range(20 * plan.count):
        if len(specks) >= plan.count:
            break
        number = int(rng.integers(len(tips)))
        place, heading = tips[number]
        heading += 0.2 * rng.normal()
        length = plan.size_mm * math.exp(0.3 * rng.normal())
        gap = plan.spread_mm * len(tips) / plan.count * rng.uniform(0.3, 1.5)
        direction = np.array([math.sin(heading), math.cos(heading)])
        middle, end = place + direction * length / 2, place + direction * max(length * 1.1, gap)
        tips[number] = (end, heading)
        if float(np.hypot(*end)) > plan.spread_mm / 2:  # goes on from elsewhere along the main duct
            tips[number] = (start * rng.uniform(-0.6, 1.0), main + 0.5 * rng.normal())
        elif rng.random() < 0.25 and len(tips) < 4:
            tips.append((end, heading + rng.choice([-1, 1]) * rng.uniform(0.35, 0.8)))
        width = rng.uniform(0.1, 0.3)
        template = draw_line(length * pixels_per_mm, width * pixels_per_mm, heading, rng, blur_px=tissue.blur_px)
        row, col = (np.asarray(centre) + middle * pixels_per_mm).round().astype(int).tolist()
        specks.append(Speck(template, row, col, plan.contrast * math.exp(0.35 * rng.normal()), length / 2))
    return specks
