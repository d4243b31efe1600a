import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors.laplacian import Laplacian, LaplacianConfig, compute_responses, pool_values
from unary.detectors.protocol import View
from unary.detectors.scoring import count_weights, score_patches
from unary.detectors.windows import to_intensity
from unary.errors import DetectorError, TrainingError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set
from unary.patches.preparation import FULL_SCALE
from unary.training.context import FitContext

QUIET = FitContext(progress=False)


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
    ours = compute_responses(to_intensity(patches), config)[0][1]
    raw = -4 * ndimage.gaussian_laplace(patches[1] / FULL_SCALE, 2.0, mode="reflect")
    rms = np.sqrt(ndimage.gaussian_filter(raw**2, 8.0, mode="reflect"))
    assert np.corrcoef(ours.ravel(), (raw / (rms + 1e-4)).ravel())[0, 1] > 0.999
    assert np.abs(ours - raw / (rms + 1e-4)).max() < 0.05 * np.abs(ours).max()


def test_flat_tissue_and_brightness_do_not_matter():
    flat = np.full((2, 64, 64), 30000, np.uint16)
    assert np.abs(np.stack(compute_responses(to_intensity(flat), LaplacianConfig()))).max() < 0.02
    darker = (noise_patches(1) // 2 + 5000).astype(np.uint16)
    one, other = (pool_values(to_intensity(p), LaplacianConfig()) for p in (noise_patches(1), darker))
    assert np.allclose(one, other, rtol=0.05)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_a_speck_is_found_where_it_lies(radius):
    normal = noise_patches(2, count=40)
    detector = Laplacian().fit(as_set(normal), QUIET)
    rows, cols = np.ogrid[:64, :64]
    speck = normal[:1].copy()
    speck[0][(rows - 20) ** 2 + (cols - 41) ** 2 <= radius**2] = int(0.95 * FULL_SCALE)
    examination = detector.examine_patches(speck)
    assert examination.scores[0] > detector.examine_patches(normal).scores.max()
    peak = np.unravel_index(examination.maps[0].argmax(), (64, 64))
    assert np.hypot(peak[0] - 20, peak[1] - 41) <= radius  # somewhere on the speck
    dark = normal[:1].copy()
    dark[0][(rows - 20) ** 2 + (cols - 41) ** 2 <= radius**2] = 0
    assert detector.examine_patches(dark).scores[0] < examination.scores[0] / 2


def test_batched_equals_one_by_one():
    normal = noise_patches(3, count=6)
    detector = Laplacian().fit(as_set(normal), QUIET)
    single = [detector.examine_patches(normal[k : k + 1]).scores[0] for k in range(6)]
    assert np.allclose(detector.examine_patches(normal).scores, single, rtol=1e-5)


def test_too_few_or_blank_patches_are_refused():
    with pytest.raises(TrainingError, match="at least two"):
        Laplacian().fit(as_set(noise_patches(0, count=1)), QUIET)
    with pytest.raises(TrainingError, match="blank"):
        Laplacian().fit(as_set(np.zeros((3, 64, 64), np.uint16)), QUIET)


@pytest.mark.parametrize("wrong", [{"sigmas_px": ()}, {"sigmas_px": (0.0,)}, {"neighbourhood_px": 0}, {"strongest": 0}])
def test_configuration_is_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LaplacianConfig(**wrong)


def test_fit_and_scores_do_not_depend_on_threads():
    normal, found = as_set(noise_patches(4, count=150)), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            detector = Laplacian().fit(normal, QUIET)
            found.append((detector.means, detector.deviations, score_patches(detector, normal).tolist()))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_the_state_survives_json_bit_for_bit():
    normal = as_set(noise_patches(5, count=10))
    detector = Laplacian(LaplacianConfig((1.0, 2.0), 8.0, 3)).fit(normal, QUIET)
    state = detector.get_state()
    again = Laplacian.from_state(dataclasses.replace(state, settings=json.loads(json.dumps(state.settings))))
    assert (again.config, again.means, again.deviations) == (detector.config, detector.means, detector.deviations)
    assert np.array_equal(score_patches(again, normal), score_patches(detector, normal))
    assert count_weights(detector) == 4
    assert len(repr(detector)) < 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size_px": "64"}, "size_px"),
        ({"config": {"sigmas_px": [1.0, 2.0], "neighbourhood_px": 8.0}}, "strongest"),
        ({"config": {"sigmas_px": [1.0, 2.0], "neighbourhood_px": "8", "strongest": 3}}, "neighbourhood_px"),
        ({"config": {"sigmas_px": [1.0], "neighbourhood_px": 8.0, "strongest": 3}}, "means"),
    ],
)
def test_a_damaged_state_is_refused_by_field(change, said):
    state = Laplacian(LaplacianConfig((1.0, 2.0), 8.0, 3)).fit(as_set(noise_patches(5)), QUIET).get_state()
    with pytest.raises(ValueError, match=said):
        Laplacian.from_state(dataclasses.replace(state, settings={**state.settings, **change}))
    for deviations in (np.array([1.0, np.nan]), np.array([1.0, 0.0]), np.ones(3)):
        with pytest.raises(ValueError, match="deviations"):
            Laplacian.from_state(dataclasses.replace(state, tensors={**state.tensors, "deviations": deviations}))


def test_what_it_cannot_do_is_said():
    view, origins = View(noise_patches(0)[0], np.ones((64, 64), bool)), np.zeros((1, 2), np.int32)
    with pytest.raises(DetectorError, match="fit it first"):
        Laplacian().examine(view, origins, size_px=64)
    with pytest.raises(DetectorError, match="fit it first"):
        Laplacian().get_state()
    with pytest.raises(DetectorError, match="patches of 64 px and cannot examine those of 32 px"):
        Laplacian().fit(as_set(noise_patches(0)), QUIET).examine(view, origins, size_px=32)
