"""The pure parts of ``benchmarks/peers.py``: features, patches without their images, comparisons and tables."""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from unary.patches.patch_set import PatchSet


@pytest.fixture(autouse=True)
def beside_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture
def peers():
    return importlib.import_module("peers")


@pytest.fixture
def peers_data():
    return importlib.import_module("peers_data")


@pytest.fixture
def features():
    return importlib.import_module("peers_features")


@pytest.fixture
def patches():
    return np.random.default_rng(0).integers(9000, 12000, (5, 32, 32)).astype(np.uint16)


def test_features_are_what_their_names_say_and_those_of_each_patch_alone(features, patches):
    found = features.measure_patches(patches)
    columns = dict(zip(features.NAMES, found.T, strict=True))
    values = patches.reshape(5, -1) / 65535
    np.testing.assert_allclose(columns["mean"], values.mean(axis=1))
    np.testing.assert_allclose(columns["standard_deviation"], values.std(axis=1))
    np.testing.assert_allclose(columns["quantile_75"], np.percentile(values, 75, axis=1))
    np.testing.assert_array_equal(found, [features.measure_patches(one[None])[0] for one in patches])


def test_a_speck_is_seen_by_the_features_that_look_for_edges(features, patches):
    patches[:] = 10000
    patches[1, 16, 16] = 20000
    columns = dict(zip(features.NAMES, features.measure_patches(patches[:2]).T, strict=True))
    assert columns["laplacian_min"][1] == pytest.approx(-4 * 10000 / 65535)
    for name in ("gradient_max", "laplacian_max", "band_1_2_max", "quantile_100", "kurtosis"):
        assert columns[name][1] > columns[name][0]
    assert np.isfinite(columns["kurtosis"]).all()  # of a patch of one value, too


def test_only_aligned_pictures_give_a_thumbnail(features, patches):
    plain, aligned = (features.measure_patches(patches, aligned=value) for value in (False, True))
    np.testing.assert_array_equal(aligned[:, : plain.shape[1]], plain)
    fields = aligned[:, plain.shape[1] :].reshape(5, 8, 8)
    assert fields[3, 7, 2] == pytest.approx(patches[3, 28:32, 8:12].mean() / 65535)


def test_patches_without_unused_images_and_patches_alone_hold_the_same_pixels(peers_data, patches):
    index = np.array([[0, 4, 6], [3, 0, 0], [3, 16, 1]], np.int32)
    whole = PatchSet(tuple(patches), index, 16)
    kept = peers_data.keep_used(whole)
    assert len(kept.images) == 2
    np.testing.assert_array_equal(kept.gather(slice(None)), whole.gather(slice(None)))
    alone = peers_data.isolate_patches(whole.gather(slice(None)))
    assert [image.shape for image in alone.images] == [(16, 16)] * 3
    np.testing.assert_array_equal(alone.gather(slice(None)), whole.gather(slice(None)))


@pytest.fixture
def task(peers_data, tmp_path):
    """Twelve patients with a normal and an abnormal patch each; the first half of the abnormal are masses."""
    positive = np.tile([False, True], 12)
    unit = np.repeat([f"patient{number}" for number in range(12)], 2)
    groups = {"mass": positive & (np.arange(24) < 12)}
    np.save(tmp_path / "train.npy", np.zeros((7, 8, 8), np.uint16))
    return peers_data.PeerTask("toy", tmp_path, False, positive, groups, unit)


def test_a_difference_is_the_subject_minus_the_other(peers, task):
    better = task.positive + np.linspace(0, 0.5, 24)
    worse = np.random.default_rng(0).normal(size=24) + 0.3 * task.positive
    table = task.build_table({"padim": worse, "fusion": better}, 0)
    found = peers.compare_methods([table], ["fusion"], resamples=200)
    value, (low, high) = found["differences"]["fusion"]["padim"]["all"]
    assert found["auroc"]["fusion"]["all"][0] == 1
    assert value == pytest.approx(1 - found["auroc"]["padim"]["all"][0])
    assert 0 < low < value < high
    assert "fusion" not in found["differences"]["fusion"]
    assert set(found["differences"]["fusion"]["padim"]) == {"mass", "all"}


def test_the_best_method_stands_first_and_what_beats_the_subject_stands_first_among_the_others(peers):
    result = {
        "groups": ["all"],
        "auroc": {"padim": {"all": [0.7, [0.6, 0.8]]}, "fusion": {"all": [0.8, None]}, "ecod": {"all": [0.9, None]}},
        "differences": {"fusion": {"padim": {"all": [0.1, [0.05, 0.2]]}, "ecod": {"all": [-0.1, None]}}},
        "costs": {"ecod": {"fit_s": 1.25, "score_ms": 0.5, "peak_mb": 99.6, "note": "28 features"}},
        "failures": {"knn": "no module"},
    }
    lines = peers.build_tables("toy", result)
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| `")] == [
        *("`ecod`", "`fusion`", "`padim`"),
        *("`fusion` minus", "`ecod`", "`padim`"),
    ]
    assert "| `ecod` | PyOD | 0.900 | 1.2 | 0.5 | 100 | 28 features |" in lines
    assert "| `padim` | +0.100 (+0.050 to +0.200) |" in lines
    assert lines[-1] == "`knn` is not there: no module"


def test_a_method_that_fails_is_named_and_the_others_go_on(peers, task, monkeypatch):
    np.save(task.folder / "test.npy", np.arange(24 * 64).reshape(24, 8, 8).astype(np.uint16))
    options = argparse.Namespace(
        methods=[], limit=1, show=False, seed=0, resamples=50, peers_python=Path(sys.executable)
    )
    facts = '{"fit_s": 1, "score_s": 1, "peak_mb": 1, "note": "", "versions": {}}'
    np.savez(task.folder / "fusion.npz", scores=np.arange(24.0), facts=facts)
    monkeypatch.setattr(peers, "list_methods", lambda name: ("fusion", "no_such_detector"))
    found = peers.run_set("toy", [task], options)
    assert "no detector is called 'no_such_detector'" in found["failures"]["no_such_detector"]
    assert set(found["auroc"]) == {"fusion", "mean_brightness", "standard_deviation"}
    assert found["counts"] == [{"train": 7, "negative": 12, "positive": 12, "negative_units": 12, "positive_units": 12}]
