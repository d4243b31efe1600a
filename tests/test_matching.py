"""The rule of matching on geometry that can be judged by hand: pixels of 0.1 mm, so that 10 px are 1 mm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from scipy.spatial import ConvexHull
from skimage.draw import polygon2mask

from unary.evaluation import matching
from unary.evaluation.lesion_query import LesionQuery, build_outcome
from unary.evaluation.matching import Match, MatchingRule, Target, match_findings
from unary.evaluation.polygons import distances_outside, polygon_area, polygon_centre
from unary.evaluation.roc import EvaluationError
from unary.profiles import DEFAULT, GENERAL
from unary.records import Detection, Finding, Lesion

SHAPE = (1000, 900)
SPACING = (0.1, 0.1)


def group_targets(*arguments, **options) -> tuple[Target, ...]:
    """By the groups of the default profile: calcifications cluster, masses do not."""
    return matching.group_targets(*arguments, reading=DEFAULT.reading, **options)


def disc(row: float, col: float, radius: float) -> np.ndarray:
    rows, cols = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return (rows - row) ** 2 + (cols - col) ** 2 <= radius**2


def block(r0: int, c0: int, r1: int, c1: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[r0:r1, c0:c1] = True
    return mask


def detect(*regions: np.ndarray) -> Detection:
    """A detection of these regions, the first being the most abnormal; outlines run along the pixels' corners."""
    labels = np.zeros(SHAPE, np.uint8)
    findings = []
    for rank, region in enumerate(regions, 1):
        labels[region] = rank
        where = np.argwhere(region)
        corners = np.concatenate([np.add(where, [dr, dc]) for dr in (-0.5, 0.5) for dc in (-0.5, 0.5)])
        outline = tuple((float(row), float(col)) for row, col in corners[ConvexHull(corners).vertices])
        (r0, c0), (r1, c1) = where.min(axis=0).tolist(), (where.max(axis=0) + 1).tolist()
        peak = (int(where[0][0]), int(where[0][1]))
        score = 10.0 - rank
        findings.append(Finding(rank, score, None, (r0, c0, r1, c1), outline, peak, label(region)[1], None, None))
    return Detection(tuple(findings), labels, 9.0, None, None)


def lesion(name: str, kind: str, *points: tuple[float, float], **fields: float) -> Lesion:
    return Lesion("i", name, kind, points, **fields)  # type: ignore[arg-type]


def point(row: float, col: float, name: str = "Calcification") -> Lesion:
    return lesion(name, "point", (row, col))


MASS = lesion("Mass", "circle", (500, 400), radius_px=60)  # 12 mm across, 113 mm2


def match(lesions: list[Lesion], *regions: np.ndarray, **options: object) -> Match:
    rule = MatchingRule(**{name: value for name, value in options.items() if name != "tissue_px"})  # type: ignore[arg-type]
    targets = group_targets(lesions, SHAPE, spacing_mm=SPACING, rule=rule)
    return match_findings(
        detect(*regions),
        targets,
        spacing_mm=SPACING,
        tissue_px=options.get("tissue_px"),
        rule=rule,  # type: ignore[arg-type]
    )


def groups_of(lesions: list[Lesion], **options: float) -> list[tuple[int, ...]]:
    rule = MatchingRule(**options)
    return [target.lesions for target in group_targets(lesions, SHAPE, spacing_mm=SPACING, rule=rule)]


def test_specks_within_ten_millimetres_are_one_target_by_single_linkage() -> None:
    chain = [point(100, 100), point(100, 200), point(180, 260), point(500, 500), point(500, 601)]
    assert groups_of(chain) == [(0, 1, 2), (3,), (4,)]  # 10 mm links, 10.1 mm does not, chains do
    assert groups_of(chain, link_mm=10.1) == [(0, 1, 2), (3, 4)]
    assert groups_of(chain, link_mm=0.0) == [(0,), (1,), (2,), (3,), (4,)]
    assert groups_of(chain[::-1]) == [(0,), (1,), (2, 3, 4)]


def test_distance_is_measured_between_borders_and_follows_the_spacing() -> None:
    boxes = [lesion("Calcification", "box", (100, 100), (104, 104)), lesion("calc", "circle", (102, 210), radius_px=8)]
    assert groups_of(boxes) == [(0, 1)]  # from column 103 to 202
    wide = group_targets(boxes, SHAPE, spacing_mm=(0.1, 0.11))
    assert [target.lesions for target in wide] == [(0,), (1,)]
    tall = group_targets([point(0, 0), point(60, 0)], SHAPE, spacing_mm=(0.2, 0.1))
    assert [target.lesions for target in tall] == [(0,), (1,)]


