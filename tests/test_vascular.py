"""Tests for `unary.models.vascular`."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from unary.models.examination import ScoredImage, build_detection
from unary.models.findings import FindingsConfig, describe_findings, find_candidates
from unary.models.vascular import VascularRule, _find_boxes, _find_longest, _span_tree, find_vascular, follow_chain
from unary.patches.preparation import PreparedImage
from unary.profiles import GENERAL, MAMMOGRAPHY

SPACING = 0.14
SHAPE = (420, 400)  # 59 x 56 mm
MERGE = FindingsConfig(merge_mm=5.0)


def draw(places_mm, *, seed=0, strength=9000.0, base=20_000.0):
    """Tissue of smooth noise with a speck of 0.3 mm at each place, (row, col) in mm, and the specks alone."""
    rng = np.random.default_rng(seed)
    tissue = base + 400 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1) / 0.28
    specks = np.zeros(SHAPE)
    rows, cols = np.rint(np.asarray(places_mm) / SPACING).astype(int).T
    specks[rows, cols] = 1
    specks = ndimage.gaussian_filter(specks, 1.0)
    return (tissue + strength * specks / specks.max()).clip(0, 65535).astype(np.uint16), specks / specks.max()


def prepare(pixels, *, mask=None, spacing_mm=SPACING):
    mask = np.ones(pixels.shape, bool) if mask is None else mask
    spacing = None if spacing_mm is None else (spacing_mm, spacing_mm)
    return PreparedImage(pixels, mask, (1.0, 1.0), pixels.shape, spacing)


def judge(pixels, anomaly_map, **given):
    """Which of the findings of a map are vascular patterns."""
    candidates = find_candidates(anomaly_map.astype(np.float32), 0.5, MERGE, spacing_mm=SPACING)
    return find_vascular(candidates, prepare(pixels, **given), count=len(candidates.scores)).tolist()


def wave(length_mm, *, step_mm=0.9, middle=(30.0, 28.0), height_mm=3.0):
    """Places along an arc, such as an artery's, with a little scatter."""
    along = np.arange(-length_mm / 2, length_mm / 2, step_mm)
    across = height_mm * np.cos(along / 12) + np.random.default_rng(1).normal(scale=0.15, size=len(along))
    return np.column_stack([middle[0] + across, middle[1] + along])


def scatter(count, *, radius_mm, middle=(30.0, 28.0), seed=2):
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, count), radius_mm * np.sqrt(rng.uniform(0, 1, count))
    return np.column_stack([middle[0] + radius * np.sin(angle), middle[1] + radius * np.cos(angle)])


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_long_smooth_chain_is_a_vascular_pattern_whichever_way_it_lies(turn, mirrored):
    pixels, specks = draw(wave(32))
    pixels, specks = (np.rot90(plane[:, ::-1] if mirrored else plane, turn).copy() for plane in (pixels, specks))
    assert judge(pixels, specks) == [True]


def test_a_finding_on_a_part_of_a_chain_is_seen_as_what_it_is_a_part_of():
    pixels, specks = draw(wave(32))
    specks[:, :170] = specks[:, 240:] = 0  # 10 mm of it
    assert judge(pixels, specks) == [True]
    specks[:, 185:] = 0  # 2 mm: a speck on a line says nothing of itself
    assert specks.max() > 0.5
    assert judge(pixels, specks) == [False]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "radius_mm"), [(10, 4.0), (30, 7.0), (60, 10.0), (40, 4.0)])
def test_a_cluster_is_none(count, radius_mm, seed):
    pixels, specks = draw(scatter(count, radius_mm=radius_mm, seed=seed))
    assert not any(judge(pixels, specks))


def test_a_short_chain_or_one_with_gaps_is_none():
    for places in (wave(14), wave(32, step_mm=4.0)):
        pixels, specks = draw(places)
        assert judge(pixels, specks) == [False]


def test_a_cluster_beside_a_chain_is_none():
    vessel, cluster = wave(32), scatter(15, radius_mm=3.0, middle=(39.0, 28.0))
    pixels, _ = draw(np.concatenate([vessel, cluster]))
    _, specks = draw(cluster)
    assert not any(judge(pixels, specks))


def test_a_mass_that_a_vessel_crosses_is_none():
    pixels, specks = draw(wave(32))
    rows, cols = np.ogrid[: SHAPE[0], : SHAPE[1]]
    mass = np.hypot(rows * SPACING - 33, cols * SPACING - 28) < 6
    assert judge(pixels, np.maximum(specks, mass)) == [False]


def test_the_edge_of_the_image_or_of_the_tissue_is_none():
    straight = np.column_stack([np.full(40, 1.0), np.linspace(8, 48, 40)])
    pixels, specks = draw(straight)
    assert judge(pixels, specks) == [False]
    mask = np.ones(SHAPE, bool)
    mask[:170] = False  # 23.8 mm
    pixels, specks = draw(straight + np.array([24.0, 0.0]))
    assert judge(pixels, specks, mask=mask) == [False]
    assert judge(pixels, specks) == [True]


def test_brightness_and_contrast_of_the_image_do_not_matter():
    pixels, specks = draw(wave(32))
    darker = (pixels * 0.25).astype(np.uint16)
    assert judge(darker, specks) == judge(pixels + np.uint16(10_000), specks) == [True]


