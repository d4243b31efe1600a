"""From an anomaly map to findings: connected regions above a level, merged into clusters, with place, size and score.

All findings of an image are drawn at one level, which belongs to the model and lies below its operating points, so
that a finding has the same outline whichever operating point is chosen; the operating point then keeps those that score
above its threshold. Regions nearer to each other than ``merge_mm`` are one finding: the specks of a cluster are
reported once, as a radiologist would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, Delaunay
from scipy.spatial.distance import pdist

from unary.patches.preparation import PreparedImage, enlarge
from unary.records import Finding

_NEIGHBOURS = np.ones((3, 3), bool)
_MOST_REGIONS = 4000
_MOST_POINTS = 200_000
_BAND_PX = 256


@dataclass(frozen=True)
class FindingsConfig:
    """How regions become findings.

    Attributes
    ----------
    merge_mm
        Regions whose nearest pixels are less than this apart, from centre to centre, are one finding.
    merge_px
        The same in working pixels, where the pixel spacing is unknown.
    strongest
        A finding's score is the mean over this many of its regions, the strongest ones, each by its highest value; a
        finding with fewer regions has the level in the place of those that it lacks: at 2 a lone speck counts half. 1
        is the highest value alone.
    """

    merge_mm: float = 5.0
    merge_px: float = 36.0
    strongest: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.merge_mm < math.inf and 0 < self.merge_px < math.inf):
            raise ValueError(f"merge_mm and merge_px must be positive, got {self.merge_mm} and {self.merge_px}")
        if self.strongest < 1:
            raise ValueError(f"strongest must be at least 1, got {self.strongest}")


@dataclass(frozen=True, eq=False)
class Candidates:
    """What stands out in one image, before an operating point says what counts, on the working grid.

    Attributes
    ----------
    labels
        Shape (rows, cols), int32: 1, 2, ... by falling score, 0 elsewhere.
    scores
        Shape (n,), float64, falling.
    peaks
        Shape (n, 2), (row, col) of each highest value.
    regions
        Shape (n,), how many connected regions each consists of.
    highest
        The highest value of the map, or None where it holds none: the image's score where nothing exceeds the level.
    level
        What the map exceeds in them.
    """

    labels: NDArray[np.int32]
    scores: NDArray[np.float64]
    peaks: NDArray[np.intp]
    regions: NDArray[np.intp]
    highest: float | None
    level: float

    @property
    def image_score(self) -> float | None:
        """The score of the most abnormal place, above the level or not."""
        return float(self.scores[0]) if len(self.scores) else self.highest


def find_candidates(
    anomaly_map: NDArray[np.float32], level: float, config: FindingsConfig, *, spacing_mm: float | None
) -> Candidates:
    """Return the regions of a map above a level, merged by distance.

    Parameters
    ----------
    anomaly_map
        Shape (rows, cols), float32, NaN where nothing was scored.
    level
        Regions are where the map exceeds it. Where more than a few thousand regions do, the level is not one for this
        image, and the strongest of them are kept.
    spacing_mm
        Between the map's pixels; None when unknown.
    """
    labels, count = ndimage.label(anomaly_map > np.float32(level), _NEIGHBOURS)  # NaN compares as False
    top = float(np.fmax.reduce(anomaly_map, axis=None))  # which passes over NaN, without a copy
    highest = None if math.isnan(top) else top
    if count == 0:
        nothing = np.zeros(0, np.intp)
        return Candidates(labels, np.zeros(0), np.zeros((0, 2), np.intp), nothing, highest, level)
    values, peaks = _find_peaks(anomaly_map, labels, count)
    if count > _MOST_REGIONS:
        kept = np.sort(np.argsort(-values, kind="stable")[:_MOST_REGIONS])
        number = np.zeros(count, np.int32)
        number[kept] = np.arange(1, len(kept) + 1)
        _renumber(labels, number)
        values, peaks = values[kept], peaks[kept]
    cluster = _link_regions(
        labels, len(values), config.merge_px if spacing_mm is None else config.merge_mm / spacing_mm
    )
    regions = np.bincount(cluster)
    strongest = np.lexsort([-values, cluster])  # cluster by cluster, the strongest region first
    first = np.cumsum(regions) - regions
    kept = strongest[np.arange(len(values)) - np.repeat(first, regions) < config.strongest]
    scores = np.full(len(regions), float(level))  # the level stands in for the regions that a cluster lacks
    np.add.at(scores, cluster[kept], (values[kept] - level) / config.strongest)
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(len(scores), np.int32)
    rank[order] = np.arange(1, len(scores) + 1)
    _renumber(labels, rank[cluster])
    return Candidates(labels, scores[order], peaks[strongest[first]][order], regions[order], highest, level)


def _bands(rows: int) -> Iterator[slice]:
    """Rows of an image, a few hundred at a time: what is derived from them then stays small."""
    return (slice(start, min(start + _BAND_PX, rows)) for start in range(0, rows, _BAND_PX))


def _find_peaks(
    anomaly_map: NDArray[np.float32], labels: NDArray[np.int32], count: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The highest value of each region, shape (count,), and its first place in reading order, (count, 2)."""
    values = np.full(count, -np.inf, np.float32)
    peaks = np.zeros((count, 2), np.intp)
    for band in _bands(len(labels)):
        place = np.argwhere(labels[band] > 0)[::-1]  # the first place is written last
        place[:, 0] += band.start
        found, number = anomaly_map[tuple(place.T)], labels[tuple(place.T)] - 1
        before = values.copy()
        np.maximum.at(values, number, found)
        higher = (found == values[number]) & (found > before[number])
        peaks[number[higher]] = place[higher]
    return values.astype(np.float64), peaks


