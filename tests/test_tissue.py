import dataclasses

import numpy as np
import pytest
from scipy import ndimage

import unary.detectors.tissue
from unary.detectors.fit_fusion import WITH_PRIOR, FusionConfig, NormalImage, fit_fusion
from unary.detectors.tissue import (
    find_tissue,
    find_typical,
    measure_noise,
    read_tissue,
    sample_scale,
    scan_tissue,
    smooth,
)
from unary.training.engine import StepsConfig

SMALL = FusionConfig(WITH_PRIOR, blind_spot=StepsConfig(4, 2), segmentation=StepsConfig(3, 2))


def make_breast(seed, shape=(420, 150)):
    """Textured tissue with a curved skin line, a dense region and a few specks; uint16, zero outside."""
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


@pytest.fixture(scope="module")
def fusion():
    normals = [NormalImage(make_breast(seed), origins_of((420, 150))) for seed in range(2)]
    return fit_fusion(normals, SMALL, size_px=64)


@pytest.mark.parametrize("strip_px", [1, 64 * 150, 224 * 150])
def test_strips_give_the_same_map_and_scores_as_the_whole(fusion, strip_px, monkeypatch):
    pixels = make_breast(7)
    origins = origins_of(pixels.shape)
    whole = fusion.examine_image(pixels, origins, size_px=64)
    monkeypatch.setattr(unary.detectors.tissue, "_STRIP_PX", strip_px)
    scan = scan_tissue(pixels)
    assert scan.intensity is None
    assert len(list(scan.strips(0))) == -(-420 // max(strip_px // 150 // 32 * 32, 32))
    cut = fusion.examine_image(pixels, origins, size_px=64)
    assert np.allclose(cut.scores, whole.scores, rtol=1e-4)
    assert np.allclose(cut.anomaly_map, whole.anomaly_map, rtol=1e-4, atol=1e-4, equal_nan=True)
    tissue = read_tissue(pixels)
    for fused in fusion.parts:
        answer = fused.part.map_tissue(scan)
        assert np.allclose(answer, fused.part.map_tissue(tissue), rtol=1e-3, atol=1e-4), fused.name
        assert answer.flags.writeable


def test_an_image_read_whole_equals_an_image_scanned(fusion):
    pixels = make_breast(8)
    tissue, scan = read_tissue(pixels), scan_tissue(pixels)
    assert np.array_equal(scan.intensity, tissue.intensity)
    assert np.array_equal(scan.mask, tissue.mask)
    for fused in fusion.parts:
        assert np.array_equal(fused.part.map_tissue(scan), fused.part.map_tissue(tissue))


@pytest.mark.parametrize("halo", [0, 5, 100])
def test_strips_are_cut_from_the_image(halo, monkeypatch):
    pixels = make_breast(9, (333, 90))
    tissue = read_tissue(pixels)
    monkeypatch.setattr(unary.detectors.tissue, "_STRIP_PX", 90 * 64)
    covered = []
    for strip in scan_tissue(pixels).strips(halo):
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
    pixels = make_breast(3)
    monkeypatch.setattr(unary.detectors.tissue, "_SAMPLE_PX", limit)
    step = 1
    while -(-shape[0] * shape[1] // step**2) > limit:
        step += 1
    mask = find_tissue(pixels)
    expected = float(np.median(local[::step, ::step][mask[::step, ::step]]))
    for strip_px in (10**9, 1):
        monkeypatch.setattr(unary.detectors.tissue, "_STRIP_PX", strip_px)
        strips = scan_tissue(pixels).strips(0)
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


def test_an_image_without_tissue_is_flat_everywhere(fusion):
    for strip_rows in (32, 500):
        scan = dataclasses.replace(scan_tissue(np.zeros((100, 80), np.uint16)), strip_rows=strip_rows)
        for fused in fusion.parts:
            answer = fused.part.map_tissue(scan)
            assert len(np.unique(answer)) == 1
            assert np.isfinite(answer).all()
