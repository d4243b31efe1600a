"""The graph of `unary.detectors.fusion`: parts, what is normal for each, and what stands in where some are silent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unary.detectors.fusion import FusedPart, Parts
from unary.detectors.graphs.builder import Graph, Value
from unary.detectors.graphs.filters import enlarge_cells
from unary.detectors.graphs.view import Examined, Inputs
from unary.detectors.protocol import Detector
from unary.detectors.surprisal import StandIn, Surprisal

_CELLS = 1 << 16

ExaminePart = Callable[[Graph, Inputs, Detector], Examined]


@dataclass(frozen=True, eq=False)
class _Told:
    """What a part adds to the sum: to scores, and to the map in cells of ``step`` pixels, where it has ``seen``."""

    scores: Value
    cells: Value
    step: int
    seen: Value


def examine_fusion(g: Graph, view: Inputs, parts: Parts, examine: ExaminePart) -> Examined:
    """Write what a fusion does, its parts by ``examine``; those that are silent in no image come before branches."""
    shorter = g.scalar(g.op("Min", view.rows, view.cols))
    stages: list[StandIn | None] = [None, *parts.stand_ins]  # ever more parts are silent, in ever smaller images
    silenced = {name for one in parts.stand_ins for name in one.silent}
    always = {part.name: _tell_part(g, view, part, examine) for part in parts if part.name not in silenced}

    def add_up(stage: StandIn | None) -> tuple[Value, ...]:
        silent = () if stage is None else stage.silent
        heard = [part for part in parts if part.name not in silent]
        told = [always.get(part.name) or _tell_part(g, view, part, examine) for part in heard]
        return _add_up(g, view, told, stage)

    def write(number: int) -> tuple[Value, ...]:
        stage = stages[number]
        if number + 1 == len(stages):
            return add_up(stage)
        silent = () if stage is None else stage.silent
        least = max(getattr(part.detector, "least_side_px", 0) for part in parts if part.name not in silent)
        kinds: list[type[np.generic]] = [np.float64, np.float32]
        return g.choose(shorter < np.int64(least), lambda: write(number + 1), lambda: add_up(stage), kinds)

    scores, total = write(0)
    return Examined(scores, total, 1, view.tissue)


def _tell_part(g: Graph, view: Inputs, part: FusedPart, examine: ExaminePart) -> _Told:
    found = examine(g, view, part.detector)
    scores = _tell_few(g, found.scores, part.surprisal) * np.float64(part.weight)
    cells = found.cells if found.step > 1 else g.where(found.seen, found.cells, np.float32(0))
    return _Told(scores, _tell(g, cells, part.surprisal) * np.float32(part.weight), found.step, found.seen)


def _add_up(g: Graph, view: Inputs, parts: Sequence[_Told], stand_in: StandIn | None) -> tuple[Value, Value]:
    """Scores and map of the parts that are not silent, in the unit of the sum of all."""
    scores: Value | None = None
    total: Value | None = None
    for part in parts:
        plane = part.cells
        if part.step > 1:
            plane = enlarge_cells(g, plane, view.rows, view.cols, part.step)
        plane = g.where(part.seen, plane, np.float32(np.nan))
        scores, total = (new if old is None else old + new for old, new in ((scores, part.scores), (total, plane)))
    assert scores is not None
    assert total is not None
    if stand_in is not None:
        scores = _invert(g, _tell_few(g, scores, stand_in.rest), stand_in.whole, _interpolate_few)
        seen = ~g.op("IsNaN", total)
        sums = _invert(g, _tell(g, g.where(seen, total, np.float32(0)), stand_in.rest), stand_in.whole, _interpolate)
        total = g.where(seen, sums, np.float32(np.nan))
    return scores, total


def _tell_few(g: Graph, values: Value, surprisal: Surprisal) -> Value:
    """Return the surprisals of patch scores, (n,), float64."""
    body = _interpolate_few(g, values, np.asarray(surprisal.values), np.asarray(surprisal.surprisals))
    return _continue(g, values, body, (surprisal.tail_start, surprisal.tail_surprisal, 1 / surprisal.tail_scale))


def _tell(g: Graph, values: Value, surprisal: Surprisal) -> Value:
    """Return the surprisals of a plane, float32."""
    body = _interpolate(g, values, np.asarray(surprisal.values), np.asarray(surprisal.surprisals))
    return _continue(
        g, values, body, (surprisal.tail_start, surprisal.tail_surprisal, 1 / surprisal.tail_scale), np.float32
    )


def _invert(g: Graph, told: Value, surprisal: Surprisal, interpolate: Callable[..., Value]) -> Value:
    """Return the lowest values that are as surprising."""
    heights, first = np.unique(surprisal.surprisals, return_index=True)
    body = interpolate(g, told, heights, np.asarray(surprisal.values)[first])
    kind = np.float64 if interpolate is _interpolate_few else np.float32
    return _continue(g, told, body, (surprisal.tail_surprisal, surprisal.tail_start, surprisal.tail_scale), kind)


def _continue(
    g: Graph, values: Value, body: Value, tail: tuple[float, float, float], kind: type[np.floating] = np.float64
) -> Value:
    """The body up to where the tail starts, and from there, at a height, a straight line of some slope."""
    start, height, slope = (kind(each) for each in tail)
    return g.where(values > start, (values - start) * slope + height, body)


def _interpolate_few(g: Graph, values: Value, knots: NDArray[np.float64], heights: NDArray[np.float64]) -> Value:
    """Return what `numpy.interp` does of a few values, (n,), float64."""
    if len(knots) == 1:
        return values * np.float64(0) + np.float64(heights[0])
    beyond = g.cast(g.op("Unsqueeze", values, np.asarray([1])) >= knots[None], np.int64)
    place = g.op("ReduceSum", beyond, np.asarray([1]), keepdims=0) - np.asarray([1])
    place = g.op("Max", g.op("Min", place, np.int64(len(knots) - 2)), np.int64(0))
    return _draw_line(g, values, place, knots, heights)


def _interpolate(g: Graph, values: Value, knots: NDArray[np.float64], heights: NDArray[np.float64]) -> Value:
    """Return what `numpy.interp` does of a plane, float32.

    A table of many even cells says from which knot on to search; few steps then do.
    """
    rounded = knots.astype(np.float32).astype(np.float64)
    if len(knots) == 1 or not rounded[-1] > rounded[0]:
        return values * np.float32(0) + np.float32(heights[-1])
    width = (rounded[-1] - rounded[0]) / _CELLS
    edges = rounded[0] + width * np.arange(-1, _CELLS + 3)  # a cell on either side for rounding
    before = np.maximum(np.searchsorted(rounded, edges, side="right") - 1, 0)
    first, most = before[: _CELLS + 1], int((before[3:] - before[:-3]).max())
    cell = (
        g.op("Clip", values, np.float32(rounded[0]), np.float32(rounded[-1])) - np.float32(rounded[0])
    ) * np.float32(1 / width)
    cell = g.cast(g.op("Clip", cell, np.float32(0), np.float32(_CELLS)), np.int32)
    place = g.op("Gather", first.astype(np.int32), cell)
    step = 1 << max(most.bit_length() - 1, 0)
    padded = np.concatenate([rounded, np.full(2 * step, np.inf)]).astype(np.float32)
    while step and most:
        further = place + np.int32(step)
        place = g.where(values >= g.op("Gather", padded, further), further, place)
        step //= 2
    place = g.op("Min", place, np.int32(len(knots) - 2))
    return _draw_line(g, values, place, rounded, heights, np.float32)


def _draw_line(
    g: Graph,
    values: Value,
    place: Value,
    knots: NDArray[np.float64],
    heights: NDArray[np.float64],
    kind: type[np.floating] = np.float64,
) -> Value:
    """The line through the knot at a place and the next one; the outermost heights beyond the outermost knots."""
    gaps = np.diff(knots)
    slopes = np.diff(heights) / np.where(gaps > 0, gaps, np.inf)
    left, height, slope = (g.op("Gather", each[: len(slopes)].astype(kind), place) for each in (knots, heights, slopes))
    inside = g.op("Clip", values, kind(knots[0]), kind(knots[-1]))
    return height + slope * (inside - left)
