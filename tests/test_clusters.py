import json

import numpy as np
import pytest

from unary.detectors.clusters import Clusters, ClustersConfig, SpeckScale, find_specks, sum_specks
from unary.detectors.dense_laplacian import DenseLaplacian, Scale
from unary.detectors.protocol import Detector, DetectorState, View
from unary.errors import DetectorError, TrainingError
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.threads import using_threads

QUIET = FitContext(progress=False)
ORIGINS = np.array([[row, col] for row in range(0, 449, 64) for col in range(0, 385, 64)], np.int32)


def make_tissue(seed, shape=(512, 512)):
    """Noisy tissue on the left seven eighths, nothing on the right."""
    pixels = np.zeros(shape, np.uint16)
    width = shape[1] * 7 // 8
    pixels[:, :width] = np.clip(np.random.default_rng(seed).normal(26000, 800, (shape[0], width)), 1, 65535)
    return pixels


@pytest.fixture(scope="module")
def fitted():
    return Clusters().fit(make_normals(), QUIET)


def make_normals():
    index = np.array([[image, *origin] for image in range(4) for origin in ORIGINS.tolist()], np.int32)
    return PatchSet(tuple(make_tissue(seed) for seed in range(4)), index, 64)


def examine(detector, pixels, origins=ORIGINS, with_map=True):
    return detector.examine(View(pixels, pixels > 0), origins, size_px=64, with_map=with_map)


def plant(pixels, places, height):
    planted = pixels.copy()
    for row, col in places:
        planted[row, col] += height
    return planted


def draw_places(count, seed=0, half=22):
    """Places 5 to 6 mm around the middle of the patch at (192, 192), far enough apart to be specks of their own."""
    rng, places = np.random.default_rng(seed), []
    while len(places) < count:
        place = rng.integers(224 - half, 224 + half, 2)
        if all(np.hypot(*(place - other)) >= 5 for other in places):
            places.append(place)
    return places


def test_a_field_of_faint_specks_outranks_one_bright_speck(fitted):
    clean = make_tissue(9)
    field = plant(clean, draw_places(8), 4800)
    single = plant(clean, [(224, 224)], 8 * 4800)
    patch = np.array([[192, 192]], np.int32)
    laplacian = fitted.laplacian
    strongest = [examine(laplacian, pixels, patch).scores[0] for pixels in (field, single)]
    assert strongest[0] < strongest[1], "the same total, but no speck of the field is as strong"
    sums = [examine(fitted, pixels, patch).scores[0] for pixels in (clean, single, field)]
    assert sums[0] < sums[1] < sums[2]


def test_the_field_is_where_the_map_is_highest(fitted):
    examined = examine(fitted, plant(make_tissue(9), draw_places(30), 3000))
    row, col = np.unravel_index(np.nanargmax(examined.anomaly_map), examined.anomaly_map.shape)
    assert np.hypot(row - 224, col - 224) < 20
    assert tuple(ORIGINS[examined.scores.argmax()]) == (192, 192)


