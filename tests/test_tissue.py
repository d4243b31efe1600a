import dataclasses

import numpy as np
import pytest
from scipy import ndimage

import unary.detectors.tissue
from unary.detectors.blind_spot import BlindSpotConfig
from unary.detectors.fusion import FusionPrior
from unary.detectors.protocol import View
from unary.detectors.segmentation import SegmentationConfig
from unary.detectors.tissue import (
    find_tissue,
    find_typical,
    measure_noise,
    pool_patches,
    sample_scale,
    scan_tissue,
    smooth,
)
from unary.patches.patch_set import PatchSet
from unary.training.context import FitContext
from unary.training.engine import StepsConfig

SMALL = dataclasses.replace(
    FusionPrior().config,
    blind_spot=BlindSpotConfig(training=StepsConfig(4, 2)),
    segmentation=SegmentationConfig(training=StepsConfig(3, 2)),
)


def make_tissue(seed, shape=(420, 150)):
    """Textured tissue with a curved rim, a dense region and a few specks; uint16, zero outside."""
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 6) * 40000 + rng.normal(size=shape) * 600
    row, col = np.mgrid[: shape[0], : shape[1]]
    inside = ((row / shape[0] - 0.5) / 0.52) ** 2 + (col / shape[1] / 0.85) ** 2 < 1
    pixels = np.where(inside, np.clip(26000 + texture, 1, 65535), 0).astype(np.uint16)
    for place in rng.integers(20, min(shape) // 2, (6, 2)):
        pixels[shape[0] // 3 + place[0], place[1]] += 15000
    return pixels


def origins_of(shape, size_px=64, step=24):
    return np.asarray([(row, col) for row in range(0, shape[0] - 40, step) for col in range(0, 80, step)], np.int32)


def scan(pixels):
    return scan_tissue(pixels, pixels > 0)


@pytest.fixture(scope="module")
def fusion():
    origins = origins_of((420, 150))
    index = np.concatenate([np.insert(origins, 0, number, axis=1) for number in range(2)])
    normals = PatchSet(tuple(make_tissue(seed) for seed in range(2)), index.astype(np.int32), 64)
    return FusionPrior(SMALL).fit(normals, FitContext(progress=False))


@pytest.mark.parametrize("strip_px", [1, 64 * 150, 224 * 150])
def test_strips_give_the_same_map_and_scores_as_the_whole(fusion, strip_px, monkeypatch):
    pixels = make_tissue(7)
    origins = origins_of(pixels.shape)
    detectors = [fusion, *(part.detector for part in fusion.parts)]
    assert scan(pixels).intensity is not None
    whole = [one.examine(View(pixels, pixels > 0), origins, size_px=64) for one in detectors]
    monkeypatch.setattr(unary.detectors.tissue, "_STRIP_PX", strip_px)
    assert scan(pixels).intensity is None
    assert len(list(scan(pixels).strips(0))) == -(-420 // max(strip_px // 150 // 32 * 32, 32))
    for one, expected in zip(detectors, whole, strict=True):
        cut = one.examine(View(pixels, pixels > 0), origins, size_px=64)
        assert np.allclose(cut.scores, expected.scores, rtol=1e-3, atol=1e-4), type(one)
        assert np.allclose(cut.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-4, equal_nan=True), type(one)
        assert cut.anomaly_map.flags.writeable


@pytest.mark.parametrize("halo", [0, 5, 100])
def test_strips_are_cut_from_the_image(halo, monkeypatch):
    pixels = make_tissue(9, (333, 90))
    tissue = scan(pixels)
    monkeypatch.setattr(unary.detectors.tissue, "_STRIP_PX", 90 * 64)
    covered = []
    for strip in scan(pixels).strips(halo):
        covered.extend(range(*strip.rows.indices(333)))
        around = slice(strip.rows.start - strip.own.start, strip.rows.start - strip.own.start + len(strip.mask))
        assert around.start == max(strip.rows.start - halo, 0)
        assert around.stop == min(strip.rows.stop + halo, 333)
        assert np.array_equal(strip.mask, tissue.mask[around])
        assert np.allclose(strip.intensity, tissue.intensity[around], atol=1e-6)
    assert covered == list(range(333))


@pytest.mark.parametrize("limit", [10**9, 20_000, 2_000])
def test_the_typical_scale_is_the_median_of_a_sample_that_ignores_strips(limit, monkeypatch):
    rng = np.random.default_rng(0)
    shape = (420, 150)
    local = ndimage.gaussian_filter(rng.exponential(size=shape), 8).astype(np.float32)
    pixels = make_tissue(3)
    monkeypatch.setattr(unary.detectors.tissue, "SAMPLE_PX", limit)
    step = 1
    while -(-shape[0] * shape[1] // step**2) > limit:
        step += 1
    mask = find_tissue(pixels > 0)
    expected = float(np.median(local[::step, ::step][mask[::step, ::step]]))
    for strip_px in (10**9, 1):
        monkeypatch.setattr(unary.detectors.tissue, "_STRIP_PX", strip_px)
        strips = scan(pixels).strips(0)
        assert find_typical([sample_scale(strip, local[strip.rows], shape) for strip in strips]) == expected
    assert expected == pytest.approx(float(np.median(local[mask])), rel=0.02)
    assert find_typical([np.zeros(0, np.float32)]) is None


def test_noise_is_the_local_root_mean_square():
    rng = np.random.default_rng(1)
    mask = np.ones((200, 200), bool)
    mask[:, 150:] = False
    intensity = np.where(mask, 0.4 + 0.02 * rng.normal(size=mask.shape), 0.4).astype(np.float32)
    noise = measure_noise(intensity, mask)
    fine = (intensity - ndimage.gaussian_filter(intensity, 2.0))[mask]
    assert np.median(noise[40:160, 40:120]) == pytest.approx(float(fine.std()) + 2e-3, rel=0.05)
    assert noise.dtype == np.float32
    assert (noise > 0).all()
    assert (smooth(mask.astype(np.float32), 15) >= 0).all()


def test_the_outermost_pixels_are_no_tissue_unless_there_are_no_others():
    mask = np.zeros((60, 50), bool)
    mask[10:40, :30] = True
    expected = np.zeros_like(mask)
    expected[14:36, :26] = True  # the image's border is no rim
    assert np.array_equal(find_tissue(mask), expected)
    thin = np.zeros((40, 40), bool)
    thin[:, 20:23] = True
    assert np.array_equal(find_tissue(thin), thin)
    assert not find_tissue(np.zeros((40, 40), bool)).any()


def test_the_rim_is_no_edge_and_what_lies_outside_the_mask_has_no_influence():
    pixels = make_tissue(0, (256, 192))
    mask = np.zeros(pixels.shape, bool)
    mask[:, :144] = True
    pixels = np.where(mask, np.random.default_rng(0).normal(26000, 800, pixels.shape), 0).astype(np.uint16)
    pixels[:, 143] = 13000  # a column that mixes tissue and background
    tissue = scan_tissue(pixels, mask)
    assert not tissue.mask[:, 140:].any()
    assert abs(tissue.intensity[:, 140:150].mean() - tissue.intensity[:, :140].mean()) < 0.02
    assert tissue.intensity[:, 140:150].std() < tissue.intensity[:, :140].std()
    assert (measure_noise(tissue.intensity, tissue.mask) > 0).all()
    loud = np.where(mask, pixels, 60000).astype(np.uint16)
    assert np.array_equal(scan_tissue(loud, mask).intensity, tissue.intensity)


def test_holes_of_the_mask_are_respected():
    pixels = make_tissue(4)
    mask = pixels > 0
    mask[200:230, 30:60] = False
    assert not scan_tissue(pixels, mask).mask[196:234, 26:64].any()


def test_pooling_against_sorting():
    answer = np.random.default_rng(1).normal(size=(50, 70)).astype(np.float32)
    origins = np.asarray([(0, 0), (10, 20), (40, 60)], np.int32)
    pooled = pool_patches(answer, origins, size_px=16, strongest=5)
    for value, (row, col) in zip(pooled, origins, strict=True):
        assert np.isclose(value, np.sort(answer[row : row + 16, col : col + 16].ravel())[-5:].mean())
    means = pool_patches(answer, origins, size_px=16, strongest=None)
    assert np.isclose(means[1], answer[10:26, 20:36].mean())


@pytest.mark.parametrize("strip_px", [1, 10**9])
def test_an_image_without_tissue_is_answered_by_every_part(fusion, strip_px, monkeypatch):
    monkeypatch.setattr(unary.detectors.tissue, "_STRIP_PX", strip_px)
    view = View(np.zeros((100, 80), np.uint16), np.zeros((100, 80), bool))
    for part in fusion.parts:
        examined = part.detector.examine(view, np.array([[0, 0], [30, 10]], np.int32), size_px=64)
        assert len(np.unique(examined.scores)) == 1
        assert np.isfinite(examined.scores).all()
        assert np.isnan(examined.anomaly_map).all()