def test_unknown_spacing_takes_an_assumed_one() -> None:
    pair = [point(100, 100), point(100, 199)]
    assert len(group_targets(pair, SHAPE, spacing_mm=None)) == 1
    assert len(group_targets(pair, SHAPE, spacing_mm=None, rule=MatchingRule(assumed_spacing_mm=0.2))) == 2
    targets = group_targets(pair, SHAPE, spacing_mm=None)
    near, far = disc(110, 100, 5), disc(130, 100, 5)
    assert match_findings(detect(near, far), targets, spacing_mm=None).hits == ((1,),)


def test_masses_and_calcifications_do_not_join() -> None:
    mixed = [
        point(100, 100),
        lesion("Mass", "box", (95, 95), (140, 140)),
        point(110, 110),
        point(105, 105, "Asymmetry"),
    ]
    targets = group_targets(mixed, SHAPE, spacing_mm=SPACING)
    assert [(target.group, target.lesions) for target in targets] == [
        ("calcification", (0, 2)),
        ("mass", (1,)),
        ("asymmetry", (3,)),
    ]


def test_a_large_calcification_stays_itself_and_takes_what_lies_inside() -> None:
    large = lesion("Calcification", "box", (100, 100), (180, 180))  # 8 mm
    assert groups_of([large, point(190, 140)]) == [(0,), (1,)]
    assert groups_of([large, point(140, 140), point(190, 140)]) == [(0, 1), (2,)]  # what is inside links no further
    assert groups_of([large, point(190, 140)], speck_mm=8.0) == [(0, 1)]


def test_a_cluster_region_holds_its_calcifications_and_links_like_a_speck() -> None:
    cluster = lesion("Cluster", "contour", (100, 100), (100, 300), (300, 300), (300, 100))
    inner, large, near, far = (
        point(200, 200),
        lesion("calc", "box", (110, 110), (190, 190)),
        point(350, 200),
        point(420, 9),
    )
    assert groups_of([inner, cluster, large, near, far]) == [(0, 1, 2, 3), (4,)]
    (target,) = group_targets([cluster], SHAPE, spacing_mm=SPACING)
    assert target.area_mm2 == pytest.approx(20.1**2)
    assert target.outline.tolist() == [[100, 100], [100, 300], [300, 300], [300, 100]]


def test_a_speck_in_two_regions_belongs_to_the_smaller() -> None:
    outer = lesion("Calcification", "box", (100, 100), (300, 300))
    inner = lesion("Calcification", "box", (150, 150), (250, 250))
    assert groups_of([outer, inner, point(200, 200)]) == [(0,), (1, 2)]


def test_without_groups_every_lesion_is_a_target_of_its_own() -> None:
    pair = [point(100, 100), point(100, 101)]
    targets = matching.group_targets(pair, SHAPE, reading=GENERAL.reading, spacing_mm=SPACING)
    assert [(target.group, target.lesions, target.single) for target in targets] == [
        ("other", (0,), False),
        ("other", (1,), False),
    ]


def test_lesions_outside_the_image_are_no_targets() -> None:
    assert groups_of([point(2000, 10), lesion("Mass", "circle", (-500, 3), radius_px=5), point(3, 3)]) == [(2,)]
    assert groups_of([]) == []


def test_masks_need_their_pixels() -> None:
    drawn = Lesion("i", "Mass", "mask")
    (target,) = group_targets([drawn], SHAPE, spacing_mm=SPACING, masks={0: disc(300, 300, 30)})
    assert target.area_mm2 == pytest.approx(np.pi * 9, rel=0.02)
    assert match_findings(detect(disc(310, 300, 8)), [target], spacing_mm=SPACING).hits == ((1,),)
    with pytest.raises(ValueError, match="mask"):
        group_targets([drawn], SHAPE, spacing_mm=SPACING)


def test_a_finding_centred_in_a_mass_hits_it_and_a_grazing_one_does_not() -> None:
    assert match([MASS], disc(520, 420, 15)).hits == ((1,),)
    assert match([MASS], disc(500, 400, 65)).hits == ((1,),)
    assert match([MASS], disc(500, 500, 45)).hits == ((),)  # overlaps, but neither centre lies in the other
    assert match([MASS], disc(500, 600, 20)).hits == ((),)


def test_an_overlap_is_needed_where_only_the_outline_surrounds_a_lesion() -> None:
    ring = disc(500, 400, 55) & ~disc(500, 400, 35)
    assert match([point(500, 400)], ring).hits == ((),)
    assert match([point(500, 400)], ring | disc(500, 400, 2)).hits == ((1,),)


