import numpy as np
import pytest
from scipy import ndimage

from unary.detectors.laplacian import LaplacianConfig, _responses, fit_laplacian, pooled_responses
from unary.errors import TrainingError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE


def noise_patches(seed, count=4, size=64):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(count, size, size)), (0, 2, 2))
    return np.clip((0.4 + 0.2 * smooth) * FULL_SCALE, 0, FULL_SCALE).astype(np.uint16)


def as_set(patches):
    count, size, _ = patches.shape
    tall = patches.reshape(count * size, size)
    return build_patch_set(tall, grid_origins(tall.shape, GridConfig(size, size)), size_px=size)


def test_response_agrees_with_scipy():
    patches = noise_patches(0)
    config = LaplacianConfig(sigmas_px=(2.0,), neighbourhood_px=8.0)
    ours = _responses(patches.astype(np.float32) / np.float32(FULL_SCALE), config)[0][1]
    raw = -4 * ndimage.gaussian_laplace(patches[1] / FULL_SCALE, 2.0, mode="reflect")
    rms = np.sqrt(ndimage.gaussian_filter(raw**2, 8.0, mode="reflect"))
    assert np.corrcoef(ours.ravel(), (raw / (rms + 1e-4)).ravel())[0, 1] > 0.999
    assert np.abs(ours - raw / (rms + 1e-4)).max() < 0.05 * np.abs(ours).max()


def test_flat_tissue_and_brightness_do_not_matter():
    flat = np.full((2, 64, 64), 30000, np.uint16)
    assert np.abs(np.stack(_responses((flat / FULL_SCALE).astype(np.float32), LaplacianConfig()))).max() < 0.02
    darker = (noise_patches(1) // 2 + 5000).astype(np.uint16)
    one, other = (pooled_responses(p, LaplacianConfig()) for p in (noise_patches(1), darker))
    assert np.allclose(one, other, rtol=0.05)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_a_speck_is_found_where_it_lies(radius):
    normal = noise_patches(2, count=40)
    detector = fit_laplacian(as_set(normal), LaplacianConfig())
    rows, cols = np.ogrid[:64, :64]
    speck = normal[:1].copy()
    speck[0][(rows - 20) ** 2 + (cols - 41) ** 2 <= radius**2] = int(0.95 * FULL_SCALE)
    examination = detector.examine(speck)
    assert examination.scores[0] > detector.examine(normal).scores.max()
    peak = np.unravel_index(examination.maps[0].argmax(), (64, 64))
    assert np.hypot(peak[0] - 20, peak[1] - 41) <= radius  # somewhere on the speck
    dark = normal[:1].copy()
    dark[0][(rows - 20) ** 2 + (cols - 41) ** 2 <= radius**2] = 0
    assert detector.examine(dark).scores[0] < examination.scores[0] / 2


def test_batched_equals_one_by_one():
    normal = noise_patches(3, count=6)
    detector = fit_laplacian(as_set(normal), LaplacianConfig())
    single = [detector.examine(normal[k : k + 1]).scores[0] for k in range(6)]
    assert np.allclose(detector.examine(normal).scores, single, rtol=1e-5)


def test_too_few_or_blank_patches_are_refused():
    with pytest.raises(TrainingError, match="at least two"):
        fit_laplacian(as_set(noise_patches(0, count=1)), LaplacianConfig())
    with pytest.raises(TrainingError, match="blank"):
        fit_laplacian(as_set(np.zeros((3, 64, 64), np.uint16)), LaplacianConfig())


@pytest.mark.parametrize("wrong", [{"sigmas_px": ()}, {"sigmas_px": (0.0,)}, {"neighbourhood_px": 0}, {"strongest": 0}])
def test_configuration_is_checked(wrong):
    with pytest.raises(ValueError):
        LaplacianConfig(**wrong)
