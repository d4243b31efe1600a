"""What the graphs of all detectors share: the inputs, the tissue, and going over patches and tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unary.detectors.coarse import LEAST_WEIGHT, MOSTLY, STEP
from unary.detectors.filters import MEAN_WINDOW_PX
from unary.detectors.graphs.builder import Graph, Value
from unary.detectors.graphs.filters import (
    enlarge_cells,
    erode,
    find_median,
    pick,
    smooth_gaussian,
    smooth_windows,
    sum_cells,
)
from unary.detectors.tissue import RIM_PX, SAMPLE_PX
from unary.patches.preparation import FULL_SCALE


@dataclass(frozen=True, eq=False)
class Cells:
    """The tissue in cells of 8 x 8 pixels, as `unary.detectors.coarse.Coarse`."""

    bright: Value
    inside: Value


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a graph, and what all dense detectors make of them.

    ``pixels``, uint16, and ``mask``, bool, are (rows, cols); ``muscle``, bool, is on the coarse grid; ``origins``,
    (n, 2), int64, are followed by one more patch, so that there always is one. ``tissue``, bool, and ``intensity``,
    float32, are those of `unary.detectors.tissue.Tissue`; ``size_px`` is the side of a patch.
    """

    pixels: Value
    mask: Value
    muscle: Value
    origins: Value
    size_px: int
    tissue: Value
    intensity: Value
    cells: Cells

    @property
    def rows(self) -> Value:
        """How many rows, shape (1,)."""
        return self.pixels.graph.length(self.pixels, 0)

    @property
    def cols(self) -> Value:
        """How many columns, shape (1,)."""
        return self.pixels.graph.length(self.pixels, 1)


@dataclass(frozen=True, eq=False)
class Examined:
    """What the graph of a detector says: ``scores``, (n,), float64, and a map in cells of ``step`` pixels a side.

    The map is not yet NaN outside of ``seen``, bool, (rows, cols).
    """

    scores: Value
    cells: Value
    step: int
    seen: Value


def read_inputs(g: Graph, size_px: int) -> Inputs:
    """Write what is made of the inputs ``pixels``, ``mask``, ``muscle`` and ``origins``."""
    pixels, mask, muscle, origins = (Value(g, name) for name in ("pixels", "mask", "muscle", "origins"))
    origins = g.op("Concat", g.cast(origins, np.int64), np.zeros((1, 2), np.int64), axis=0)
    inner = erode(g, mask, RIM_PX)
    has_inner = g.largest(g.cast(inner, np.int32)) > np.int32(0)
    tissue = inner | (mask & ~has_inner)  # whole where nothing would be left
    inside = g.cast(tissue, np.float32)
    raw = g.cast(pixels, np.float32) / np.float32(FULL_SCALE)
    share = smooth_windows(g, inside, MEAN_WINDOW_PX) + np.float32(1e-3)
    intensity = g.where(tissue, raw, smooth_windows(g, raw * inside, MEAN_WINDOW_PX) / share)
    count, bright = sum_cells(g, inside, STEP), sum_cells(g, intensity * inside, STEP)
    mostly = count >= np.float32(MOSTLY * STEP * STEP)
    cells = Cells(g.where(mostly, bright / g.op("Max", count, np.float32(1)), np.float32(0)), mostly)
    return Inputs(pixels, mask, muscle, origins, size_px, tissue, intensity, cells)


def smooth_inside(g: Graph, cells: Cells, sigma: float) -> tuple[Value, Value]:
    """Return what `unary.detectors.coarse.smooth_inside` does."""
    weight = smooth_gaussian(g, g.cast(cells.inside, np.float32), sigma)
    summed = smooth_gaussian(g, cells.bright, sigma)
    return summed / g.op("Max", weight, np.float32(LEAST_WEIGHT)), weight


