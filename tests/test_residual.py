import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity

from unary.detectors.laplacian import LaplacianConfig
from unary.detectors.residual import Dssim, fit_residual, whiten_error
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, ReconstructionDetector, build_autoencoder
from unary.errors import TrainingError
from unary.experiments import entrants_learned
from unary.experiments.bench_data import collect_bench_data, draw_folds
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE, PreparationConfig
from unary.training.engine import StepsConfig, TrainingConfig, train_autoencoder

SIZE = 64
CONFIG = LaplacianConfig(sigmas_px=(1.0, 2.0, 4.0), neighbourhood_px=8.0)


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
    trained = train_autoencoder(as_set(normal), TrainingConfig(epochs=10, batch_size=25), widths=(4, 8, 8))
    return ReconstructionDetector(trained.network)


def share_below(values, others):
    """Return the chance that a value exceeds one of the others: the AUROC by brute force."""
    return float((values[:, None] > others[None, :]).mean())


def test_a_speck_lifts_the_residual_and_is_lost_in_the_rmse(normal, reconstruction):
    unseen = make_patches(1, 60)
    specks = plant(make_patches(2, 60), 6.0)
    detector = fit_residual(reconstruction, as_set(normal), CONFIG)
    by_residual = share_below(detector.examine(specks).scores, detector.examine(unseen).scores)
    by_rmse = share_below(reconstruction.examine(specks).scores, reconstruction.examine(unseen).scores)
    assert by_residual > 0.95
    assert by_rmse < 0.7
    peaks = [np.unravel_index(one.argmax(), one.shape) for one in detector.examine(specks).maps]
    assert np.median([np.hypot(row - 20, col - 41) for row, col in peaks]) <= 2


def test_dark_specks_are_none(normal, reconstruction):
    detector = fit_residual(reconstruction, as_set(normal), CONFIG)
    unseen = make_patches(3, 40)
    bright, dark = (detector.examine(plant(unseen, amount)).scores for amount in (8.0, -8.0))
    assert np.median(dark) < np.median(bright) / 2


def test_whitened_error_is_of_unit_size_whatever_the_contrast(reconstruction):
    patches = make_patches(4, 40)
    raw = np.sqrt(np.square(reconstruction.error_maps(patches)).mean((1, 2)))
    whitened = np.sqrt(np.square(whiten_error(reconstruction, patches, 8.0)).mean((1, 2)))
    assert raw.max() > 2 * raw.min()
    assert whitened.max() < 1.3 * whitened.min()
    assert 0.7 < whitened.mean() < 1.1


def test_normal_patches_are_standardised(normal, reconstruction):
    detector = fit_residual(reconstruction, as_set(normal), LaplacianConfig(sigmas_px=(2.0,), neighbourhood_px=8.0))
    scores = detector.examine(normal).scores
    assert scores.mean() == pytest.approx(0, abs=1e-3)
    assert scores.std() == pytest.approx(1, abs=1e-3)


def test_dssim_agrees_with_skimage_and_its_pooling_with_sorting(reconstruction):
    patches = make_patches(5, 3)
    plain = Dssim(reconstruction, strongest_share=1.0).examine(patches)
    expected = [
        (1 - structural_similarity(patch / FULL_SCALE, restored.astype(float), win_size=7, data_range=1, full=True)[1])
        / 2
        for patch, restored in zip(patches, reconstruction.reconstruct(patches), strict=True)
    ]
    assert np.allclose(plain.maps, expected, atol=1e-4)
    assert np.allclose(plain.scores, np.mean(expected, axis=(1, 2)), atol=1e-4)
    strongest = Dssim(reconstruction, strongest_share=0.01).examine(patches)
    by_hand = np.sort(plain.maps.reshape(3, -1), axis=1)[:, -41:].mean(axis=1)
    assert np.allclose(strongest.scores, by_hand, atol=1e-6)


def test_dssim_of_the_strongest_pixels_sees_the_speck(reconstruction):
    patches = make_patches(6, 30)
    detector = Dssim(reconstruction)
    higher = detector.examine(plant(patches, 15.0)).scores > detector.examine(patches).scores
    assert higher.mean() > 0.9  # not all: the strongest per cent may lie elsewhere


@pytest.mark.parametrize("build", ["residual", "dssim"])
def test_batched_equals_one_by_one(normal, reconstruction, build):
    detector = fit_residual(reconstruction, as_set(normal), CONFIG) if build == "residual" else Dssim(reconstruction)
    single = [detector.examine(normal[k : k + 1]).scores[0] for k in range(5)]
    assert np.allclose(detector.examine(normal[:5]).scores, single, rtol=1e-4)


def test_useless_input_is_refused(normal, reconstruction):
    with pytest.raises(TrainingError, match="at least two"):
        fit_residual(reconstruction, as_set(normal[:1]))
    with pytest.raises(TrainingError, match="blank"):
        fit_residual(reconstruction, as_set(np.full((3, SIZE, SIZE), 26000, np.uint16)))
    broken = build_autoencoder(AutoencoderConfig(SIZE, widths=(4, 8, 8)), seed=0)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="not finite"):
        fit_residual(ReconstructionDetector(broken), as_set(normal))
    with pytest.raises(TrainingError, match="does not fit"):
        Dssim(reconstruction, window_px=65).examine(normal[:1])
    for wrong in ({"window_px": 4}, {"strongest_share": 0.0}):
        with pytest.raises(ValueError):
            Dssim(reconstruction, **wrong)


def test_the_bench_trains_the_papers_network_once_for_all_that_share_it(phantoms, tmp_path, monkeypatch):
    data = collect_bench_data(phantoms, PreparationConfig(), GridConfig(64, 32), progress=False)
    fold = draw_folds(data, count=2, seed=0)[0]
    monkeypatch.setattr(entrants_learned, "PAPER_TRAINING", TrainingConfig(epochs=2, batch_size=20))
    by_name = {entrant.name: entrant for entrant in entrants_learned.LEARNED}
    scores, written = {}, []
    for name in ("residual", "wei2018", "residual_dssim"):
        scorer = by_name[name].fit(data, fold.train, 0, tmp_path / f"{name}-0-0-abc")
        scores[name] = scorer.score(data, fold.test)
        written.append([(path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir()])
    assert len(written[0]) == 1
    assert written[0] == written[1] == written[2]
    assert all(np.isfinite(values).all() and np.ptp(values) > 0 for values in scores.values())
    by_name["wei2018"].fit(data, fold.train[:-1], 0, tmp_path / "wei2018-0-1-abc")  # another fold trains its own
    assert len(list(tmp_path.iterdir())) == 2


def test_every_learned_entrant_scores_patches_of_the_bench(phantoms, tmp_path, monkeypatch):
    data = collect_bench_data(phantoms, PreparationConfig(), GridConfig(64, 32), progress=False)
    fold = draw_folds(data, count=2, seed=0)[0]
    monkeypatch.setattr(entrants_learned, "PAPER_TRAINING", TrainingConfig(epochs=1))
    monkeypatch.setattr(entrants_learned, "CODE_EPOCHS", 1)
    monkeypatch.setattr(entrants_learned, "DENOISING_STEPS", StepsConfig(steps=2, batch_size=2))
    for entrant in entrants_learned.LEARNED:
        scorer = entrant.fit(data, fold.train, 1, tmp_path / f"{entrant.name}-1-0-abc")
        scores = scorer.score(data, fold.test)
        assert scores.shape == fold.test.shape, entrant.name
        assert np.isfinite(scores).all(), entrant.name
        assert scorer.parameters > 1000, entrant.name
