"""Which finding has found which lesion: the rule, and the geometry behind it.

**Targets.** What is to be found is a *target*: a lesion of its own, or a cluster of neighbours in a group of lesions
that is judged so (`unary.profiles.LesionGroup.clustered`), such as calcifications. A radiologist reports a cluster, not
its hundred specks, and whoever counts specks lets one image outvote all others. Lesions of such a group whose upright
boxes lie at most 10 mm apart are joined, by single linkage. A region that was itself annotated as a cluster joins in; a
larger single one (above 5 mm) stays a target of its own. What lies inside a cluster region or a larger lesion of the
group, by its centre, belongs to that and links to nothing else.

**Hits.** A finding hits a target when all of this holds, with a tolerance of 1 mm in both geometric parts:

1. *Overlap*: some pixel of the finding lies on some annotated lesion of the target.
2. *Place*: the centre of the finding lies within the target (of several lesions: within the convex outline around
   them), or the centre of one of its lesions lies within the outline of the finding.
3. *Size*: the outline of the finding has at most four times the area of the target, or at most 1 cm2; and it covers at
   most a quarter of the tissue, where that is known.

Overlap alone would reward whoever marks much: a finding along the whole edge of the tissue grazes every lesion there.
Intersection over union, the habit of object detection, is undefined for points and means little for loose boxes and
scattered specks. Marks are commonly judged by their centre (Ribli et al., Scientific Reports 8:4165, 2018; the DBTex
challenge: Konz et al., JAMA Network Open 6:e230524, 2023). The bound of four times the true area is that of Kallergi et
al. (Medical Physics 26:267, 1999), who compared such rules; 1 cm2 is the area within which calcifications are by
convention one cluster, and keeps a finding around a single speck possible.

One target is found once: further findings on it are neither hits nor false. One finding may hit several targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull

from unary.evaluation.polygons import distances_outside, polygon_area, polygon_centre
from unary.evaluation.roc import EvaluationError
from unary.patches.lesions import rasterise_lesion
from unary.profiles import Reading
from unary.records import Detection, Lesion

Spacing = tuple[float, float]
Part = tuple[NDArray[np.bool_], tuple[int, int]]
"""The pixels of a lesion, and the (row, col) of their corner, as `rasterise_lesion` gives them on the stored grid."""

_CLUSTER = 3  # lesions that make a cluster, as in Kallergi et al. and by convention
_SLACK_MM = 1e-9  # 101 pixels of 0.1 mm must be within 10.1 mm, whatever the rounding


@dataclass(frozen=True)
class MatchingRule:
    """The numbers in the rule of this module.

    Lesions of a clustered group at most ``link_mm`` apart are one target, but for those above ``speck_mm``. The spacing
    is assumed where that of the pixels is unknown: by default 10 mm are then 100 pixels.

    Raises
    ------
    ValueError
        If a number is not finite or negative, or the assumed spacing is 0.
    """

    link_mm: float = 10.0
    speck_mm: float = 5.0
    tolerance_mm: float = 1.0
    area_factor: float = 4.0
    area_floor_mm2: float = 100.0
    tissue_share: float = 0.25
    assumed_spacing_mm: float = 0.1

    def __post_init__(self) -> None:
        numbers = vars(self)
        wrong = [name for name, value in numbers.items() if not np.isfinite(value) or value < 0]
        if wrong or self.assumed_spacing_mm == 0:
            name = wrong[0] if wrong else "assumed_spacing_mm"
            raise ValueError(f"{name} must be a finite number, not negative (a spacing above 0), got {numbers[name]}")

    def find_spacing(self, spacing_mm: Spacing | None) -> NDArray[np.float64]:
        """Return the spacing, or the assumed one, shape (2,)."""
        return np.asarray(spacing_mm if spacing_mm is not None else (self.assumed_spacing_mm,) * 2)


STANDARD = MatchingRule()


@dataclass(frozen=True, eq=False)
class Target:
    """A lesion to be found, or several that count as one.

    Attributes
    ----------
    group
        Of its lesions, as `unary.profiles.Reading.find_group` names it.
    lesions
        Positions of its lesions among those of the image.
    parts
        Of each lesion; may be empty where only the figures of a match are kept.
    outline
        Shape (k, 2): vertices (row, col) of a closed polygon around it, convex but for the contour of a single lesion.
    area_mm2
        Of its pixels; of the convex outline for several lesions.
    cluster
        Whether it holds three annotated lesions, or a region annotated as a cluster; False in a group that is not
        clustered.
    single
        Whether it could have been a cluster, by its group, and is none.
    """

    group: str
    lesions: tuple[int, ...]
    parts: tuple[Part, ...]
    outline: NDArray[np.float64]
    area_mm2: float
    cluster: bool
    single: bool


@dataclass(frozen=True, eq=False)
class Match:
    """Which findings of an image hit which targets: for each its findings' ranks, ascending; scores of all by rank."""

    targets: tuple[Target, ...]
    hits: tuple[tuple[int, ...], ...]
    scores: dict[int, float]


