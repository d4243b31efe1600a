import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors.denoising import STRONGEST
from unary.detectors.fit_denoising import CorruptionConfig, draw_corruption, fit_denoising
from unary.detectors.protocol import ImageDetector
from unary.detectors.tissue import read_tissue
from unary.errors import TrainingError
from unary.models.scoring import score_patch_set
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE
from unary.training.engine import StepsConfig

STEPS = StepsConfig(steps=150, batch_size=4, learning_rate=5e-3)
WIDTHS = (8, 16)
RADIUS = 100


def make_pixels(seed):
    """Return a disc of texture, zero outside."""
    rng = np.random.default_rng(seed)
    rows, cols = np.ogrid[:230, :226]
    texture = 0.4 + ndimage.gaussian_filter(rng.normal(size=(230, 226)), 1.0) * 0.05
    pixels = np.clip(texture, 0.05, 1) * FULL_SCALE
    pixels[(rows - 115) ** 2 + (cols - 113) ** 2 > RADIUS**2] = 0
    return pixels.astype(np.uint16)


def plant(pixels, place, *, contrast, sigma=1.5):
    rows, cols = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    blob = np.exp(-((rows - place[0]) ** 2 + (cols - place[1]) ** 2) / (2 * sigma**2))
    noise = read_tissue(pixels).noise[place]
    return np.clip(pixels + contrast * noise * FULL_SCALE * blob, 0, FULL_SCALE).astype(np.uint16)


@pytest.fixture(scope="module")
def detector():
    return fit_denoising([read_tissue(make_pixels(seed)) for seed in range(3)], STEPS, widths=WIDTHS)


def test_a_blob_is_partly_removed_and_stands_out(detector):
    place = (90, 120)
    clean = make_pixels(9)
    planted = plant(clean, place, contrast=10)
    tissue = read_tissue(planted)
    answer = detector.map_tissue(tissue)
    assert np.hypot(*np.subtract(np.unravel_index(answer.argmax(), answer.shape), place)) <= 2
    away = tissue.mask & (np.hypot(*(np.indices(answer.shape) - np.reshape(place, (2, 1, 1)))) > 8)
    assert answer[place] > 2 * answer[away].max()
    before = abs(tissue.intensity[place] - clean[place] / FULL_SCALE)
    after = abs(detector.denoise(tissue)[place] - clean[place] / FULL_SCALE)
    assert after < 0.6 * before
    removed = (tissue.intensity - detector.denoise(tissue)) / tissue.noise
    assert np.allclose(removed[tissue.mask], answer[tissue.mask], atol=1e-3)


def test_dark_blobs_do_not_count(detector):
    clean = make_pixels(9)
    place = (90, 120)
    answer = detector.map_tissue(read_tissue(plant(clean, place, contrast=-8)))
    assert answer[place] < 0


def test_patches_are_scored_by_their_strongest_pixels(detector):
    pixels = plant(make_pixels(10), (100, 100), contrast=10)
    origins = np.asarray([[84, 84], [20, 90], [200, 200]], np.int32)
    examination = detector.examine_image(pixels, origins, size_px=32)
    assert isinstance(detector, ImageDetector)
    assert examination.scores.argmax() == 0
    window = np.sort(detector.map_tissue(read_tissue(pixels))[84:116, 84:116].ravel())
    assert examination.scores[0] == pytest.approx(window[-STRONGEST:].mean(), rel=1e-5)
    assert np.isnan(examination.anomaly_map[0, 0])
    assert np.isfinite(examination.scores).all()
    patches = build_patch_set(pixels, grid_origins(pixels.shape, GridConfig(32, 32)), size_px=32)
    assert np.isfinite(score_patch_set(detector, patches)).all()


def test_equal_seeds_give_equal_networks():
    tissues = [read_tissue(make_pixels(0))]
    steps = StepsConfig(steps=5, batch_size=2)
    one, same, other = (
        torch.cat([p.detach().ravel() for p in fit_denoising(tissues, s, widths=WIDTHS).network.parameters()])
        for s in (steps, steps, dataclasses.replace(steps, seed=1))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_corruption_is_of_zero_mean_and_of_the_stated_size():
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_corruption(CorruptionConfig(), rng, size_px=48) for _ in range(600)])
    clean = np.abs(drawn).max((1, 2)) == 0
    assert clean.mean() == pytest.approx(0.3 * 0.6, abs=0.05)
    by_crop = drawn.mean((1, 2))
    assert abs(by_crop.mean()) < 3 * by_crop.std() / np.sqrt(600)
    only_blobs = CorruptionConfig(blob_share=1, coarse_share=0, most_blobs=1, blob_contrast=(3, 3))
    peaks = np.stack([np.abs(draw_corruption(only_blobs, rng, size_px=48)).max() for _ in range(50)])
    assert peaks.max() <= 3.0
    assert np.median(peaks) > 2.0
    only_coarse = CorruptionConfig(blob_share=0, coarse_share=1, coarse_contrast=(2, 2), coarse_step_px=(6, 6))
    coarse = np.stack([draw_corruption(only_coarse, rng, size_px=48) for _ in range(50)])
    assert 1.0 < coarse.std() < 2.0  # linear enlargement averages neighbours
    assert np.corrcoef(coarse[:, :, :-2].ravel(), coarse[:, :, 2:].ravel())[0, 1] > 0.7


def test_useless_input_is_refused():
    tissue = read_tissue(make_pixels(0))
    broken = dataclasses.replace(tissue, intensity=np.full_like(tissue.intensity, np.nan))
    with pytest.raises(TrainingError, match="diverged"):
        fit_denoising([broken], STEPS, widths=WIDTHS)
    with pytest.raises(TrainingError, match="at least 96 px"):
        fit_denoising([read_tissue(make_pixels(0)[:60])], STEPS)
    with pytest.raises(TrainingError, match="no image"):
        fit_denoising([read_tissue(np.zeros((200, 200), np.uint16))], STEPS)
    for wrong in ({"blob_sigma_px": (0.0, 1.0)}, {"most_blobs": 0}, {"blob_share": 0.0, "coarse_share": 0.0}):
        with pytest.raises(ValueError):
            CorruptionConfig(**wrong)
