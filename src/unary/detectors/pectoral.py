"""The pectoral muscle as a region: the corner of a mammogram that a straight bright edge cuts off at the chest wall.

In oblique views the muscle is as bright as a mass and larger, so that whatever looks for bright regions finds it first.
It lies in a corner at the chest wall, which is where the tissue ends in a long straight side; neither side nor view
need be told. Of all straight lines that cut such a corner off, the one is taken along which brightness falls most, all
the way, towards the breast (after Karssemeijer, Phys. Med. Biol. 43:365, 1998, who finds it by a Hough transform). The
edge is then followed row by row, since muscles bulge. Where no line is good enough, as in views from above, there is
none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unary.detectors.coarse import LEAST_WEIGHT, Coarse

# Lengths are in cells, of 1.12 mm.
_SMOOTH = 1.8
_ACROSS = np.arange(9, 80, 2.0)  # along the upper border
_DOWN = np.arange(18, 206, 4.5)  # along the chest wall
_STEEPEST, _FLATTEST = 6.0, 0.9  # down for one across
_APART = 3.6  # from the line, where brightness is compared
_POINTS = 32
_SHORTEST, _LONG = 20.0, 54.0
_FALL, _LEAST_FALL, _MOST_FALL = 0.1, -0.5, 0.7  # in spreads of the image's tissue
_SHARE, _COVERED, _FILLED, _LARGEST = 0.9, 0.5, 0.93, 0.4
_GOOD = 0.45
_BACK, _FORTH, _BEYOND = 7, 9, 5  # how far the edge may leave the line, and run on below its end
_BEND, _AWAY = 0.05, 0.024  # what a step sideways costs, and each cell of distance from the line


@dataclass(frozen=True)
class _Line:
    """From ``across`` cells along the border to ``down`` cells along the chest wall, and how good it is."""

    goodness: float
    across: float
    down: float


def find_muscle(coarse: Coarse) -> NDArray[np.bool_]:
    """Return where the pectoral muscle is, (rows, cols), bool, nowhere if none is seen; inside the tissue."""
    found = np.zeros_like(coarse.inside)
    if not coarse.inside.any():
        return found
    rows, cols = (np.flatnonzero(coarse.inside.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
    own = Coarse(coarse.bright[box], coarse.inside[box])
    smoothed = _smooth(own)
    spread = float(smoothed[own.inside].std())
    if not spread > 0:
        return found
    relative = (smoothed - np.median(smoothed[own.inside])) / np.float32(spread)
    side = slice(None, None, -1 if _is_wall_right(own.inside) else 1)
    best: _Line | None = None
    for end in (slice(None, None, 1), slice(None, None, -1)):
        bright, inside = relative[end, side], own.inside[end, side]
        line = _find_line(bright, inside)
        if line is not None and (best is None or line.goodness > best.goodness):
            muscle = _follow_edge(bright, inside, line)
            if muscle.sum() <= _LARGEST * own.inside.sum():
                best, found[box] = line, muscle[end, side]
    return found


def _smooth(coarse: Coarse) -> NDArray[np.float32]:
    """The Gaussian mean of the tissue around each cell; sums in float64, so that all machines see one muscle.

    `unary.detectors.coarse.smooth_inside` is faster and needs torch, which an exported model is applied without.
    """
    weight, summed = (
        ndimage.gaussian_filter(values.astype(np.float32), _SMOOTH) for values in (coarse.inside, coarse.bright)
    )
    smoothed: NDArray[np.float32] = summed / np.maximum(weight, np.float32(LEAST_WEIGHT))
    return smoothed


def _is_wall_right(inside: NDArray[np.bool_]) -> bool:
    """Whether the tissue's box is filled further along its right side than along its left."""
    return int(inside[:, -2:].sum()) > int(inside[:, :2].sum())


