"""The graphs of `unary.detectors.mass` and `unary.detectors.prominence`."""

from __future__ import annotations

import math

import numpy as np

from unary.detectors import mass as own
from unary.detectors.coarse import STEP
from unary.detectors.graphs.builder import Graph, Value
from unary.detectors.graphs.filters import (
    correlate_both,
    enlarge_cells,
    find_median,
    grow,
    measure_spread,
    pick,
    smooth_gaussian,
    sum_cells,
)
from unary.detectors.graphs.view import Cells, Examined, Inputs, examine_cells, smooth_inside
from unary.detectors.mass import Mass, Tail, build_ring, pair_tails
from unary.detectors.prominence import COARSE, Prominence
from unary.detectors.states import require_fitted

_SOBEL = np.asarray([-1.0, 0.0, 1.0]), np.asarray([1.0, 2.0, 1.0])


def examine_mass(g: Graph, view: Inputs, detector: Mass) -> Examined:
    """Write what the detector does."""
    tails, cells, config = pair_tails(require_fitted(detector.tails, "mass")), view.cells, detector.config
    if config.muscle:
        away = np.abs(np.arange(-own.MARGIN, own.MARGIN + 1))
        left_out = grow(g, view.muscle, away[:, None] + away <= own.MARGIN)
        kept = cells.inside & ~left_out
        cells = Cells(g.where(kept, cells.bright, np.float32(0)), kept)
    # Differences of brightness alone matter: those from the mean keep the digits that float32 would lose.
    level = g.mean(pick(g, cells.bright, cells.inside))
    cells = Cells(g.where(cells.inside, cells.bright - level, np.float32(0)), cells.inside)
    spread = measure_spread(g, pick(g, cells.bright, cells.inside))
    varied = spread > np.float32(own.FLAT)  # NaN of nothing compares as False
    spread = g.where(varied, spread, np.float32(1))
    radii = {number: radius / STEP for number, radius in enumerate(config.radii_px)}
    pointing, typical = _find_pointing(g, cells)
    sums = []
    for number, (rise_tail, convergence_tail) in tails.items():
        rise = _measure_rise(g, cells, radii[number], spread)
        convergence = _measure_convergence(g, cells, pointing, radii[number])
        convergence = g.where(typical > np.float32(0), convergence, np.float32(own.UNKNOWN))
        both = [g.where(varied, answer, np.float32(own.UNKNOWN)) for answer in (rise, convergence)]
        sums.append(_count(both[0], rise_tail) + _count(both[1], convergence_tail))
    best = g.op("Max", *sums, np.float32(own.LOWEST))
    return examine_cells(g, view, best, STEP, config.strongest)


def _count(values: Value, tail: Tail) -> Value:
    return (values - np.float32(tail.start)) / np.float32(tail.excess)


def _measure_rise(g: Graph, cells: Cells, radius: float, spread: Value) -> Value:
    mean, weight = smooth_inside(g, cells, own.MEAN * radius)
    rows, cols = g.length(mean, 0), g.length(mean, 1)
    reach = math.ceil(own.DISTANCE * radius)
    level = g.mean(pick(g, mean, cells.inside))
    around = [reach, reach]
    value_around = g.pad(mean, around, around, np.float32(0))
    seen_around = g.pad(g.cast(weight > np.float32(own.LEAST_WEIGHT), np.float32), around, around, np.float32(0))
    values: list[Value] = []
    seens: list[Value] = []
    for angle in own.DIRECTIONS.tolist():
        down, right = (round(own.DISTANCE * radius * part) for part in (math.sin(angle), math.cos(angle)))
        first = np.asarray([reach + down]), np.asarray([reach + right])
        for plane, into in ((value_around, values), (seen_around, seens)):
            high = g.cut(plane, 0, g.constant(first[0]), rows + first[0])
            into.append(g.cut(high, 1, g.constant(first[1]), cols + first[1]))
    highest = g.op(
        "Max", *(g.where(s > np.float32(0.5), v, np.float32(-1e30)) for v, s in zip(values, seens, strict=True))
    )
    relatives = [(v - level) * s for v, s in zip(values, seens, strict=True)]
    count, total = g.op("Sum", *seens), g.op("Sum", *relatives)
    squares = g.op("Sum", *(relative * relative for relative in relatives))
    known = cells.inside & (count >= np.float32(own.FEWEST_DIRECTIONS))
    number = g.op("Max", count, np.float32(1))
    mean_relative = total / number
    variance = g.op("Relu", squares / number - mean_relative * mean_relative)
    floor = spread * np.float32(own.SPREAD_FLOOR)
    beside = g.op("Sqrt", variance + floor * floor)
    rise = g.where(known, mean - highest, np.float32(0)) / g.op("Sqrt", beside * spread)
    return g.where(known, rise, np.float32(own.UNKNOWN))


