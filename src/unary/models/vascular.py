"""Calcified arteries among the findings: specks that lie on one long, thin, smoothly curved chain.

Calcified walls of arteries are the brightest specks of many older breasts, and benign. What tells them from a cluster
is that the specks go on and on along a tube, also where they are too faint to be findings. So the surroundings of a
finding are searched for specks of the image itself, whatever the detector sees; those near each other are linked by
their minimum spanning tree; and the longest way through it, smoothed, is the chain. A finding is a vascular pattern
when the chain is long, closed and smooth, and nearly all that is bright lies on it.

A duct filled with casts of a malignant kind is such a chain too when it is long enough, and the rule cannot tell; it
names a pattern, and hides nothing. What is short, branched, or beside a chain stays an unusual region.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree
from scipy.spatial import Delaunay, KDTree

from unary.errors import require_positive
from unary.models.findings import Candidates
from unary.patches.preparation import PreparedImage, erode_mask

Box = tuple[slice, slice]
Points = NDArray[np.float64]

_SMALL_MM, _LARGE_MM = 0.2, 0.8  # sigmas: a speck is a bright spot of the one against the other
_AROUND_MM = 15.0  # of a finding: where its chain is followed
_BORDER_MM = 2.0  # of image and tissue: edges of films and folds of the skin are chains as well
_LINK_MM = 5.0  # as far apart may specks of one chain be
_ON_MM, _NEAR_MM = 1.0, 2.0  # of the chain: where its specks lie, and the pixels of the finding
_CLOSED_MM = 0.7  # to the next speck, where a chain is closed
_SMOOTH_MM, _STEP_MM = 5.0, 0.5
_COARSEST_MM = 0.2  # pixels: with larger ones specks are not to be seen
_MOST_POINTS = 5000
_FEWEST_POINTS = 6


@dataclass(frozen=True)
class VascularRule:
    """What makes a chain of specks a vascular pattern.

    Attributes
    ----------
    speck
        A speck is this many times brighter against its surroundings than their pixels are on average; half of it within
        the finding.
    length_mm
        The chain is at least so long.
    span_mm
        So much of it, in rows or columns, is covered by the finding's own specks.
    share
        At least this share of the brightness of all linked specks, and of the finding's own, lies on it.
    closed
        This share of its length is near a speck.
    turning
        In radians per cm, it turns at most so much; a way through a cluster zigzags.
    area_share
        This share of the finding's pixels is near it: a mass that a vessel crosses stays a mass.
    """

    speck: float = 4.0
    length_mm: float = 18.0
    span_mm: float = 4.0
    share: float = 0.8
    closed: float = 0.65
    turning: float = 1.5
    area_share: float = 0.7

    def __post_init__(self) -> None:
        require_positive(self, *vars(self))


@dataclass(frozen=True, eq=False)
class Chain:
    """The longest way through the specks around a finding; ``line``, shape (n, 2), holds (row, col) in mm."""

    line: Points
    length_mm: float
    turning: float
    closed: float


def find_vascular(
    candidates: Candidates, prepared: PreparedImage, *, count: int, rule: VascularRule | None = None
) -> NDArray[np.bool_]:
    """Return which of the first ``count`` candidates are vascular patterns, shape (count,).

    None is where the pixel spacing is unknown or above 0.2 mm: specks and lengths cannot be told then.
    """
    rule, spacing = rule or VascularRule(), prepared.spacing_mm
    vascular = np.zeros(count, bool)
    if spacing is None or spacing > _COARSEST_MM or count == 0:
        return vascular
    for number, box in enumerate(_find_boxes(candidates.labels, count)):
        if box is not None and max(part.stop - part.start for part in box) * spacing >= rule.span_mm:
            vascular[number] = _is_vascular(candidates.labels, prepared, box, number + 1, rule)
    return vascular


def _find_boxes(labels: NDArray[np.int32], count: int) -> list[Box | None]:
    """The smallest box around each of the first labels; quicker than scipy's where few pixels are labelled."""
    place = np.flatnonzero(labels > 0)
    number = labels.ravel()[place]
    place, number = place[number <= count], number[number <= count] - 1
    corners = np.stack(np.divmod(place, labels.shape[1]))
    first, last = np.full((2, count), labels.size), np.full((2, count), -1)
    for axis in (0, 1):
        np.minimum.at(first[axis], number, corners[axis])
        np.maximum.at(last[axis], number, corners[axis])
    return [
        None if r1 < 0 else (slice(r0, r1 + 1), slice(c0, c1 + 1))
        for r0, c0, r1, c1 in np.concatenate([first, last]).T.tolist()
    ]


def _is_vascular(labels: NDArray[np.int32], prepared: PreparedImage, box: Box, number: int, rule: VascularRule) -> bool:
    spacing = prepared.spacing_mm or np.nan
    window = _widen(box, prepared.shape, round(_AROUND_MM / spacing))
    own = labels[window] == number
    inner = _find_inner(prepared.mask, window, round(_BORDER_MM / spacing))
    if 2 * np.count_nonzero(own & inner) < np.count_nonzero(own):
        return False
    contrast = _measure_contrast(prepared.pixels[window], inner, spacing)
    wide = ndimage.binary_dilation(own, iterations=max(round(0.4 / spacing), 1))
    bright = inner & ((contrast > rule.speck) | (wide & (contrast > rule.speck / 2)))
    place = _thin(np.argwhere(bright))
    mine = wide[tuple(place.T)]
    if not _FEWEST_POINTS <= len(place) <= _MOST_POINTS or np.count_nonzero(mine) < _FEWEST_POINTS / 2:
        return False
    points = np.asarray(place * spacing, np.float64)
    chain, linked = follow_chain(points, mine)
    if chain is None or chain.length_mm < rule.length_mm or chain.turning > rule.turning or chain.closed < rule.closed:
        return False
    tree = KDTree(chain.line)
    on = tree.query(points)[0] < _ON_MM
    weight = contrast[tuple(place.T)]
    shares = [float(weight[which & on].sum() / weight[which].sum()) for which in (linked, mine)]
    if min(shares) < rule.share or float(np.ptp(points[mine & on], axis=0).max()) < rule.span_mm:
        return False
    near = tree.query(np.argwhere(own) * spacing)[0] < _NEAR_MM
    return float(near.mean()) >= rule.area_share


