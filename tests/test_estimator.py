import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline

import unary
from unary.detectors.laplacian import Laplacian, LaplacianConfig
from unary.detectors.scoring import score_patches
from unary.errors import DetectorError, MissingPackageError, TrainingError
from unary.models.estimator import OneClassPatchDetector


def draw_patches(count, *, specks=0, seed=0):
    """Noise, the first few patches with a bright speck."""
    patches = np.random.default_rng(seed).normal(100, 10, (count, 32, 32))
    patches[:specks, 15:17, 15:17] += 80
    return patches


@pytest.fixture(scope="module")
def fitted():
    return OneClassPatchDetector().fit(draw_patches(80))


def test_signs_are_those_of_scikit_learn(fitted):
    patches = draw_patches(60, specks=30, seed=1)
    normal = np.r_[np.zeros(30), np.ones(30)]
    scores = fitted.score_samples(patches)
    assert scores.shape == (60,)
    assert roc_auc_score(normal, scores) > 0.99, "higher is more normal"
    assert np.array_equal(fitted.decision_function(patches), scores - fitted.offset_)
    assert np.array_equal(fitted.predict(patches), np.where(scores >= fitted.offset_, 1, -1))
    assert (fitted.predict(patches)[:30] == -1).all()
    assert np.array_equal(-scores, score_patches(fitted.detector_, fitted._to_patch_set(patches)))
    assert "higher for more normal" in OneClassPatchDetector.__doc__


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5])
def test_the_quantile_is_the_share_of_training_patches_called_abnormal(quantile):
    patches = draw_patches(80)
    estimator = OneClassPatchDetector(quantile=quantile)
    assert np.mean(estimator.fit_predict(patches) == -1) == pytest.approx(quantile, abs=1 / 80)


def test_it_can_be_cloned_searched_and_cross_validated(fitted):
    own = OneClassPatchDetector(Laplacian(LaplacianConfig(strongest=2)), quantile=0.2)
    again = clone(own)
    assert again.get_params()["quantile"] == 0.2
    assert again.detector.config == LaplacianConfig(strongest=2)
    assert not hasattr(clone(fitted), "detector_")
    assert clone(fitted).set_params(quantile=0.3, value_range=(0, 255)).get_params() == {
        "detector": "laplacian",
        "quantile": 0.3,
        "random_state": 0,
        "value_range": (0, 255),
    }
    patches, normal = draw_patches(60, specks=6), np.r_[np.zeros(6), np.ones(54)].astype(int)
    folds = StratifiedKFold(3)
    found = cross_val_score(own, patches, normal, scoring="roc_auc", cv=folds)
    assert (found > 0.9).all()
    assert (cross_val_score(make_pipeline(own), patches, normal, scoring="roc_auc", cv=folds) == found).all()


def test_patches_are_scored_one_by_one_as_in_a_batch_and_twice_alike(fitted):
    patches = draw_patches(9, specks=3, seed=2)
    together = fitted.score_samples(patches)
    assert np.allclose(together, [fitted.score_samples(patches[k : k + 1])[0] for k in range(9)])
    assert np.array_equal(clone(fitted).fit(draw_patches(80)).score_samples(patches), together)


def test_intensities_are_scaled_by_the_training_patches_or_as_told():
    patches = draw_patches(40)
    learned = OneClassPatchDetector().fit(patches)
    low, high = np.percentile(patches, (1, 99))
    assert learned.value_range_ == pytest.approx((low, low + (high - low) / 0.75))
    # Another unit changes nothing but rounding.
    scaled = OneClassPatchDetector().fit(patches * 7 - 3)
    assert np.allclose(scaled.score_samples(patches * 7 - 3), learned.score_samples(patches), atol=1e-2)
    told = OneClassPatchDetector(value_range=(0, 255)).fit(patches)
    assert told.value_range_ == (0, 255)
    counts = OneClassPatchDetector(value_range=(0, 255)).fit(patches.round().astype(np.uint8))
    assert np.isfinite(counts.score_samples(patches.round().astype(np.uint8))).all()


def test_a_detector_is_named_by_its_place_or_its_class(fitted):
    for detector in ("unary.detectors.laplacian:Laplacian", Laplacian, Laplacian()):
        estimator = OneClassPatchDetector(detector).fit(draw_patches(80))
        assert estimator.offset_ == fitted.offset_
    for state in (np.random.RandomState(3), None, 3):
        assert OneClassPatchDetector(random_state=state).fit(draw_patches(80)).offset_ == fitted.offset_


@pytest.mark.parametrize(
    ("patches", "cause"),
    [
        (np.zeros((5, 16)), r"shape \(n, size, size\)"),
        (np.zeros((5, 16, 8)), "square patches"),
        (np.zeros((0, 16, 16)), "square patches"),
        (np.full((5, 16, 16), np.nan), "finite"),
        (np.full((5, 16, 16), "a"), "finite integers or floats"),
    ],
)
def test_what_is_no_stack_of_patches_is_refused(fitted, patches, cause):
    for call in (OneClassPatchDetector().fit, fitted.score_samples):
        with pytest.raises(ValueError, match=cause):
            call(patches)


def test_wrong_settings_and_sizes_are_named(fitted):
    patches = draw_patches(8)
    with pytest.raises(ValueError, match="quantile must lie in"):
        OneClassPatchDetector(quantile=1.0).fit(patches)
    with pytest.raises(ValueError, match="value_range must be two numbers"):
        OneClassPatchDetector(value_range=(5, 5)).fit(patches)
    with pytest.raises(ValueError, match="value_range must be two numbers"):
        OneClassPatchDetector().fit(np.ones((5, 16, 16)))
    with pytest.raises(DetectorError, match="no detector is called 'laplace'"):
        OneClassPatchDetector("laplace").fit(patches)
    with pytest.raises(TrainingError, match="at least two normal patches"):
        OneClassPatchDetector().fit(patches[:1])
    with pytest.raises(ValueError, match="32 x 32"):
        fitted.score_samples(patches[:, :16, :16])
    with pytest.raises(ValueError, match="not fitted"):
        OneClassPatchDetector().predict(patches)


def test_it_is_found_at_the_top_of_the_package_or_the_extra_is_named(monkeypatch):
    assert unary.OneClassPatchDetector is OneClassPatchDetector
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'unary\[sklearn\]'"):
        unary.OneClassPatchDetector  # noqa: B018 - to ask for it is what is tested
