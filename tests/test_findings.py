import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

import unary.models.findings
from unary.evaluation.polygons import polygon_area
from unary.models.findings import FindingsConfig, describe_findings, find_candidates
from unary.patches.preparation import PreparationConfig, PreparedImage, prepare_image
from unary.records import Image

HIGHEST = FindingsConfig(strongest=1)


def prepare(shape, *, stored_shape=None, spacing_mm=None):
    """A prepared image of which only the geometry matters."""
    stored_shape = stored_shape or shape
    scale = tuple(stored / working for stored, working in zip(stored_shape, shape, strict=True))
    return PreparedImage(np.zeros(shape, np.uint16), np.ones(shape, bool), scale, stored_shape, spacing_mm)


def describe(anomaly_map, prepared, *, config=HIGHEST, spacing_mm=None):
    candidates = find_candidates(anomaly_map, 1.0, config, spacing_mm=spacing_mm)
    count = min(len(candidates.scores), 255)
    return describe_findings(candidates, prepared, [None] * count, count=count)


def make_map(shape, boxes, *, value=3.0):
    anomaly_map = np.zeros(shape, np.float32)
    for r0, c0, r1, c1 in boxes:
        anomaly_map[r0:r1, c0:c1] = value
    return anomaly_map


def is_inside(outline, points):
    """Whether each point, (row, col), lies in a convex polygon or on its border."""
    vertices = np.asarray(outline)
    steps = np.roll(vertices, -1, axis=0) - vertices
    reach = points[:, None] - vertices
    side = steps[:, 0] * reach[:, :, 1] - steps[:, 1] * reach[:, :, 0]
    return (side >= -1e-6).all(axis=1) | (side <= 1e-6).all(axis=1)


def cluster_slowly(above, distance):
    """Sets of pixels: regions by flood, merged as long as any two pixels of two sets are nearer than the distance."""
    labels, count = ndimage.label(above, np.ones((3, 3)))
    sets = [np.argwhere(labels == number) for number in range(1, count + 1)]
    merged = True
    while merged:
        merged = False
        for one in range(len(sets)):
            for other in range(one + 1, len(sets)):
                if not merged and cdist(sets[one], sets[other]).min() < distance:
                    sets[one], merged = np.concatenate([sets[one], sets.pop(other)]), True
    return {frozenset(map(tuple, pixels.tolist())) for pixels in sets}, count


@pytest.mark.parametrize("seed", range(20))
def test_clusters_agree_with_a_slow_search(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(5, 70, 2))
    distance = float(rng.choice([1.0, 2.0, 3.5, 5.0, 9.0, 36.0]))
    anomaly_map = np.where(rng.random(shape) < rng.choice([0.003, 0.02, 0.05]), 1 + rng.random(shape), 0)
    anomaly_map = anomaly_map.astype(np.float32)
    config = FindingsConfig(merge_px=distance, strongest=1)
    candidates = find_candidates(anomaly_map, 1.0, config, spacing_mm=None)
    expected, regions = cluster_slowly(anomaly_map > 1, distance)
    found = [
        frozenset(map(tuple, np.argwhere(candidates.labels == number + 1).tolist()))
        for number in range(len(candidates.scores))
    ]
    assert set(found) == expected
    assert candidates.regions.sum() == regions
    for pixels, score, peak in zip(found, candidates.scores, candidates.peaks, strict=True):
        assert score == max(anomaly_map[place] for place in pixels) == anomaly_map[tuple(peak)]
        assert tuple(peak) in pixels
    assert (np.diff(candidates.scores) <= 0).all()


@pytest.mark.parametrize(("gap", "merged"), [(35.71, False), (35.72, True)])
def test_regions_merge_just_below_the_distance(gap, merged):
    shape, spacing = (60, 120), 5.0 / gap
    two = make_map(shape, [(10, 10, 12, 12), (22, 45, 24, 47)])  # nearest pixels (11, 11) and (22, 45): 35.7351
    distance = math.hypot(11, 34)
    for factor, expected in ((0.9999, True), (1.0001, False)):
        candidates = find_candidates(two, 1.0, HIGHEST, spacing_mm=factor * 5.0 / distance)
        assert (len(candidates.scores) == 1) is expected
    straight = make_map(shape, [(10, 10, 12, 12), (10, 11 + 36, 12, 50)])
    assert len(find_candidates(straight, 1.0, HIGHEST, spacing_mm=spacing).scores) == 2
    assert len(find_candidates(straight, 1.0, HIGHEST, spacing_mm=5.0 / 36.01).scores) == 1
    chain = make_map(shape, [(5, 5 + 20 * step, 7, 7 + 20 * step) for step in range(6)])
    found = find_candidates(chain, 1.0, FindingsConfig(merge_px=20 if merged else 19), spacing_mm=None)
    assert found.regions.tolist() == ([6] if merged else [1] * 6)


