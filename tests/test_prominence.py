import numpy as np
import pytest

from unary.detectors.prominence import Prominence, ProminenceConfig
from unary.detectors.protocol import View

NOWHERE = np.zeros((0, 2), np.int32)


def make_tissue(seed, shape=(256, 192)):
    """Noisy tissue on the left three quarters, nothing on the right."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros(shape, np.uint16)
    width = shape[1] * 3 // 4
    pixels[:, :width] = np.clip(rng.normal(26000, 800, (shape[0], width)), 1, 65535)
    return pixels


def examine(pixels, region_px=8.0, origins=NOWHERE):
    return Prominence(ProminenceConfig(region_px)).examine(View(pixels, pixels > 0), origins, size_px=64)


def test_regions_are_ranked_within_their_own_tissue():
    pixels = make_tissue(2)
    pixels[64:128, 32:96] += 6000
    standing = examine(pixels).anomaly_map
    inside = np.isfinite(standing)
    assert standing[96, 64] > 2
    assert abs(np.median(standing[inside])) < 0.5
    brighter = np.where(pixels > 0, pixels // 2 + 9000, 0).astype(np.uint16)
    assert np.allclose(examine(brighter).anomaly_map[inside], standing[inside], atol=0.05), "exposure must not matter"


def test_a_patch_scores_its_mean():
    pixels = make_tissue(3)
    pixels[64:128, 32:96] += 6000
    examined = examine(pixels, origins=np.array([[64, 32], [170, 20]], np.int32))
    assert examined.scores[0] == pytest.approx(examined.anomaly_map[64:128, 32:96].mean(), rel=1e-5)
    assert examined.scores[0] > examined.scores[1]


def test_tissue_that_is_all_alike_stands_out_nowhere():
    flat = np.full((64, 64), 20000, np.uint16)
    assert np.abs(examine(flat, 32.0).anomaly_map).max() < 10
    assert not examine(np.zeros((64, 64), np.uint16), 32.0, np.array([[0, 0]], np.int32)).scores.any()


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="region_px"):
        ProminenceConfig(wrong)