def group_targets(
    lesions: Sequence[Lesion],
    shape: tuple[int, int],
    *,
    reading: Reading,
    spacing_mm: Spacing | None,
    masks: Mapping[int, NDArray[np.bool_]] | None = None,
    rule: MatchingRule = STANDARD,
) -> tuple[Target, ...]:
    """Return the targets among the lesions of one image, in the order of their first lesion.

    Coordinates, shape and spacing (between rows, between columns; None when unknown) are of the stored image. A lesion
    without a pixel in it is no target: nobody could find it. ``masks`` holds, by position in ``lesions``, the pixels of
    each lesion of kind ``mask``.

    """
    spacing = rule.find_spacing(spacing_mm)
    parts = [
        _trim(*rasterise_lesion(lesion, shape, mask=(masks or {}).get(place) if lesion.kind == "mask" else None))
        for place, lesion in enumerate(lesions)
    ]
    seen = [place for place, (inside, _) in enumerate(parts) if inside.size]
    groups = [reading.find_group(lesion.name) for lesion in lesions]
    clustered = {group.name for group in reading.groups if group.clustered}
    members: list[tuple[int, ...]] = [(place,) for place in seen if groups[place] not in clustered]
    for group in clustered:
        own = [place for place in seen if groups[place] == group]
        regions = np.asarray([_is_cluster(lesions[place]) for place in own], bool)
        joined = _join_neighbours([parts[place] for place in own], regions, spacing, rule)
        members += [tuple(own[place] for place in together) for together in joined]
    targets = []
    for places in sorted(members):
        group, own_parts = groups[places[0]], tuple(parts[place] for place in places)
        outline, area = _outline_parts(own_parts, lesions[places[0]], spacing)
        in_clusters = group in clustered
        cluster = in_clusters and (len(places) >= _CLUSTER or any(_is_cluster(lesions[place]) for place in places))
        targets.append(Target(group, places, own_parts, outline, area, cluster, single=in_clusters and not cluster))
    return tuple(targets)


def match_findings(
    detection: Detection,
    targets: Sequence[Target],
    *,
    spacing_mm: Spacing | None,
    tissue_px: int | None = None,
    rule: MatchingRule = STANDARD,
) -> Match:
    """Return which findings hit which targets, by the rule of this module.

    Targets and spacing are those of `group_targets`, of the same image; ``tissue_px`` counts the stored pixels of
    tissue, and None leaves out the bound on their share.

    Raises
    ------
    EvaluationError
        If a finding has no pixel of its rank within its box, as when findings and labels are of two images.
    """
    spacing = rule.find_spacing(spacing_mm)
    for finding in detection.findings:
        r0, c0, r1, c1 = finding.box
        if not (detection.labels[r0:r1, c0:c1] == finding.rank).any():
            raise EvaluationError(
                f"finding {finding.rank} has no pixel in the labels of shape {detection.labels.shape} within its box "
                f"{finding.box}; do findings and labels belong to one image?"
            )
    largest = np.inf if tissue_px is None else rule.tissue_share * tissue_px * float(spacing.prod())
    outlines = {finding.rank: np.asarray(finding.outline) * spacing for finding in detection.findings}
    areas = {rank: polygon_area(outline) for rank, outline in outlines.items()}
    hits = []
    for target in targets:
        limit = min(max(rule.area_factor * target.area_mm2, rule.area_floor_mm2), largest)
        grown = [_grow(*part, spacing=spacing, margin_mm=rule.tolerance_mm) for part in target.parts]
        near = {rank for part in grown for rank in _labels_on(detection.labels, *part)}
        hits.append(
            tuple(
                rank
                for rank in sorted(outlines)
                if rank in near
                and areas[rank] <= limit
                and _is_placed(outlines[rank], target, grown, spacing=spacing, rule=rule)
            )
        )
    return Match(tuple(targets), tuple(hits), {finding.rank: finding.score for finding in detection.findings})