@pytest.mark.parametrize("along", [0, 1])
def test_regions_on_one_line_are_linked(along):
    anomaly_map = np.zeros((1, 200) if along else (200, 1), np.float32)
    anomaly_map.reshape(-1)[[3, 10, 17, 100]] = 2
    assert find_candidates(anomaly_map, 1.0, FindingsConfig(merge_px=8), spacing_mm=None).regions.tolist() == [3, 1]


def test_the_score_is_the_mean_of_the_strongest_regions_and_a_lone_one_counts_half():
    anomaly_map = make_map((200, 200), [(10, 10, 12, 12)], value=9)
    anomaly_map[150, 150], anomaly_map[155, 155], anomaly_map[160, 150] = 7, 6, 2
    candidates = find_candidates(anomaly_map, 1.0, FindingsConfig(merge_px=20, strongest=2), spacing_mm=None)
    assert candidates.scores.tolist() == [6.5, 5.0]
    assert candidates.regions.tolist() == [3, 1]
    assert candidates.peaks.tolist() == [[150, 150], [10, 10]]
    assert candidates.labels[150, 150] == 1
    assert candidates.image_score == 6.5
    assert candidates.highest == 9
    alone = find_candidates(anomaly_map, 1.0, FindingsConfig(merge_px=20, strongest=1), spacing_mm=None)
    assert alone.scores.tolist() == [9, 7]


@pytest.mark.parametrize(("working", "stored"), [((50, 40), (50, 40)), ((50, 40), (100, 80)), ((51, 37), (103, 74))])
@pytest.mark.parametrize("box", [(0, 0, 3, 2), (0, 30, 1, 37), (40, 0, 50, 1), (45, 30, 50, 37), (20, 20, 21, 21)])
def test_labels_boxes_outlines_and_peaks_agree(working, stored, box):
    anomaly_map = np.full(working, np.nan, np.float32)
    anomaly_map[:, :-1] = 0
    anomaly_map[box[0] : box[2], box[1] : box[3]] = 5
    (finding,), labels = describe(anomaly_map, prepare(working, stored_shape=stored))
    exact = np.asarray(box).reshape(2, 2) * (np.asarray(stored) / working)
    assert labels.shape == stored
    assert labels.dtype == np.uint8
    pixels = np.argwhere(labels == 1)
    assert finding.box == (*pixels.min(axis=0), *(pixels.max(axis=0) + 1))
    assert np.abs(pixels.min(axis=0) - exact[0]).max() <= 0.5 + 1e-6, "the nearest pixels, not all that are touched"
    assert np.abs(pixels.max(axis=0) + 1 - exact[1]).max() <= 0.5 + 1e-6
    assert is_inside(finding.outline, pixels).all()
    vertices = np.asarray(finding.outline)
    assert np.allclose(np.ravel([vertices.min(axis=0), vertices.max(axis=0)]), np.asarray(finding.box) - 0.5)
    assert labels[finding.peak] == 1
    assert (finding.area_mm2, finding.diameter_mm) == (None, None)


def test_the_outline_holds_all_regions_of_a_cluster():
    rng = np.random.default_rng(0)
    anomaly_map = ndimage.gaussian_filter(rng.normal(size=(300, 260)), 2).astype(np.float32)
    anomaly_map *= 1.8 / anomaly_map.max()
    findings, labels = describe(anomaly_map, prepare((300, 260), stored_shape=(607, 511)), config=FindingsConfig(5, 20))
    assert len(findings) > 3
    assert any(finding.regions > 2 for finding in findings)
    for finding in findings:
        pixels = np.argwhere(labels == finding.rank)
        assert is_inside(finding.outline, pixels).all()
        assert len(finding.outline) >= 4
        assert finding.outline[0] != finding.outline[-1]
    assert [finding.rank for finding in findings] == list(range(1, len(findings) + 1))
    assert set(np.unique(labels)) == set(range(len(findings) + 1))