def _find_line(bright: NDArray[np.float32], inside: NDArray[np.bool_]) -> _Line | None:
    """Return the best line that cuts off the upper left corner, None where none is good enough."""
    across, down = (each.ravel() for each in np.meshgrid(_ACROSS, _DOWN, indexing="ij"))
    plausible = (down >= _FLATTEST * across) & (down <= _STEEPEST * across)
    across, down = across[plausible], down[plausible]
    goodness = _judge_lines(bright, inside, across[:, None], down[:, None])
    counted = np.cumsum(inside, axis=1)
    summed = np.cumsum(np.where(inside, bright, 0), axis=1, dtype=np.float64)
    for place in np.argsort(-goodness, kind="stable"):
        if goodness[place] < _GOOD:
            return None
        rows = np.arange(len(bright))
        width = np.clip(across[place] * (1 - rows / down[place]), 0, bright.shape[1]).astype(int)
        ends = rows[width > 0], width[width > 0] - 1
        cells = int(counted[ends].sum())
        if cells >= _FILLED * width.sum() and summed[ends].sum() > 0:  # bright tissue fills the corner
            return _Line(float(goodness[place]), float(across[place]), float(down[place]))
    return None


def _judge_lines(
    bright: NDArray[np.float32], inside: NDArray[np.bool_], across: NDArray[np.float64], down: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how steadily brightness falls across each line, shape (n,) for (n, 1); -1 for what is no muscle."""
    along = (np.arange(_POINTS) + 0.5) / _POINTS
    length = np.hypot(across, down)
    rows, cols = down * along, across * (1 - along)
    apart = _APART * across / length, _APART * down / length
    inner, inner_seen = _look(bright, inside, rows - apart[0], cols - apart[1])
    outer, outer_seen = _look(bright, inside, rows + apart[0], cols + apart[1])
    seen = inner_seen & outer_seen
    fall = np.where(seen, inner - outer, 0)
    count = np.maximum(seen.sum(axis=1), 1)
    mean = np.where(seen, fall.clip(_LEAST_FALL, _MOST_FALL), 0).sum(axis=1) / count
    share = (seen & (fall > _FALL)).sum(axis=1) / count
    seen_length = seen.mean(axis=1) * length[:, 0]
    plausible = (seen.mean(axis=1) > _COVERED) & (seen_length > _SHORTEST) & (share > _SHARE)
    goodness: NDArray[np.float64] = np.where(plausible, mean * share * np.sqrt(np.minimum(seen_length / _LONG, 1)), -1)
    return goodness


def _look(
    bright: NDArray[np.float32], inside: NDArray[np.bool_], rows: NDArray[np.float64], cols: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the brightness of the cells at these places, and whether they are tissue."""
    row, col = np.rint(rows).astype(int), np.rint(cols).astype(int)
    seen = (row >= 0) & (row < bright.shape[0]) & (col >= 0) & (col < bright.shape[1])
    row, col = row.clip(0, bright.shape[0] - 1), col.clip(0, bright.shape[1] - 1)
    return bright[row, col], seen & inside[row, col]


def _follow_edge(bright: NDArray[np.float32], inside: NDArray[np.bool_], line: _Line) -> NDArray[np.bool_]:
    """Return the corner up to the edge: the path near the line along which brightness falls most, one cell a row."""
    count = min(len(bright), int(line.down + _BEYOND))
    rows = np.arange(count)
    away = np.arange(-_BACK, _FORTH + 1)
    cols = np.rint(line.across * (1 - rows / line.down))[:, None].astype(int) + away
    last = bright.shape[1] - 1
    fall = bright[rows[:, None], (cols - 2).clip(0, last)] - bright[rows[:, None], (cols + 2).clip(0, last)]
    fall = np.where((cols < 0) | (cols + 2 > last), 0, fall.clip(_LEAST_FALL, 1)) - _AWAY * np.abs(away)
    gain, came = fall.astype(np.float64), np.zeros(fall.shape, int)
    for row in range(1, count):
        before = np.pad(gain[row - 1], 1, constant_values=-np.inf)
        choices = np.stack([before[:-2] - _BEND, before[1:-1], before[2:] - _BEND])
        came[row] = choices.argmax(axis=0) - 1
        gain[row] += choices.max(axis=0)
    edge = np.zeros(count, int)
    place = int(gain[-1].argmax())
    for row in range(count - 1, -1, -1):
        edge[row] = cols[row, place]
        place += came[row, place]
    muscle = np.zeros_like(inside)
    muscle[:count] = np.arange(bright.shape[1]) <= edge[:, None]
    return muscle & inside
