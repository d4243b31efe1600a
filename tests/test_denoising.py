import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from unary.detectors.denoising import CorruptionConfig, Denoising, DenoisingConfig, draw_corruption
from unary.detectors.protocol import View
from unary.detectors.scoring import score_patches
from unary.detectors.tissue import measure_noise
from unary.errors import TrainingError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import PatchSet, build_patch_set
from unary.patches.preparation import FULL_SCALE
from unary.training.context import FitContext
from unary.training.engine import StepsConfig

CONFIG = DenoisingConfig(widths=(8, 16), training=StepsConfig(steps=150, batch_size=4, learning_rate=5e-3))
RADIUS = 100


def make_pixels(seed):
    """Return a disc of texture, zero outside."""
    rng = np.random.default_rng(seed)
    rows, cols = np.ogrid[:230, :226]
    texture = 0.4 + ndimage.gaussian_filter(rng.normal(size=(230, 226)), 1.0) * 0.05
    pixels = np.clip(texture, 0.05, 1) * FULL_SCALE
    pixels[(rows - 115) ** 2 + (cols - 113) ** 2 > RADIUS**2] = 0
    return pixels.astype(np.uint16)


def view_of(pixels):
    return View(pixels, pixels > 0)


def noise_of(view):
    return measure_noise(view.tissue.intensity, view.tissue.mask)


def plant(pixels, place, *, contrast, sigma=1.5):
    rows, cols = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    blob = np.exp(-((rows - place[0]) ** 2 + (cols - place[1]) ** 2) / (2 * sigma**2))
    planted = pixels + contrast * noise_of(view_of(pixels))[place] * FULL_SCALE * blob
    return np.where(pixels > 0, np.clip(planted, 1, FULL_SCALE), 0).astype(np.uint16)


def fit(images, config=CONFIG, seed=0):
    index = np.array([[number, 0, 0] for number in range(len(images))], np.int32)
    return Denoising(config).fit(PatchSet(tuple(images), index, 32), FitContext(seed=seed, progress=False))


def map_of(detector, view):
    return detector.examine(view, np.zeros((0, 2), np.int32), size_px=32).anomaly_map


@pytest.fixture(scope="module")
def detector():
    return fit([make_pixels(seed) for seed in range(3)], seed=1)


def test_a_blob_is_partly_removed_and_stands_out(detector):
    place = (90, 120)
    clean = make_pixels(9)
    view = view_of(plant(clean, place, contrast=10))
    answer = map_of(detector, view)
    assert np.hypot(*np.subtract(np.unravel_index(np.nanargmax(answer), answer.shape), place)) <= 2
    away = view.tissue.mask & (np.hypot(*(np.indices(answer.shape) - np.reshape(place, (2, 1, 1)))) > 8)
    assert answer[place] > 2 * answer[away].max()
    denoised = view.tissue.intensity - answer * noise_of(view)
    before = abs(view.tissue.intensity[place] - clean[place] / FULL_SCALE)
    after = abs(denoised[place] - clean[place] / FULL_SCALE)
    assert after < 0.6 * before


def test_dark_blobs_do_not_count(detector):
    place = (90, 120)
    answer = map_of(detector, view_of(plant(make_pixels(9), place, contrast=-8)))
    assert answer[place] < 0


def test_patches_are_scored_by_their_strongest_pixels(detector):
    pixels = plant(make_pixels(10), (100, 100), contrast=10)
    origins = np.asarray([[84, 84], [20, 90], [200, 200]], np.int32)
    examination = detector.examine(view_of(pixels), origins, size_px=32)
    assert examination.scores.argmax() == 0
    window = np.sort(examination.anomaly_map[84:116, 84:116].ravel())
    assert examination.scores[0] == pytest.approx(window[-CONFIG.strongest :].mean(), rel=1e-5)
    assert np.isnan(examination.anomaly_map[0, 0])
    assert np.isfinite(examination.scores).all()
    patches = build_patch_set(pixels, grid_origins(pixels.shape, GridConfig(32, 32)), size_px=32)
    assert np.isfinite(score_patches(detector, patches)).all()


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
    wild = dataclasses.replace(CONFIG, training=StepsConfig(150, 4, learning_rate=1e30))
    with pytest.raises(TrainingError, match="diverged"):
        fit([make_pixels(0)], wild)
    with pytest.raises(TrainingError, match="at least 96 px"):
        fit([make_pixels(0)[:60]])
    with pytest.raises(TrainingError, match="no image"):
        fit([np.zeros((200, 200), np.uint16)])
    for wrong in ({"blob_sigma_px": (0.0, 1.0)}, {"most_blobs": 0}, {"blob_share": 0.0, "coarse_share": 0.0}):
        with pytest.raises(ValueError):
            CorruptionConfig(**wrong)
    with pytest.raises(ValueError, match="widths"):
        DenoisingConfig(widths=())
    with pytest.raises(ValueError, match="strongest"):
        DenoisingConfig(strongest=0)