def _widen(box: Box, shape: tuple[int, int], by_px: int) -> Box:
    first, second = (
        slice(max(part.start - by_px, 0), min(part.stop + by_px, size)) for part, size in zip(box, shape, strict=True)
    )
    return first, second


def _find_inner(mask: NDArray[np.bool_], window: Box, border_px: int) -> NDArray[np.bool_]:
    """Tissue of a window that is so far from what is none, and from the border of the image."""
    wide = _widen(window, (mask.shape[0], mask.shape[1]), border_px)
    inner = erode_mask(np.pad(mask[wide], 1), border_px)[1:-1, 1:-1]
    first, second = (
        slice(part.start - whole.start, part.stop - whole.start) for part, whole in zip(window, wide, strict=True)
    )
    return inner[first, second]


def _measure_contrast(pixels: NDArray[np.uint16], inner: NDArray[np.bool_], spacing_mm: float) -> NDArray[np.float32]:
    """How much brighter than its surroundings each pixel is, in units of what pixels are on average."""
    values = pixels.astype(np.float32)
    small, large = (ndimage.gaussian_filter(values, size / spacing_mm, truncate=3) for size in (_SMALL_MM, _LARGE_MM))
    contrast = small - large
    contrast /= max(float(np.abs(contrast[inner]).mean()), 1e-6)
    return np.asarray(contrast, np.float32)


def _thin(place: NDArray[np.intp]) -> NDArray[np.intp]:
    """The first pixel of every block of 3 x 3 pixels that has any."""
    first = np.unique(place // 3, axis=0, return_index=True)[1]
    return place[np.sort(first)]


def follow_chain(points: Points, mine: NDArray[np.bool_]) -> tuple[Chain | None, NDArray[np.bool_]]:
    """Return the chain through points near each other, and which points are linked with it, shape (n,).

    Parameters
    ----------
    points
        Shape (n, 2), at least five, (row, col) in mm, all distinct.
    mine
        Shape (n,): the chain is that of the linked points to which most of these belong.
    """
    tree = _span_tree(points)
    group = connected_components(tree, directed=False)[1]
    linked = group == np.bincount(group[mine]).argmax()
    path = _find_longest(tree, int(np.flatnonzero(linked)[0]))
    if len(path) < 4:
        return None, linked
    line = _smooth_path(points[path])
    steps = np.diff(line, axis=0)
    length = float(np.hypot(*steps.T).sum())
    angle = np.unwrap(np.arctan2(steps[:, 0], steps[:, 1]))
    turning = float(np.abs(np.diff(angle)).sum()) / max(length, 1.0) * 10
    closed = float((KDTree(points).query(line)[0] < _CLOSED_MM).mean())
    return Chain(line, length, turning, closed), linked


def _span_tree(points: Points) -> coo_array:
    """The minimum spanning tree of points less than 5 mm apart, a forest where they are in groups; symmetric."""
    around = np.asarray([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * 1e4  # far away: points may lie on a line
    triangles = Delaunay(np.concatenate([points, around])).simplices
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = np.unique(np.sort(edges[(edges < len(points)).all(axis=1)], axis=1), axis=0)
    one, other = edges.T
    length = np.hypot(*(points[one] - points[other]).T)
    near = length < _LINK_MM
    graph = coo_array((length[near], (one[near], other[near])), shape=(len(points), len(points)))
    tree = minimum_spanning_tree(graph.tocsr())
    return tree + tree.T


def _find_longest(tree: coo_array, start: int) -> NDArray[np.intp]:
    """The longest way through the tree of a point: from the farthest point of any to the farthest of that."""
    distance = dijkstra(tree, indices=start)
    end = int(np.where(np.isfinite(distance), distance, -1).argmax())
    distance, before = dijkstra(tree, indices=end, return_predecessors=True)
    path = [int(np.where(np.isfinite(distance), distance, -1).argmax())]
    while path[-1] != end:
        path.append(int(before[path[-1]]))
    return np.asarray(path, np.intp)


def _smooth_path(path: Points) -> Points:
    """The path in steps of 0.5 mm, smoothed over 5 mm; its ends stay where they are."""
    way = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    steps = np.arange(0, way[-1] + 1e-6, _STEP_MM)
    line = np.column_stack([np.interp(steps, way, path[:, axis]) for axis in (0, 1)])
    count = min(round(_SMOOTH_MM / _STEP_MM), len(line) - 1)
    before, after = 2 * line[0] - line[count:0:-1], 2 * line[-1] - line[-2 : -2 - count : -1]
    padded = np.concatenate([before, line, after])
    smoothed = ndimage.gaussian_filter1d(padded, _SMOOTH_MM / 2 / _STEP_MM, axis=0)
    return np.asarray(smoothed[count : count + len(line)], np.float64)
