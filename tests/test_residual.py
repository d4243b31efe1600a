import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity

from unary.detectors.laplacian import LaplacianConfig
from unary.detectors.protocol import View
from unary.detectors.residual import Dssim, DssimConfig, Residual, ResidualConfig
from unary.detectors.scoring import count_weights, score_patches
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import TrainingConfig
from unary.errors import DetectorError, TrainingError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE
from unary.training.context import FitContext

SIZE = 64
WIDTHS = (4, 8, 8)
NETWORK = Wei2018Config(WIDTHS, training=TrainingConfig(epochs=10, batch_size=25))
BANK = LaplacianConfig(sigmas_px=(1.0, 2.0, 4.0), neighbourhood_px=8.0)
CONFIG = ResidualConfig(NETWORK, BANK)
QUIET = FitContext(progress=False)


def make_patches(seed, count):
    """Return texture whose contrast differs from patch to patch."""
    rng = np.random.default_rng(seed)
    broad = ndimage.gaussian_filter(rng.normal(size=(count, SIZE, SIZE)), (0, 8, 8))
    fine = ndimage.gaussian_filter(rng.normal(size=(count, SIZE, SIZE)), (0, 1, 1)) * rng.uniform(
        0.02, 0.2, (count, 1, 1)
    )
    return np.clip((0.4 + broad + fine) * FULL_SCALE, 0, FULL_SCALE).astype(np.uint16)


def as_set(patches):
    count, size, _ = patches.shape
    tall = patches.reshape(count * size, size)
    return build_patch_set(tall, grid_origins(tall.shape, GridConfig(size, size)), size_px=size)


def plant(patches, amount, radius=1.5, place=(20, 41)):
    rows, cols = np.ogrid[:SIZE, :SIZE]
    speck = (rows - place[0]) ** 2 + (cols - place[1]) ** 2 <= radius**2
    planted = patches.astype(np.float64)
    contrast = amount * (patches / FULL_SCALE - ndimage.gaussian_filter(patches / FULL_SCALE, (0, 3, 3))).std((1, 2))
    planted[:, speck] += (contrast * FULL_SCALE)[:, None]
    return np.clip(planted, 0, FULL_SCALE).astype(np.uint16)


@pytest.fixture(scope="module")
def normal():
    return make_patches(0, 150)


@pytest.fixture(scope="module")
def reconstruction(normal):
    return Wei2018(NETWORK).fit(as_set(normal), QUIET)


@pytest.fixture(scope="module")
def residual(normal, reconstruction):
    return Residual(CONFIG, reconstruction).calibrate(as_set(normal))


def compare(reconstruction, **options):
    return Dssim(DssimConfig(NETWORK, **options), reconstruction)


def share_below(values, others):
    """Return the chance that a value exceeds one of the others: the AUROC by brute force."""
    return float((values[:, None] > others[None, :]).mean())


def test_a_speck_lifts_the_residual_and_is_lost_in_the_rmse(residual, reconstruction):
    unseen = make_patches(1, 60)
    specks = plant(make_patches(2, 60), 6.0)
    by_residual = share_below(residual.examine_patches(specks).scores, residual.examine_patches(unseen).scores)
    by_rmse = share_below(reconstruction.examine_patches(specks).scores, reconstruction.examine_patches(unseen).scores)
    assert by_residual > 0.95
    assert by_rmse < 0.7
    peaks = [np.unravel_index(one.argmax(), one.shape) for one in residual.examine_patches(specks).maps]
    assert np.median([np.hypot(row - 20, col - 41) for row, col in peaks]) <= 2


def test_dark_specks_are_none(residual):
    unseen = make_patches(3, 40)
    bright, dark = (residual.examine_patches(plant(unseen, amount)).scores for amount in (8.0, -8.0))
    assert np.median(dark) < np.median(bright) / 2


def test_whitened_error_is_of_unit_size_whatever_the_contrast(residual, reconstruction):
    patches = make_patches(4, 40)
    raw = np.sqrt(np.square(reconstruction.error_maps(patches)).mean((1, 2)))
    whitened = np.sqrt(np.square(residual.whiten_error(patches)).mean((1, 2)))
    assert raw.max() > 2 * raw.min()
    assert whitened.max() < 1.3 * whitened.min()
    assert 0.7 < whitened.mean() < 1.1


def test_normal_patches_are_standardised(normal, reconstruction):
    config = dataclasses.replace(CONFIG, bank=LaplacianConfig(sigmas_px=(2.0,), neighbourhood_px=8.0))
    detector = Residual(config, reconstruction).calibrate(as_set(normal))
    scores = detector.examine_patches(normal).scores
    assert scores.mean() == pytest.approx(0, abs=1e-3)
    assert scores.std() == pytest.approx(1, abs=1e-3)


def test_dssim_agrees_with_skimage_and_its_pooling_with_sorting(reconstruction):
    patches = make_patches(5, 3)
    plain = compare(reconstruction, strongest_share=1.0).examine_patches(patches)
    expected = [
        (1 - structural_similarity(patch / FULL_SCALE, restored.astype(float), win_size=7, data_range=1, full=True)[1])
        / 2
        for patch, restored in zip(patches, reconstruction.reconstruct(patches), strict=True)
    ]
    assert np.allclose(plain.maps, expected, atol=1e-4)
    assert np.allclose(plain.scores, np.mean(expected, axis=(1, 2)), atol=1e-4)
    strongest = compare(reconstruction, strongest_share=0.01).examine_patches(patches)
    by_hand = np.sort(plain.maps.reshape(3, -1), axis=1)[:, -41:].mean(axis=1)
    assert np.allclose(strongest.scores, by_hand, atol=1e-6)