@pytest.mark.parametrize("radius_mm", [1.0, 2.5, 6.0])
@pytest.mark.parametrize("spacing_mm", [0.05, 0.07, 0.1])
def test_sizes_of_discs_in_millimetres(radius_mm, spacing_mm):
    side = round(14 / 0.14)
    row, col = np.mgrid[:side, :side]
    disc = np.where(np.hypot(row - 49.3, col - 50.2) * 0.14 < radius_mm, 2, 0).astype(np.float32)
    stored = round(side * 0.14 / spacing_mm)
    prepared = prepare((side, side), stored_shape=(stored, stored), spacing_mm=(spacing_mm, spacing_mm))
    (finding,), labels = describe(disc, prepared)
    assert finding.area_mm2 == pytest.approx(math.pi * radius_mm**2, rel=0.05)
    assert (labels > 0).sum() * spacing_mm**2 == pytest.approx(finding.area_mm2, rel=0.05)
    assert 2 * radius_mm - 0.14 < finding.diameter_mm < 2 * radius_mm + 3 * 0.14
    outline = np.asarray(finding.outline) * spacing_mm
    assert polygon_area(outline) == pytest.approx(math.pi * radius_mm**2, rel=0.15)


@pytest.mark.parametrize("spacing_mm", [(0.1, 0.1), (0.1, 0.4), (0.4, 0.1), (0.07, 0.0701)])
@pytest.mark.parametrize("stored", [(60, 50), (121, 97), (40, 45)])
@pytest.mark.parametrize("merge_px", [1.5, 12])
def test_area_diameter_outline_and_box_are_measured_on_the_same_pixels(spacing_mm, stored, merge_px):
    rng = np.random.default_rng(4)
    anomaly_map = ndimage.gaussian_filter(rng.normal(size=(60, 50)), 1.5).astype(np.float32)
    anomaly_map *= 2 / anomaly_map.max()
    prepared = prepare((60, 50), stored_shape=stored, spacing_mm=spacing_mm)
    findings, labels = describe(anomaly_map, prepared, config=FindingsConfig(5, merge_px))
    assert len(findings) > 2
    for finding in findings:
        pixels = np.argwhere(labels == finding.rank)
        assert finding.area_mm2 == pytest.approx(len(pixels) * spacing_mm[0] * spacing_mm[1], rel=1e-12)
        corners = np.concatenate([pixels + shift for shift in ((-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5))])
        assert finding.diameter_mm == pytest.approx(cdist(corners * spacing_mm, corners * spacing_mm).max(), rel=1e-12)
        vertices = np.asarray(finding.outline)
        assert {tuple(vertex) for vertex in finding.outline} <= {tuple(corner) for corner in corners.tolist()}
        assert is_inside(finding.outline, corners).all()
        assert finding.diameter_mm == cdist(vertices * spacing_mm, vertices * spacing_mm).max()
        assert finding.area_mm2 <= polygon_area(vertices * spacing_mm) * (1 + 1e-12)
        assert finding.box == (*pixels.min(axis=0), *(pixels.max(axis=0) + 1))
        assert labels[finding.peak] == finding.rank


def test_anisotropic_spacing_is_respected():
    anomaly_map = make_map((40, 40), [(10, 10, 20, 15)])
    (finding,), _ = describe(anomaly_map, prepare((40, 40), spacing_mm=(0.1, 0.4)))
    assert finding.area_mm2 == pytest.approx(1.0 * 2.0)
    assert finding.diameter_mm == pytest.approx(math.hypot(1.0, 2.0))


@pytest.mark.parametrize("shape", [(640, 512), (641, 515), (199, 377)])
def test_a_resampled_image_maps_back_to_its_own_pixels(shape):
    rng = np.random.default_rng(5)
    pixels = rng.normal(2000, 30, shape).astype(np.uint16)
    r0, c0 = 101, 82
    pixels[r0 : r0 + 20, c0 : c0 + 12] = 3500
    config = PreparationConfig(mask="none", intensity="full_scale", working_spacing_mm=0.14)
    for flip in (slice(None), slice(None, None, -1)):
        for cut in (0, 7):  # rows and columns that are not there
            own = np.ascontiguousarray(pixels[cut:, flip][:, cut:])
            bright = np.argwhere(own == 3500)
            image = Image(own, (0, 4095), Path("a.png"), spacing_mm=(0.07, 0.07))
            prepared = prepare_image(image, config)
            assert prepared.shape == tuple(round(n / 2) for n in own.shape)
            seen = (prepared.pixels > 44000).astype(np.float32) * 2
            findings, labels = describe(seen, prepared, spacing_mm=0.14)
            assert len(findings) == 1
            assert np.abs(np.asarray(findings[0].box[:2]) - bright.min(axis=0)).max() <= 2
            assert np.abs(np.asarray(findings[0].box[2:]) - bright.max(axis=0) - 1).max() <= 2
            assert own[findings[0].peak] == 3500
            assert own[labels == 1].min() > 0
            assert (own[labels == 1] == 3500).mean() > 0.8
            assert (labels[own == 3500] == 1).mean() > 0.8