def test_a_mirrored_image_has_a_mirrored_map(fitted):
    pixels = plant(make_tissue(5), draw_places(20), 4000)
    plain, mirrored = (examine(fitted, each).anomaly_map for each in (pixels, np.ascontiguousarray(pixels[:, ::-1])))
    assert np.allclose(mirrored[:, ::-1], plain, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("cut", [(slice(0, 509), slice(0, 510)), (slice(1, 512), slice(3, 512))])
def test_scores_are_the_largest_values_of_the_map(fitted, cut):
    pixels = np.ascontiguousarray(plant(make_tissue(5), draw_places(20), 4000)[cut])
    origins = np.array([[192, 192], [9, 13], [470, 201], [250, 390]], np.int32)  # two not on the coarse grid, one past
    examined = examine(fitted, pixels, origins)
    for (row, col), score in zip(origins.tolist(), examined.scores, strict=True):
        inside = np.nan_to_num(examined.anomaly_map[row : row + 64, col : col + 64], nan=-1)
        assert score >= inside.max()
        if (pixels[row : row + 64, col : col + 64] > 0).all() and row + 68 < pixels.shape[0] and row > 8:
            assert score == inside.max()
    assert np.array_equal(examine(fitted, pixels, origins, with_map=False).scores, examined.scores)
    assert np.isnan(examined.anomaly_map[pixels == 0]).all()
    assert np.nanmin(examined.anomaly_map) >= 0


def test_a_state_goes_to_json_and_back_bit_for_bit(fitted):
    state = fitted.get_state()
    again = Clusters.from_state(DetectorState(json.loads(json.dumps(state.settings)), state.tensors))
    pixels = plant(make_tissue(7), draw_places(12), 5000)
    one, other = examine(fitted, pixels), examine(again, pixels)
    assert np.array_equal(one.scores, other.scores)
    assert np.array_equal(one.anomaly_map, other.anomaly_map, equal_nan=True)
    for wrong in (
        {"scale": {"level": float("nan"), "excess": 1.0}},
        {"scale": {"level": 2.0, "excess": 0.0}},
        {"config": {"one_in_px": 3}},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Clusters.from_state(DetectorState(dict(state.settings) | wrong, {}))


def test_threads_change_nothing(fitted):
    found = []
    for count in (1, 2, 3):
        with using_threads(count):
            again = Clusters().fit(make_normals(), QUIET)
            found.append((again.scale, examine(again, make_tissue(8))))
    for scale, examined in found:
        assert scale == found[0][0] == fitted.scale
        assert np.array_equal(examined.scores, found[0][1].scores)
        assert np.array_equal(examined.anomaly_map, found[0][1].anomaly_map, equal_nan=True)


def test_the_level_is_as_rare_as_was_asked_for(fitted):
    beyond, area = 0, 0
    for pixels in make_normals().images:
        mask = View(pixels, pixels > 0).tissue.mask.copy()
        mask[:, 448:] = False  # where no patch lies
        response = examine(fitted.laplacian, pixels).anomaly_map
        beyond += mask[tuple(find_specks(response, fitted.scale.level)[0].T)].sum()
        area += mask.sum()
    assert beyond == int(area / 25_000)
    common = Clusters(ClustersConfig(one_in_px=1000)).fit(make_normals(), QUIET)
    assert common.scale.level < fitted.scale.level


def test_what_stands_alone_is_a_speck_and_what_is_lower_than_its_neighbour_none():
    response = np.zeros((600, 20), np.float32)
    response[[255, 256, 400, 401], [5, 6, 10, 10]] = [3.0, 2.0, 5.0, 5.0]  # the first two across the border of a band
    response[0, 0], response[1, 1], response[300, 19] = 4.0, np.nan, 2.5
    places, values = find_specks(response, 1.0)
    assert places.tolist() == [[0, 0], [255, 5], [300, 19], [400, 10], [401, 10]]
    assert values.tolist() == [4.0, 3.0, 2.5, 5.0, 5.0]


def test_a_sum_is_that_of_the_specks_wherever_the_tissue_ends():
    specks, scale = (np.array([[40, 40], [40, 44]]), np.array([4.0, 8.0], np.float32)), SpeckScale(1.0, 1.0)
    inside = sum_specks(specks, np.ones((160, 160), bool), scale, 8.0)
    assert inside.shape == (40, 40)
    assert 0.8 < inside.max() / (np.log(4) + np.log(8)) < 1.0  # somewhat apart, and a tenth of the window to spare
    half = np.ones((160, 160), bool)
    half[:, :36] = False
    assert inside.max() < sum_specks(specks, half, scale, 8.0).max() < 2 * inside.max()


def test_blank_images_and_too_few_patches_are_named():
    blank = np.full((128, 128), 20000, np.uint16)
    with pytest.raises(TrainingError, match="at least two"):
        Clusters().fit(PatchSet((blank,), np.array([[0, 0, 0]], np.int32), 64), QUIET)
    with pytest.raises(TrainingError, match="blank"):
        Clusters().fit(PatchSet((blank,), np.array([[0, 0, 0], [0, 0, 0]], np.int32), 64), QUIET)
    tiny = PatchSet((make_tissue(1, (64, 64)),), np.array([[0, 8, 8], [0, 16, 16]], np.int32), 8)
    with pytest.raises(TrainingError, match="local maxima"):
        Clusters().fit(tiny, QUIET)


def test_a_constant_image_has_no_specks(fitted):
    examined = examine(fitted, np.full((512, 512), 20000, np.uint16))
    assert not examined.scores.any()
    assert not examined.anomaly_map.any()
    empty = examine(fitted, np.zeros((512, 512), np.uint16))
    assert not empty.scores.any()
    assert np.isnan(empty.anomaly_map).all()


def test_it_is_a_detector_that_says_when_it_is_not_fitted():
    assert isinstance(Clusters(), Detector)
    with pytest.raises(DetectorError, match="clusters"):
        examine(Clusters(), make_tissue(0))
    with pytest.raises(DetectorError, match="clusters"):
        Clusters(laplacian=DenseLaplacian(scales=(Scale(0.0, 1.0),) * 4)).get_state()


@pytest.mark.parametrize("wrong", [{"one_in_px": 0}, {"reach_px": 0.0}, {"reach_px": 2000.0}, {"reach_px": np.nan}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClustersConfig(**wrong)