def test_a_point_is_hit_from_a_millimetre_away_and_not_from_more() -> None:
    for gap, hit in ((0, True), (10, True), (11, False), (40, False)):
        finding = block(490, 400 + gap, 510, 430 + gap)  # its nearest pixel lies `gap` pixels from the point
        assert match([point(500, 400)], finding).hits == (((1,) if hit else ()),), gap
    assert match([point(500, 400)], block(490, 411, 510, 430), tolerance_mm=1.1).hits == ((1,),)
    assert match([point(500, 400)], block(490, 400, 510, 430), tolerance_mm=0.0).hits == ((1,),)


@pytest.mark.parametrize("shape", [disc(500, 400, 250), block(0, 0, 1000, 350) | block(480, 350, 520, 400)])
def test_a_giant_finding_hits_nothing(shape: np.ndarray) -> None:
    assert match([MASS, point(500, 300)], shape).hits == ((), ())


def test_size_is_bounded_by_four_times_the_target_or_a_square_centimetre() -> None:
    for radius, hit in ((115, True), (125, False)):  # 4 x 113 mm2 is the area at 120 px
        assert match([MASS], disc(500, 400, radius)).hits == (((1,) if hit else ()),)
    for side, hit in ((100, True), (101, False)):
        corner = 500 - side // 2
        assert match([point(500, 400)], block(corner, 350, corner + side, 350 + side)).hits == (((1,) if hit else ()),)
    scattered = disc(460, 400, 3) | disc(580, 400, 3) | disc(500, 300, 3) | disc(500, 500, 3)  # a wide thin outline
    assert match([point(460, 400)], scattered).hits == ((),)


def test_size_is_bounded_by_a_share_of_the_tissue() -> None:
    finding = disc(500, 400, 50)
    area = polygon_area(np.asarray(detect(finding).findings[0].outline))
    assert match([MASS], finding, tissue_px=int(4 * area) + 1).hits == ((1,),)
    assert match([MASS], finding, tissue_px=int(4 * area) - 1).hits == ((),)


def test_a_cluster_is_found_by_one_speck_or_by_its_outline_but_not_by_the_tissue_between() -> None:
    specks = [point(400, 400), point(400, 480), point(470, 400), point(470, 480)]
    one, between = disc(400, 400, 4), disc(435, 440, 12)
    around = disc(400, 480, 3) | disc(470, 480, 3) | disc(470, 400, 3)
    found = match(specks, around, one, between)
    assert [target.lesions for target in found.targets] == [(0, 1, 2, 3)]
    assert found.hits == ((1, 2),)
    assert match(specks, one).hits == ((1,),)
    assert match(specks, between).hits == ((),)
    partly = disc(400, 480, 4) | disc(400, 560, 4)  # joins a true speck with noise outside
    assert match(specks, partly).hits == ((1,),)


def test_a_finding_between_the_parts_of_a_group_hits_it_where_it_overlaps_one() -> None:
    group = [lesion("Cluster", "box", (100, 100), (200, 200)), point(150, 290)]
    found = match(group, block(120, 190, 180, 260))  # its centre lies 2.5 mm beside the region, within the outline
    assert [target.lesions for target in found.targets] == [(0, 1)]
    assert found.hits == ((1,),)
    assert match(group[:1], block(120, 190, 180, 260)).hits == ((),)


def test_one_finding_may_hit_two_targets_and_one_target_counts_once() -> None:
    found = match([MASS, point(505, 405)], disc(500, 400, 10), disc(540, 400, 10), disc(100, 100, 10))
    assert found.hits == ((1, 2), (1,))
    outcome = build_outcome(found, patient="p", normal=False, complete=True)
    assert outcome.target_scores == (9.0, 9.0)
    assert outcome.false_scores == (7.0,)
    assert (outcome.patient, outcome.normal, outcome.complete) == ("p", False, True)


def test_missed_targets_have_no_score() -> None:
    outcome = build_outcome(match([MASS]), patient="p", normal=False, complete=False)
    assert outcome.target_scores == (None,)
    assert outcome.false_scores == ()
    assert not outcome.complete


def test_other_kinds_of_lesion_are_ignored_or_false_as_told() -> None:
    found = match([MASS, point(100, 100)], disc(500, 400, 10), disc(100, 100, 5), disc(800, 800, 5))
    told = {"patient": "p", "normal": False, "complete": True}
    calcifications = build_outcome(found, LesionQuery(("calcification",)), **told)
    assert (calcifications.target_scores, calcifications.false_scores) == ((8.0,), (7.0,))
    strict = build_outcome(found, LesionQuery(("calcification",)), **told, ignore_others=False)
    assert (strict.target_scores, strict.false_scores) == ((8.0,), (9.0, 7.0))
    benign = build_outcome(found, LesionQuery(()), patient="p", normal=True, complete=True)
    assert (benign.target_scores, benign.false_scores) == ((), (7.0,))
    with pytest.raises(EvaluationError, match="normal image has no lesions"):
        build_outcome(found, patient="p", normal=True, complete=True)


