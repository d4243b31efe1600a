"""From an anomaly map to findings: connected regions above a level, merged into clusters, with place, size and score.

All findings of an image are drawn at one level, which belongs to the model and lies below its operating points, so
that a finding has the same outline whichever operating point is chosen; the operating point then keeps those that score
above its threshold. Regions nearer to each other than ``merge_mm`` are one finding: the calcifications of a cluster are
reported once, as a radiologist would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from unary.prepare import PreparedImage
from unary.records import Finding

_STEPS = 8  # merging is exact to an eighth of its distance
_NEIGHBOURS = np.ones((3, 3), bool)
_MOST_REGIONS = 4000


@dataclass(frozen=True)
class FindingsConfig:
    """How regions become findings.

    Attributes
    ----------
    merge_mm
        Regions with a smaller gap between them are one finding.
    merge_px
        The same in working pixels, where the pixel spacing is unknown.
    strongest
        A finding's score is the mean over this many of its regions, the strongest ones, each by its highest value; a
        finding with fewer regions has the level in the place of those that it lacks: a lone speck counts half. 1 is the
        highest value alone.
    """

    merge_mm: float = 5.0
    merge_px: float = 36.0
    strongest: int = 2

    def __post_init__(self) -> None:
        if not (0 < self.merge_mm < math.inf and 0 < self.merge_px < math.inf):
            raise ValueError(f"merge_mm and merge_px must be positive, got {self.merge_mm} and {self.merge_px}")
        if self.strongest < 1:
            raise ValueError(f"strongest must be at least 1, got {self.strongest}")


@dataclass(frozen=True, eq=False)
class Candidates:
    """The findings of one image before any is judged, on the working grid.

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
    """

    labels: NDArray[np.int32]
    scores: NDArray[np.float64]
    peaks: NDArray[np.intp]
    regions: NDArray[np.intp]
    highest: float | None

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
    config
        How they are merged and scored.
    spacing_mm
        Between the map's pixels; None when unknown.
    """
    above = anomaly_map > np.float32(level)  # NaN compares as False
    known = np.isfinite(anomaly_map)
    highest = float(np.max(anomaly_map, where=known, initial=-np.inf)) if known.any() else None
    labels, count = ndimage.label(above, _NEIGHBOURS)
    if count == 0:
        nothing = np.zeros(0)
        return Candidates(labels.astype(np.int32), nothing, np.zeros((0, 2), np.intp), np.zeros(0, np.intp), highest)
    values = np.asarray(ndimage.maximum(anomaly_map, labels, np.arange(1, count + 1)), np.float64)
    if count > _MOST_REGIONS:
        kept = np.argsort(-values, kind="stable")[:_MOST_REGIONS]
        number = np.zeros(count + 1, np.int32)
        number[kept + 1] = np.arange(1, _MOST_REGIONS + 1)
        labels, values, count = number[labels], values[kept], _MOST_REGIONS
    distance = config.merge_px if spacing_mm is None else config.merge_mm / spacing_mm
    cluster = _link_regions(labels, count, distance)
    scores = _score_clusters(values, cluster, level, config.strongest)
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(len(scores), np.int32)
    rank[order] = np.arange(1, len(scores) + 1)
    merged = np.concatenate([[0], rank[cluster]]).astype(np.int32)[labels]
    peaks = np.asarray(ndimage.maximum_position(anomaly_map, merged, np.arange(1, len(scores) + 1)), np.intp)
    return Candidates(
        merged, scores[order], peaks.reshape(-1, 2), np.bincount(cluster, minlength=len(scores))[order], highest
    )