def _find_pointing(g: Graph, cells: Cells) -> tuple[Value, Value]:
    """The weighted slopes and where they are known, (1, 3, rows, cols), and the typical strength of a slope."""
    smoothed = smooth_inside(g, cells, own.GRADIENT)[0]
    inner = ~grow(g, ~cells.inside, np.ones((3, 3), bool))
    inner_plane = g.cast(inner, np.float32)
    step, across = _SOBEL
    slopes = [
        correlate_both(g, smoothed, step, across) * inner_plane,
        correlate_both(g, smoothed, across, step) * inner_plane,
    ]
    strength = g.op("Sqrt", slopes[0] * slopes[0] + slopes[1] * slopes[1])
    typical = find_median(g, pick(g, strength, inner))
    safe = g.where(typical > np.float32(0), typical, np.float32(1))
    relative = g.op("Min", strength / safe, np.float32(own.STRONGEST))
    weight = g.op("Sqrt", relative) / g.op("Max", strength, safe * np.float32(own.QUIET))
    planes = [g.planes(plane) for plane in (slopes[0] * weight, slopes[1] * weight, inner_plane)]
    return g.op("Concat", *planes, axis=1), typical


def _measure_convergence(g: Graph, cells: Cells, fields: Value, radius: float) -> Value:
    reach = math.ceil(own.RING[1] * radius)
    down, right, ring = (kernel[::-1, ::-1] for kernel in build_ring(radius, reach))
    nothing = np.zeros_like(ring)
    kernels = np.asarray([[down, right, nothing], [nothing, nothing, ring]], np.float32)
    found = g.op("Conv", fields, kernels, pads=[reach] * 4)
    pointing, seen = (
        g.op("Squeeze", part, np.asarray([0, 1])) for part in g.ops("Split", found, axis=1, num_outputs=2, outputs=2)
    )
    mean = pointing / g.op("Max", seen, np.float32(own.LEAST_RING * float(ring.sum())))
    return g.where(cells.inside, mean, np.float32(own.UNKNOWN))


def examine_prominence(g: Graph, view: Inputs, detector: Prominence) -> Examined:
    """Write what the detector does."""
    inside_plane = g.cast(view.tissue, np.float32)
    inside, bright = (
        sum_cells(g, plane, COARSE) * np.float32(1 / COARSE**2)
        for plane in (inside_plane, view.intensity * inside_plane)
    )
    if detector.config.muscle:
        outside = enlarge_cells(g, view.muscle, g.length(inside, 0), g.length(inside, 1), STEP // COARSE)
        inside, bright = (g.where(outside, np.float32(0), plane) for plane in (inside, bright))
    sigma = detector.config.region_px / COARSE
    # As a difference from the mean of the tissue, which keeps the digits that float32 would lose.
    level = g.op("ReduceSum", bright, keepdims=0) / g.op("Max", g.op("ReduceSum", inside, keepdims=0), np.float32(1))
    share = smooth_gaussian(g, inside, sigma) + np.float32(1e-3)
    regional = (smooth_gaussian(g, bright - inside * level, sigma) - level * np.float32(1e-3)) / share
    values = pick(g, regional, inside > np.float32(0.5))
    spread = measure_spread(g, values)
    varied = spread > np.float32(0)
    standing = (regional - find_median(g, values)) / g.where(varied, spread, np.float32(1))
    standing = g.where((inside > np.float32(0)) & varied, standing, np.float32(0))
    return examine_cells(g, view, standing, COARSE, None)