def test_a_finding_between_the_pixels_of_a_coarser_stored_grid_is_still_labelled():
    anomaly_map = np.zeros((40, 40), np.float32)
    anomaly_map[1, 1], anomaly_map[20:30, 20:30] = 3, 4
    findings, labels = describe(anomaly_map, prepare((40, 40), stored_shape=(28, 28)), config=FindingsConfig(5, 5))
    assert len(findings) == 2
    assert set(np.unique(labels)) == {0, 1, 2}
    assert labels[findings[1].peak] == 2


def test_maps_without_findings():
    nowhere = np.full((30, 20), np.nan, np.float32)
    empty = find_candidates(nowhere, 1.0, HIGHEST, spacing_mm=0.14)
    assert empty.image_score is None
    quiet = find_candidates(np.where(np.eye(30, 20) > 0, 0.5, nowhere), 1.0, HIGHEST, spacing_mm=None)
    assert quiet.image_score == 0.5
    at_level = find_candidates(np.ones((30, 20), np.float32), 1.0, HIGHEST, spacing_mm=None)
    assert len(at_level.scores) == 0, "only what exceeds the level"
    for candidates in (empty, quiet, at_level):
        findings, labels = describe_findings(candidates, prepare((30, 20), stored_shape=(61, 40)), [], count=0)
        assert findings == ()
        assert labels.shape == (61, 40)
        assert not labels.any()


def test_a_map_that_is_one_finding():
    (finding,), labels = describe(np.full((30, 20), 2, np.float32), prepare((30, 20), stored_shape=(59, 41)))
    assert finding.box == (0, 0, 59, 41)
    assert (labels == 1).all()
    assert finding.peak == (0, 1)


def test_hundreds_of_findings_and_the_strongest_of_thousands_of_regions():
    rng = np.random.default_rng(1)
    anomaly_map = np.zeros((800, 800), np.float32)
    anomaly_map[4::10, 4::10] = 2 + rng.random((80, 80))
    alone = FindingsConfig(merge_px=4, strongest=1)
    candidates = find_candidates(anomaly_map, 1.0, alone, spacing_mm=None)
    assert len(candidates.scores) == 4000
    strongest = np.sort(anomaly_map.ravel())[::-1][:4000]
    assert np.allclose(candidates.scores, strongest)
    assert candidates.labels.max() == 4000
    assert (candidates.labels > 0).sum() == 4000
    findings, labels = describe_findings(candidates, prepare((800, 800)), [0.5] * 255, count=255)
    assert len(findings) == 255
    assert labels.max() == 255
    for finding in (findings[0], findings[-1]):
        assert labels[finding.peak] == finding.rank
        assert (labels == finding.rank).sum() == 1
    with pytest.raises(ValueError, match="at most 255"):
        describe_findings(candidates, prepare((800, 800)), [0.5] * 256, count=256)
    together = find_candidates(anomaly_map, 1.0, FindingsConfig(merge_px=11, strongest=1), spacing_mm=None)
    assert together.regions.sum() == 4000
    assert together.regions[0] > 3000


def test_bands_and_thinning_change_little(monkeypatch):
    rng = np.random.default_rng(2)
    anomaly_map = ndimage.gaussian_filter(rng.normal(size=(300, 200)), 1.5).astype(np.float32)
    anomaly_map[:40] = np.nan
    config = FindingsConfig(merge_px=9)
    level = float(np.nanquantile(anomaly_map, 0.97))
    whole = find_candidates(anomaly_map, level, config, spacing_mm=None)
    assert 10 < len(whole.scores) < whole.regions.sum()
    monkeypatch.setattr(unary.models.findings, "_BAND_PX", 7)
    banded = find_candidates(anomaly_map, level, config, spacing_mm=None)
    for name in ("labels", "scores", "peaks", "regions"):
        assert np.array_equal(getattr(whole, name), getattr(banded, name))
    assert banded.highest == whole.highest
    prepared = prepare((300, 200), stored_shape=(601, 399))
    _, small = describe_findings(banded, prepared, [None] * 5, count=5)
    monkeypatch.undo()
    assert np.array_equal(small, describe_findings(whole, prepared, [None] * 5, count=5)[1])
    monkeypatch.setattr(unary.models.findings, "_MOST_POINTS", 400)
    thinned = find_candidates(anomaly_map, level, FindingsConfig(merge_px=1000), spacing_mm=None)
    assert thinned.regions.tolist() == [whole.regions.sum()]


@pytest.mark.parametrize("wrong", [{"merge_mm": 0}, {"merge_px": math.inf}, {"merge_mm": math.nan}, {"strongest": 0}])
def test_configuration_is_checked(wrong):
    with pytest.raises(ValueError):
        FindingsConfig(**wrong)