def _link_regions(labels: NDArray[np.int32], count: int, distance_px: float) -> NDArray[np.intp]:
    """Return the cluster of each region, shape (count,), numbered from 0: single linkage over gaps below a distance."""
    step = max(int(distance_px / _STEPS), 1)
    rows, cols = labels.shape
    coarse = np.zeros((-(-rows // step), -(-cols // step)), bool)
    place = np.argwhere(labels > 0)
    coarse[place[:, 0] // step, place[:, 1] // step] = True
    near: NDArray[np.bool_] = ndimage.distance_transform_edt(~coarse) * step <= max(distance_px, step) / 2
    linked = ndimage.label(near, _NEIGHBOURS)[0]
    cluster = np.zeros(count, np.intp)
    cluster[labels[place[:, 0], place[:, 1]] - 1] = linked[place[:, 0] // step, place[:, 1] // step]
    return np.unique(cluster, return_inverse=True)[1]


def _score_clusters(
    values: NDArray[np.float64], cluster: NDArray[np.intp], level: float, strongest: int
) -> NDArray[np.float64]:
    """Mean of each cluster's strongest regions, the level standing in for those that it lacks."""
    order = np.lexsort([-values, cluster])
    scores = np.full(int(cluster.max()) + 1, float(level))
    first = np.searchsorted(cluster[order], np.arange(len(scores)))
    place = np.arange(len(values)) - first[cluster[order]]
    kept = place < strongest
    np.add.at(scores, cluster[order][kept], (values[order][kept] - level) / strongest)
    return scores


def describe_findings(
    candidates: Candidates, prepared: PreparedImage, p_values: Sequence[float | None], *, count: int
) -> tuple[tuple[Finding, ...], NDArray[np.uint8]]:
    """Return the first ``count`` candidates as findings of the stored image, and its label image.

    Parameters
    ----------
    candidates
        On the working grid.
    prepared
        Whose scale leads back to the stored grid.
    p_values
        One per finding.
    count
        At most 255.
    """
    labels = enlarge_labels(candidates.labels, prepared, count=count)
    scale = np.asarray(prepared.scale)
    boxes = ndimage.find_objects(candidates.labels, max_label=count)
    findings = []
    for number, (box, p_value) in enumerate(zip(boxes[:count], p_values, strict=True)):
        inside = candidates.labels[box] == number + 1
        corner = np.asarray([part.start for part in box])
        outline = _find_outline(inside, corner, scale)
        peak = np.minimum((candidates.peaks[number] + 0.5) * scale, np.asarray(prepared.stored_shape) - 1)
        low = np.floor(corner * scale).astype(int)
        high = np.minimum(np.ceil((corner + inside.shape) * scale).astype(int), prepared.stored_shape)
        area, diameter = None, None
        if prepared.stored_spacing_mm is not None:
            spacing = np.asarray(prepared.stored_spacing_mm)
            area = float(inside.sum() * np.prod(scale * spacing))
            diameter = float(pdist(outline * spacing).max())
        findings.append(
            Finding(
                rank=number + 1,
                score=float(candidates.scores[number]),
                p_value=p_value,
                box=(int(low[0]), int(low[1]), int(high[0]), int(high[1])),
                outline=tuple((float(row), float(col)) for row, col in outline),
                peak=(int(peak[0]), int(peak[1])),
                regions=int(candidates.regions[number]),
                area_mm2=area,
                diameter_mm=diameter,
            )
        )
    return tuple(findings), labels


def enlarge_labels(labels: NDArray[np.int32], prepared: PreparedImage, *, count: int) -> NDArray[np.uint8]:
    """Return labels 1 to ``count`` of the working grid on the stored grid, uint8; each pixel takes its nearest."""
    if not 0 <= count <= 255:
        raise ValueError(f"at most 255 findings can be labelled, got {count}")
    small = np.where(labels <= count, labels, 0).astype(np.uint8)
    index = [
        np.minimum(((np.arange(length) + 0.5) / factor).astype(int), size - 1)
        for length, factor, size in zip(prepared.stored_shape, prepared.scale, labels.shape, strict=True)
    ]
    enlarged: NDArray[np.uint8] = small[index[0]][:, index[1]]
    return enlarged


def _find_outline(
    inside: NDArray[np.bool_], corner: NDArray[np.intp], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Vertices of the convex outline of the pixels' areas, shape (n, 2), in stored pixel centres."""
    edge = inside & ~ndimage.binary_erosion(inside)
    pixels = np.argwhere(edge) + corner
    corners = np.unique(
        np.concatenate([pixels + np.asarray(shift) for shift in ((0, 0), (0, 1), (1, 0), (1, 1))]), axis=0
    )
    try:
        corners = corners[ConvexHull(corners).vertices]
    except QhullError as error:  # four corners of one pixel already span an area
        raise ValueError("a finding without any pixel has no outline") from error
    outline: NDArray[np.float64] = corners * scale - 0.5
    return outline