def test_without_millimetres_nothing_is_called_vascular():
    pixels, specks = draw(wave(32))
    assert judge(pixels, specks, spacing_mm=None) == [False]
    assert judge(pixels, specks, spacing_mm=0.3) == [False]
    empty = find_candidates(np.zeros(SHAPE, np.float32), 0.5, MERGE, spacing_mm=SPACING)
    assert find_vascular(empty, prepare(pixels), count=0).tolist() == []


def test_a_chain_has_the_length_and_the_turning_of_its_curve():
    angle = np.linspace(0, np.pi, 90)
    half = 10 * np.column_stack([np.sin(angle), np.cos(angle)]) + 20  # a half circle of 31.4 mm
    chain, linked = follow_chain(half, np.ones(90, bool))
    assert linked.all()
    assert chain.length_mm == pytest.approx(10 * np.pi, rel=0.05)
    assert chain.turning == pytest.approx(np.pi / (chain.length_mm / 10), rel=0.15)
    assert chain.closed == 1
    line = np.column_stack([np.zeros(40), np.arange(40.0)])
    far = np.column_stack([np.full(10, 20.0), np.arange(10.0)])
    mine = np.arange(50) < 40
    chain, linked = follow_chain(np.concatenate([line, far]), mine)
    assert linked.tolist() == mine.tolist()
    assert chain.length_mm == pytest.approx(39, abs=0.6)
    assert chain.turning < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_is_that_of_all_distances_and_its_longest_way_the_longest(seed):
    points = np.random.default_rng(seed).uniform(0, 12, (40, 2))
    tree = _span_tree(points)
    distances = cdist(points, points)
    expected = minimum_spanning_tree(np.where(distances < 5, distances, 0))
    assert tree.sum() / 2 == pytest.approx(expected.sum())
    path = _find_longest(tree, 0)
    length = sum(distances[one, other] for one, other in itertools.pairwise(path))
    ways = (expected + expected.T).toarray()
    ways[ways == 0] = np.inf
    np.fill_diagonal(ways, 0)
    for middle in range(40):  # Floyd and Warshall
        ways = np.minimum(ways, ways[:, middle, None] + ways[None, middle])
    assert length == pytest.approx(ways[np.isfinite(ways)].max())


def test_boxes_are_those_of_scipy():
    labels = np.zeros((50, 60), np.int32)
    labels[3:9, 5:7], labels[20, 40:60], labels[49, 0] = 1, 3, 5
    assert _find_boxes(labels, 4) == ndimage.find_objects(labels, 4)


@pytest.mark.parametrize("name", ["speck", "length_mm", "span_mm", "share", "closed", "turning", "area_share"])
def test_a_rule_is_made_of_positive_numbers(name):
    for wrong in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=name):
            VascularRule(**{name: wrong})


def test_vascular_patterns_come_last_and_keep_all_that_they_are():
    anomaly_map = np.zeros((60, 60), np.float32)
    for place, value in (((5, 5), 9.0), ((5, 40), 8.0), ((40, 5), 7.0), ((40, 40), 6.0)):
        anomaly_map[place] = value
    candidates = find_candidates(anomaly_map, 1.0, FindingsConfig(merge_px=3), spacing_mm=None)
    prepared = PreparedImage(np.zeros((60, 60), np.uint16), np.ones((60, 60), bool), (2.0, 2.0), (120, 120), None)
    p_values = [0.1, 0.2, 0.3, 0.4]
    plain, _ = describe_findings(candidates, prepared, p_values, count=4)
    assert [finding.kind for finding in plain] == ["unusual region"] * 4
    found, labels = describe_findings(candidates, prepared, p_values, count=4, vascular=[True, False, True, False])
    assert [finding.kind for finding in found] == ["unusual region"] * 2 + ["vascular pattern"] * 2
    assert [finding.rank for finding in found] == [1, 2, 3, 4]
    for one, other in zip(found, (1, 3, 0, 2), strict=True):
        same = plain[other]
        assert (one.score, one.p_value, one.box, one.outline) == (same.score, same.p_value, same.box, same.outline)
        assert labels[one.peak] == one.rank
        assert (labels == one.rank).sum() == 4


def test_the_profile_says_whether_there_are_vessels_and_never_which_findings():
    cluster, vessel = scatter(12, radius_mm=2.0, middle=(48.0, 28.0)), wave(32, middle=(20.0, 28.0))
    pixels, _ = draw(np.concatenate([cluster, vessel]))
    anomaly_map = (draw(cluster)[1] + 2 * draw(vessel)[1]).astype(np.float32)
    candidates = find_candidates(anomaly_map, 0.5, MERGE, spacing_mm=SPACING)
    scored = ScoredImage(prepare(pixels), np.zeros((0, 2), np.int32), np.zeros(0), anomaly_map, candidates)
    breast, general = (
        build_detection(scored, SimpleNamespace(profile=profile, calibration=None), None)
        for profile in (MAMMOGRAPHY, GENERAL)
    )
    assert [finding.kind for finding in general.findings] == ["unusual region"] * 2
    assert general.findings[0].score > general.findings[1].score
    assert [finding.kind for finding in breast.findings] == ["unusual region", "vascular pattern"]
    assert [finding.score for finding in breast.findings] == [finding.score for finding in general.findings[::-1]]
    assert breast.image_score == general.image_score == breast.findings[1].score
