import numpy as np
import pytest

from unary.detectors.simulation import CalcificationConfig, add_calcifications, build_library, draw_calcification


@pytest.fixture(scope="module")
def library():
    return build_library(CalcificationConfig(), np.random.default_rng(0), count=200)


@pytest.mark.parametrize("shape", ["compact", "ring", "rod", "clump"])
def test_a_calcification_has_its_size_and_peak(shape):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        small, large = (draw_calcification(diameter, shape, rng) for diameter in (3.0, 12.0))
        assert small.max() == large.max() == 1
        assert (large > 0.4).sum() > 3 * (small > 0.4).sum()
        border = np.concatenate([large[0], large[-1], large[:, 0], large[:, -1]])
        assert border.max() < 0.4, "the template cuts the calcification off"


def test_a_compact_calcification_covers_its_disc():
    areas = [(draw_calcification(10.0, "compact", np.random.default_rng(seed)) > 0.4).sum() for seed in range(40)]
    assert 0.6 * 25 * np.pi < np.median(areas) < 1.3 * 25 * np.pi


def test_added_contrast_is_relative_to_the_noise_and_lies_in_the_target(library):
    config = library.config
    tissue = np.full((96, 96), 0.4, np.float32)
    peaks = []
    for seed in range(60):
        changed, target = add_calcifications(
            tissue, np.full((96, 96), 0.01, np.float32), library, np.random.default_rng(seed)
        )
        louder, _ = add_calcifications(
            tissue, np.full((96, 96), 0.02, np.float32), library, np.random.default_rng(seed)
        )
        assert np.allclose(louder - tissue, 2 * (changed - tissue), atol=1e-5)
        assert (changed >= tissue).all()
        if target.any():
            outside = (changed - tissue)[~target]
            peaks.append((changed - tissue).max() / 0.01)
            assert outside.max() < (changed - tissue).max()
    assert len(peaks) > 50
    assert config.faintest * 0.4 < min(peaks)
    assert max(peaks) < config.strongest * 4
    assert (tissue == np.float32(0.4)).all(), "the input must not be changed"


def test_equal_seeds_draw_equal_lesions(library):
    tissue, noise = np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32)
    one = add_calcifications(tissue, noise, library, np.random.default_rng(4))
    two = add_calcifications(tissue, noise, library, np.random.default_rng(4))
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="ascending"):
        CalcificationConfig(smallest_mm=2.0, largest_mm=1.0)