def _join_neighbours(
    parts: Sequence[Part], clusters: NDArray[np.bool_], spacing: NDArray[np.float64], rule: MatchingRule
) -> list[list[int]]:
    """Positions of the lesions of each target; ``clusters`` says which are annotated as such."""
    count = len(parts)
    if count == 0:
        return []
    low = np.asarray([corner for _, corner in parts], np.float64)
    high = low + [np.subtract(inside.shape, 1) for inside, _ in parts]  # centres of the first and last pixels
    large = ~clusters & (((high - low + 1) * spacing).max(axis=1) > rule.speck_mm + _SLACK_MM)
    areas = np.asarray([inside.sum() for inside, _ in parts])
    centres = np.rint((low + high) / 2).astype(int)
    edges = []
    free = ~large
    for place in np.flatnonzero(~clusters).tolist():
        hosts = [
            host
            for host in np.flatnonzero(clusters if large[place] else clusters | large).tolist()
            if _holds(*parts[host], centres[place])
        ]
        if hosts:
            edges.append((place, min(hosts, key=lambda host: areas[host])))
            free[place] = False
    gaps = np.maximum(low[:, None] - high[None], low[None] - high[:, None]).clip(0) * spacing
    linked = (np.hypot(gaps[..., 0], gaps[..., 1]) <= rule.link_mm + _SLACK_MM) & free[:, None] & free
    ends = np.asarray([*edges, *np.argwhere(linked)], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    number, owner = connected_components(graph, directed=False)
    return [np.flatnonzero(owner == each).tolist() for each in range(number)]


def _trim(inside: NDArray[np.bool_], corner: tuple[int, int]) -> Part:
    """Leave out the empty rows and columns around."""
    rows, cols = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if len(rows) == 0:
        return np.zeros((0, 0), bool), corner
    first = int(rows[0]), int(cols[0])
    kept = inside[first[0] : rows[-1] + 1, first[1] : cols[-1] + 1]
    return kept, (corner[0] + first[0], corner[1] + first[1])


def _holds(inside: NDArray[np.bool_], corner: tuple[int, int], point: NDArray[np.int_]) -> bool:
    row, col = int(point[0]) - corner[0], int(point[1]) - corner[1]
    return 0 <= row < inside.shape[0] and 0 <= col < inside.shape[1] and bool(inside[row, col])


def _outline_parts(
    parts: Sequence[Part], first: Lesion, spacing: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Outline and area in mm2 of one lesion, or of several together."""
    corners = np.concatenate([_pixel_corners(*part) for part in parts])
    outline = corners[ConvexHull(corners).vertices]
    if len(parts) > 1:
        return outline, polygon_area(outline * spacing)
    area = float(parts[0][0].sum() * spacing.prod())
    return (np.asarray(first.points, np.float64) if first.kind == "contour" else outline), area


def _is_cluster(lesion: Lesion) -> bool:
    return "cluster" in lesion.name.lower()


def _pixel_corners(inside: NDArray[np.bool_], corner: tuple[int, int]) -> NDArray[np.float64]:
    """The corners of the outermost pixels of each row, shape (k, 2): all that a convex outline can touch."""
    rows = np.flatnonzero(inside.any(axis=1))
    first = inside[rows].argmax(axis=1) - 0.5
    last = inside.shape[1] - 0.5 - inside[rows, ::-1].argmax(axis=1)
    points = [np.stack([rows + side, cols], axis=1) for side in (-0.5, 0.5) for cols in (first, last)]
    return np.concatenate(points) + corner


def _grow(
    inside: NDArray[np.bool_], corner: tuple[int, int], *, spacing: NDArray[np.float64], margin_mm: float
) -> Part:
    """All pixels whose centre lies at most so far from the centre of one inside; may leave the image."""
    pad = np.floor(margin_mm / spacing + _SLACK_MM).astype(int)
    outside = np.pad(~inside, [(width, width) for width in pad], constant_values=True)
    grown = distance_transform_edt(outside, sampling=spacing) <= margin_mm + _SLACK_MM
    return grown, (corner[0] - int(pad[0]), corner[1] - int(pad[1]))


def _labels_on(labels: NDArray[np.uint8], inside: NDArray[np.bool_], corner: tuple[int, int]) -> list[int]:
    low = np.maximum(corner, 0)
    high = np.minimum(np.add(corner, inside.shape), labels.shape)
    part = labels[low[0] : high[0], low[1] : high[1]]
    start, stop = low - corner, high - corner
    ranks: list[int] = np.unique(part[inside[start[0] : stop[0], start[1] : stop[1]]]).tolist()
    return [rank for rank in ranks if rank > 0]


def _is_placed(
    outline: NDArray[np.float64],
    target: Target,
    grown: Sequence[Part],
    *,
    spacing: NDArray[np.float64],
    rule: MatchingRule,
) -> bool:
    """Whether the centre of either lies within the other; ``outline`` of the finding in mm, ``grown`` its lesions."""
    centre = polygon_centre(outline)
    pixel = np.rint(centre / spacing).astype(int)
    if any(_holds(*part, pixel) for part in grown):
        return True
    if len(target.parts) > 1 and distances_outside(centre[None], target.outline * spacing)[0] <= rule.tolerance_mm:
        return True
    centres = [np.argwhere(inside).mean(axis=0) + corner for inside, corner in target.parts]
    return bool((distances_outside(np.asarray(centres) * spacing, outline) <= rule.tolerance_mm).any())
