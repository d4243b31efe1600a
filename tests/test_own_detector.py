"""A detector that the package does not know goes everywhere that its own go; nothing but this file is needed."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

import unary
from unary.cli.main import main
from unary.detectors.protocol import Detector, DetectorState, Examination
from unary.patches.grid import extract_patches


@dataclass(frozen=True)
class BrightestConfig:
    """Settings.

    Attributes
    ----------
    strongest
        How many of the brightest pixels of a patch are averaged.
    """

    strongest: int = 4


@dataclass(frozen=True, eq=False)
class Brightest:
    """The brightest pixels, in standard deviations above those of normal patches."""

    grid = "working"
    knowledge = "normals only"
    config: BrightestConfig = BrightestConfig()
    mean: float | None = None
    deviation: float | None = None

    def fit(self, normals, context):
        pooled = self._pool(normals.gather(slice(None)))
        return replace(self, mean=float(pooled.mean()), deviation=float(pooled.std()))

    def examine(self, view, origins, *, size_px, with_map=True):
        scores = (self._pool(extract_patches(view.pixels, origins, size_px=size_px)) - self.mean) / self.deviation
        found = (np.where(view.mask, view.pixels, np.nan) - self.mean) / self.deviation
        return Examination(scores, found.astype(np.float32) if with_map else None)

    def _pool(self, patches):
        return np.sort(patches.reshape(len(patches), -1), axis=1)[:, -self.config.strongest :].mean(axis=1)

    def get_state(self):
        return DetectorState({"strongest": self.config.strongest, "mean": self.mean, "deviation": self.deviation})

    @classmethod
    def from_state(cls, state):
        return cls(BrightestConfig(state.settings["strongest"]), state.settings["mean"], state.settings["deviation"])


NAME = f"{__name__}:Brightest"


@pytest.fixture(scope="module")
def parts(phantoms):
    return unary.split_manifest(phantoms, 0.4, 0)


@pytest.fixture(scope="module")
def model(parts):
    return unary.fit(parts[0], detector=Brightest(BrightestConfig(strongest=6)), progress=False)


def test_it_is_a_detector():
    assert isinstance(Brightest(), Detector)


def test_it_is_fitted_saved_loaded_scored_and_detected_with(model, parts, tmp_path):
    assert model.name == NAME
    assert model.preparation.working_spacing_mm == 0.14
    model.save(tmp_path / "model")
    again = unary.read_model(tmp_path / "model")
    assert isinstance(again.detector, Brightest)
    assert again.detector.config.strongest == 6
    path = parts[1].rows[-1].path
    one, other = unary.score(model, path), unary.score(again, unary.read_image(path))
    assert np.array_equal(one.scores, other.scores)
    assert np.array_equal(one.anomaly_map, other.anomaly_map, equal_nan=True)
    assert unary.detect(again, path).image_score == one.image_score


def test_it_is_calibrated_and_evaluated(model, parts):
    assert unary.calibrate_model(model, parts[1].select(tuple(r for r in parts[1].rows if r.label == "negative")))
    evaluation = unary.evaluate(model, parts[1], progress=False)
    assert set(evaluation.images.scores) >= {NAME, "laplacian"}
    assert np.isfinite(evaluation.patches.scores[NAME]).all()


def test_it_takes_part_in_the_bench(phantoms, tmp_path):
    result = unary.run_bench(
        phantoms, [Brightest(), "laplacian"], tmp_path, unary.BenchConfig(folds=2, resamples=20), progress=False
    )
    assert not result.failures
    assert len(result.metrics) == 2


def test_it_is_an_estimator_too():
    patches = np.random.default_rng(0).normal(100, 10, (40, 16, 16))
    estimator = unary.OneClassPatchDetector(Brightest()).fit(patches)
    patches[0, 3:6, 3:6] += 90
    assert estimator.predict(patches[:1]) == [-1]


def test_the_command_line_finds_it_by_its_place(parts, tmp_path, capsys):
    unary.write_manifest(parts[0], tmp_path / "normals.csv")
    unary.write_manifest(parts[1], tmp_path / "others.csv")
    folder = tmp_path / "model"
    fitted = main(["fit", str(tmp_path / "normals.csv"), "--detector", NAME, "--strongest", "9", "--out", str(folder)])
    assert not fitted
    assert unary.read_model(folder).detector.config.strongest == 9
    path = parts[1].rows[-1].path
    assert not main(["score", str(folder), str(path), "--out", str(tmp_path / "scores")])
    assert not main(["detect", str(folder), str(path), "--out", str(tmp_path / "found")])
    assert not main(["evaluate", str(folder), str(tmp_path / "others.csv"), "--out", str(tmp_path / "evaluation")])