def _renumber(labels: NDArray[np.int32], number: NDArray[np.int32]) -> None:
    """Give label 1, 2, ... the numbers of these places, in place: a second label image is not affordable."""
    number = np.concatenate([np.zeros(1, np.int32), number])
    for band in _bands(len(labels)):
        labels[band] = number[labels[band]]


def _link_regions(labels: NDArray[np.int32], count: int, distance_px: float) -> NDArray[np.intp]:
    """Return the cluster of each region, shape (count,), numbered from 0: single linkage over gaps below a distance.

    The shortest way between two groups of points is an edge of their Delaunay triangulation, since no third point can
    lie in the circle around it; so that this is exact, at the cost of a triangulation of the regions' border pixels.
    """
    if count == 1:
        return np.zeros(1, np.intp)
    points, region = _find_borders(labels)
    around = np.asarray([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * 4 * (max(labels.shape) + int(distance_px))
    triangles = Delaunay(np.concatenate([points, around])).simplices  # the corners far away: points may lie on a line
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = edges[(edges < len(points)).all(axis=1)]
    one, other = edges[region[edges[:, 0]] != region[edges[:, 1]]].T
    near = np.square(points[one] - points[other]).sum(axis=1) < distance_px**2
    links = (np.ones(int(near.sum()), bool), (region[one][near], region[other][near]))
    cluster: NDArray[np.intp] = connected_components(coo_array(links, shape=(count, count)), directed=False)[1]
    return cluster.astype(np.intp)


def _find_borders(labels: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Pixels of the regions' borders, shape (n, 2), and each one's region, from 0.

    Where there are more than a triangulation is for, as only a map without any order has, one of each region in every
    cell of a grid stands for the others, of the finest grid that leaves few enough.
    """
    points, region, cell_px = np.zeros((0, 2), np.int64), np.zeros(0, np.intp), 1
    for band in _bands(len(labels)):
        above, below = max(band.start - 1, 0), band.stop + 1
        inside = np.pad(labels[above:below] > 0, ((band.start == 0, below > len(labels)), (1, 1)))
        inner = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        place = np.argwhere(inside[1:-1, 1:-1] & ~inner)
        place[:, 0] += band.start
        points = np.concatenate([points, place])
        region = np.concatenate([region, labels[place[:, 0], place[:, 1]] - 1])
        while len(points) > _MOST_POINTS:
            cells = np.column_stack([region, points // cell_px])
            first = np.unique(cells, axis=0, return_index=True)[1]
            points, region = points[first], region[first]
            cell_px *= 2 if len(points) > _MOST_POINTS else 1
    return points, region


def describe_findings(
    candidates: Candidates,
    prepared: PreparedImage,
    p_values: Sequence[float | None],
    *,
    count: int,
    vascular: ArrayLike = False,
) -> tuple[tuple[Finding, ...], NDArray[np.uint8]]:
    """Return the first ``count`` candidates, at most 255, as findings of the stored image, and its label image.

    Place and sizes are all measured on the label image, so that they agree with one another and with whatever is made
    of it: the box is that of the labelled pixels, the outline their convex hull, the area theirs, and the diameter the
    longest distance between two vertices of the outline. Rows and columns each have their own spacing.

    Parameters
    ----------
    p_values
        One per candidate.
    vascular
        Shape (count,), bool: which candidates are vascular patterns; they are ranked after all others.
    """
    if not 0 <= count <= 255:
        raise ValueError(f"at most 255 findings can be labelled, got {count}")
    if count == 0:
        return (), np.zeros(prepared.stored_shape, np.uint8)
    vessel = np.broadcast_to(np.asarray(vascular, bool), count)
    order = np.argsort(vessel, kind="stable")
    small = candidates.labels.astype(np.uint8)
    small[candidates.labels > count] = 0
    if vessel.any():
        rank = np.empty(count, np.uint8)
        rank[order] = np.arange(1, count + 1)
        small = np.concatenate([np.zeros(1, np.uint8), rank])[small]
    labels = enlarge(small, prepared)
    last = np.asarray(prepared.stored_shape) - 1
    peaks = np.minimum((candidates.peaks[order] + 0.5) * np.asarray(prepared.scale), last).astype(np.intp)
    missing = [number for number, box in enumerate(ndimage.find_objects(labels, count)) if box is None]
    for number in reversed(missing):  # on a coarser stored grid one may lie between pixels: its peak is then labelled
        labels[tuple(peaks[number])] = number + 1
    spacing = None if prepared.stored_spacing_mm is None else np.asarray(prepared.stored_spacing_mm)
    findings = []
    for number, (box, own) in enumerate(zip(ndimage.find_objects(labels, count), order.tolist(), strict=True)):
        r, c = peaks[number].tolist()
        place = box or (slice(r, r + 1), slice(c, c + 1))  # a stronger one has the only pixel that it touches
        inside = labels[place] == number + 1 if box else np.ones((1, 1), bool)
        corner = np.asarray([part.start for part in place])
        if box and labels[r, c] != number + 1:  # on a coarser stored grid
            pixels = np.argwhere(inside) + corner
            r, c = pixels[np.square(pixels - (r, c)).sum(axis=1).argmin()].tolist()
        outline = _find_outline(inside, corner)
        finding = Finding(
            rank=number + 1,
            score=float(candidates.scores[own]),
            p_value=p_values[own],
            box=(place[0].start, place[1].start, place[0].stop, place[1].stop),
            outline=tuple((row, col) for row, col in outline.tolist()),
            peak=(r, c),
            regions=int(candidates.regions[own]),
            area_mm2=None if spacing is None else float(inside.sum() * np.prod(spacing)),
            diameter_mm=None if spacing is None else float(pdist(outline * spacing).max()),
            kind="vascular pattern" if vessel[own] else "unusual region",
        )
        findings.append(finding)
    return tuple(findings), labels


def _find_outline(inside: NDArray[np.bool_], corner: NDArray[np.intp]) -> NDArray[np.float64]:
    """Vertices of the convex hull of the pixels' areas, shape (n, 2); pixel centres lie at whole numbers."""
    pixels = np.argwhere(inside & ~ndimage.binary_erosion(inside)) + corner
    corners = np.unique(np.concatenate([pixels + shift for shift in ((0, 0), (0, 1), (1, 0), (1, 1))]), axis=0)
    outline: NDArray[np.float64] = corners[ConvexHull(corners).vertices] - 0.5  # one pixel has an area already
    return outline