def test_single_specks_can_be_left_out() -> None:
    few = [point(100, 100), point(100, 150), point(500, 400), point(500, 450), point(520, 400), MASS]
    region = lesion("Cluster", "box", (800, 100), (850, 150))
    found = match([*few, region], disc(100, 100, 5), disc(520, 400, 5), disc(825, 125, 5))
    assert [target.cluster for target in found.targets] == [False, True, False, True]
    told = {"patient": "p", "normal": False, "complete": True}
    assert build_outcome(found, **told).target_scores == (9.0, 8.0, 8.0, 7.0)
    clusters = build_outcome(found, LesionQuery(("calcification",), clusters_only=True), **told)
    assert (clusters.target_scores, clusters.false_scores) == ((8.0, 7.0), ())
    both = build_outcome(found, LesionQuery(clusters_only=True), **told, ignore_others=False)
    assert (both.target_scores, both.false_scores) == ((8.0, 8.0, 7.0), (9.0,))


def test_a_finding_on_counted_and_other_lesions_is_a_hit() -> None:
    found = match([MASS, point(505, 405)], disc(500, 400, 10))
    outcome = build_outcome(
        found, LesionQuery(("calcification",)), patient="p", normal=False, complete=True, ignore_others=False
    )
    assert (outcome.target_scores, outcome.false_scores) == ((9.0,), ())


def test_labels_of_another_image_are_noticed() -> None:
    detection = detect(disc(500, 400, 10))
    swapped = Detection(detection.findings, np.zeros(SHAPE, np.uint8), 9.0, None, None)
    with pytest.raises(EvaluationError, match="no pixel in the labels"):
        match_findings(swapped, (), spacing_mm=SPACING)


@pytest.mark.parametrize(
    "wrong", [{"link_mm": -1.0}, {"area_factor": np.nan}, {"tolerance_mm": np.inf}, {"assumed_spacing_mm": 0.0}]
)
def test_nonsense_rules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MatchingRule(**wrong)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(40, 950), st.integers(40, 850)), min_size=1, max_size=8),
    st.integers(-30, 30),
    st.integers(-30, 30),
)
def test_moving_everything_together_changes_nothing(places: list[tuple[int, int]], down: int, right: int) -> None:
    found = []
    for dr, dc in ((0, 0), (down, right)):
        lesions = [point(row + dr, col + dc) for row, col in places]
        row, col = np.add(places[0], [dr + 3, dc + 3])  # a speck 0.4 mm beside the first point
        found.append(match(lesions, block(row, col, row + 6, col + 6)))
    assert found[0].hits == found[1].hits
    assert [target.lesions for target in found[0].targets] == [target.lesions for target in found[1].targets]
    assert {place for target in found[0].targets if 0 in target.lesions for place in target.lesions} == {
        place for target, hits in zip(found[0].targets, found[0].hits, strict=True) for place in target.lesions if hits
    }
    owners = [place for target in found[0].targets for place in target.lesions]
    assert sorted(owners) == list(range(len(places)))


def test_polygons_agree_with_pixels() -> None:
    polygon = np.array([[10.0, 10.0], [12.0, 60.0], [45.0, 70.0], [30.0, 40.0], [50.0, 15.0]])
    inside = polygon2mask((80, 80), polygon)
    assert polygon_area(polygon) == pytest.approx(inside.sum(), rel=0.03)
    assert polygon_area(polygon[::-1]) == polygon_area(polygon)
    assert polygon_centre(polygon) == pytest.approx(np.argwhere(inside).mean(axis=0), abs=0.3)
    assert polygon_centre(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).tolist() == [3.0, 4.0]
    points = np.argwhere(np.ones((80, 80), bool)).astype(float)
    distances = distances_outside(points, polygon)
    dense = np.concatenate([np.linspace(a, b, 400) for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True)])
    nearest = np.sqrt(((points[:, None] - dense[::4]) ** 2).sum(axis=2)).min(axis=1)
    within = inside.ravel()
    assert (distances[within] == 0).mean() > 0.97  # the borders of the two differ
    assert distances[~within] == pytest.approx(np.where(distances[~within] == 0, 0, nearest[~within]), abs=0.3)