def find_typical(g: Graph, local: Value, view: Inputs) -> Value:
    """Return the median of a local scale on the tissue, a scalar; of a large image every second place counts."""
    sizes = g.cast(view.rows * view.cols - np.asarray([1]), np.float64)
    most = g.op("Floor", g.op("Sqrt", g.op("Floor", sizes * np.float64(1 / SAMPLE_PX))))
    step = g.cast(most, np.int64) + np.asarray([1])
    thin: list[Value] = []
    for plane in (local, view.tissue):
        end = np.iinfo(np.int64).max
        thin.append(g.cut(g.cut(plane, 0, 0, end, step), 1, 0, end, step))
    return find_median(g, pick(g, thin[0], thin[1]))


def over_patches(g: Graph, view: Inputs, score: Callable[[Value, Value], Value]) -> Value:
    """Return the scores of all patches but the last, (n,), float64; ``score`` takes row and column, shape (1,) each."""

    def write(number: Value) -> list[Value]:
        origin = g.op("Gather", view.origins, number, axis=0)
        return [g.op("Reshape", score(g.cut(origin, 0, 0, 1), g.cut(origin, 0, 1, 2)), np.zeros(0, np.int64))]

    count = g.length(view.origins, 0)
    return g.cut(g.loop(count, write, [np.float64])[0], 0, 0, count - np.asarray([1]))


def pool_patches(g: Graph, view: Inputs, answer: Value, strongest: int | None) -> Value:
    """Return what `unary.detectors.tissue.pool_patches` does, of an answer, (rows, cols)."""
    size = np.asarray([view.size_px])

    def score(row: Value, col: Value) -> Value:
        values = g.reshape(g.cut(g.cut(answer, 0, row, row + size), 1, col, col + size), -1)
        if strongest is not None:
            most = g.op("Min", g.length(values, 0), np.asarray([strongest]))
            values = g.ops("TopK", values, most, sorted=0, outputs=2)[0]
        return g.mean(g.cast(values, np.float64))

    return over_patches(g, view, score)


def examine_cells(g: Graph, view: Inputs, cells: Value, step: int, strongest: int | None) -> Examined:
    """Return what `unary.detectors.tissue.examine_answer` makes of an answer in cells."""
    answer = cells if step == 1 else enlarge_cells(g, cells, view.rows, view.cols, step)
    return Examined(pool_patches(g, view, answer, strongest), cells, step, view.tissue)


def over_tiles(
    g: Graph, view: Inputs, tile_px: int, write: Callable[[Value, Value], Sequence[Value]], count: int
) -> tuple[Value, ...]:
    """Return planes, (rows, cols), made tile by tile where there is tissue, 0 elsewhere.

    ``write`` takes the first row and column of a tile, shape (1,) each, and returns ``count`` values of as many rows
    and columns as the tile has within the image.
    """
    side = np.asarray([tile_px])
    high, wide = ((length + side - np.asarray([1])) // side for length in (view.rows, view.cols))
    padding = [high * side - view.rows, wide * side - view.cols]
    inside = g.pad(g.cast(view.tissue, np.float32), [0, 0], padding, np.float32(0))
    inside = g.op("ReduceMax", g.reshape(inside, high, tile_px, wide, tile_px), np.asarray([1, 3]), keepdims=0)
    places = g.op("Transpose", g.op("NonZero", inside > np.float32(0)), perm=[1, 0])  # (k, 2)

    def examine(number: Value) -> list[Value]:
        corner = g.op("Gather", places, number, axis=0) * side
        found = write(g.cut(corner, 0, 0, 1), g.cut(corner, 0, 1, 2))
        missing = [[side - g.length(value, axis) for axis in (0, 1)] for value in found]
        return [g.pad(value, [0, 0], more, np.float32(0)) for value, more in zip(found, missing, strict=True)]

    tiles = g.loop(g.length(places, 0), examine, [np.float32] * count)
    number = g.cut(places, 1, 0, 1) * wide + g.cut(places, 1, 1, 2)
    planes = []
    for stack in tiles:
        empty = g.op("ConstantOfShape", g.join(high * wide, tile_px, tile_px))
        placed = g.reshape(g.op("ScatterND", empty, number, stack), high, wide, tile_px, tile_px)
        whole = g.reshape(g.op("Transpose", placed, perm=[0, 2, 1, 3]), high * side, wide * side)
        planes.append(g.cut(g.cut(whole, 0, 0, view.rows), 1, 0, view.cols))
    return tuple(planes)