def test_dssim_of_the_strongest_pixels_sees_the_speck(reconstruction):
    patches = make_patches(6, 30)
    detector = compare(reconstruction)
    higher = detector.examine_patches(plant(patches, 15.0)).scores > detector.examine_patches(patches).scores
    assert higher.mean() > 0.9  # not all: the strongest per cent may lie elsewhere


@pytest.mark.parametrize("build", ["residual", "dssim"])
def test_batched_equals_one_by_one(normal, residual, reconstruction, build):
    detector = residual if build == "residual" else compare(reconstruction)
    single = [detector.examine_patches(normal[k : k + 1]).scores[0] for k in range(5)]
    assert np.allclose(detector.examine_patches(normal[:5]).scores, single, rtol=1e-4)


def test_useless_input_is_refused(normal, reconstruction):
    with pytest.raises(TrainingError, match="at least two"):
        Residual(CONFIG, reconstruction).calibrate(as_set(normal[:1]))
    with pytest.raises(TrainingError, match="blank"):
        Residual(CONFIG, reconstruction).calibrate(as_set(np.full((3, SIZE, SIZE), 26000, np.uint16)))
    broken = build_autoencoder(AutoencoderConfig(SIZE, widths=WIDTHS), seed=0)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="finite"):
        Residual(CONFIG, Wei2018(NETWORK, broken)).calibrate(as_set(normal))
    with pytest.raises(TrainingError, match="does not fit"):
        Dssim(DssimConfig(NETWORK, window_px=65)).fit(as_set(normal), QUIET)
    for kind, wrong in (
        (DssimConfig, {"window_px": 4}),
        (DssimConfig, {"strongest_share": 0.0}),
        (Wei2018Config, {"widths": ()}),
        (Wei2018Config, {"bottleneck": 0}),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kind(**wrong)


def test_the_papers_network_is_trained_once_for_all_that_share_it(normal, tmp_path):
    patches, network = as_set(normal), Wei2018Config(WIDTHS, training=TrainingConfig(epochs=2, batch_size=20))
    context = FitContext(seed=5, checkpoint=tmp_path / "state", progress=False)
    detectors = [
        Residual(ResidualConfig(network, BANK)),
        Wei2018(network),
        Dssim(DssimConfig(network)),
    ]
    written, scores = [], []
    for detector in detectors:
        scores.append(score_patches(detector.fit(patches, context), patches))
        written.append([(path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir()])
    assert len(written[0]) == 1
    assert written[0] == written[1] == written[2]
    assert all(np.isfinite(values).all() and np.ptp(values) > 0 for values in scores)
    detectors[1].fit(patches.subset(np.arange(1, len(patches))), context)  # other patches train their own
    detectors[1].fit(patches, dataclasses.replace(context, seed=6))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("build", ["residual", "dssim"])
def test_the_state_survives_json_bit_for_bit(normal, residual, reconstruction, build):
    detector = residual if build == "residual" else compare(reconstruction)
    state = detector.get_state()
    assert all(type(tensor) is np.ndarray for tensor in state.tensors.values())
    again = type(detector).from_state(dataclasses.replace(state, settings=json.loads(json.dumps(state.settings))))
    assert again.config == detector.config
    assert np.array_equal(score_patches(again, as_set(normal[:20])), score_patches(detector, as_set(normal[:20])))
    assert count_weights(again) == count_weights(reconstruction) + (6 if build == "residual" else 0)
    config = state.settings["config"]
    other = {**state.settings, "config": {**config, "network": {**config["network"], "widths": [4, 8]}}}
    with pytest.raises(ValueError, match="of the configuration"):
        type(detector).from_state(dataclasses.replace(state, settings=other))
    assert len(repr(again)) < 500
    assert "\n" not in repr(again)


@pytest.mark.parametrize("build", ["residual", "dssim"])
def test_what_they_cannot_do_is_said(normal, residual, reconstruction, build):
    detector = residual if build == "residual" else compare(reconstruction)
    view, origins = View(normal[0], np.ones((SIZE, SIZE), bool)), np.zeros((1, 2), np.int32)
    with pytest.raises(DetectorError, match="fit it first"):
        type(detector)().examine(view, origins, size_px=SIZE)
    with pytest.raises(DetectorError, match="patches of 64 px and cannot examine those of 32 px"):
        detector.examine(view, origins, size_px=32)


@pytest.mark.parametrize("build", ["residual", "dssim"])
def test_neither_fit_nor_scores_depend_on_threads(normal, build):
    patches, network = as_set(normal[:40]), Wei2018Config(WIDTHS, training=TrainingConfig(epochs=1, batch_size=20))
    config = (ResidualConfig if build == "residual" else DssimConfig)(network)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            detector = (Residual if build == "residual" else Dssim)(config).fit(patches, QUIET)
            found.append(score_patches(detector, patches))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
