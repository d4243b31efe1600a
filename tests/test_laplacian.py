import ctypes
import dataclasses
import json
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors import laplacian_native
from unary.detectors.filters import bend_kernel, gaussian_kernel
from unary.detectors.laplacian import (
    COARSE_LAPLACIAN,
    Laplacian,
    LaplacianConfig,
    compute_responses,
    pool_plainly,
    pool_values,
)
from unary.detectors.laplacian_native import compile_filters
from unary.detectors.native import compiler
from unary.detectors.protocol import View
from unary.detectors.scoring import count_weights, score_patches
from unary.detectors.windows import to_intensity
from unary.errors import CompilerError, DetectorError, TrainingError
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


def pool_precisely(patches, config):
    """The definition in float64, by scipy's loops and a whole sort."""
    values, pooled = patches / (FULL_SCALE if patches.dtype == np.uint16 else 1.0), []
    for sigma in config.sigmas_px:
        across, along = (
            ndimage.correlate1d(ndimage.correlate1d(values, bend_kernel(sigma), axis=a), gaussian_kernel(sigma), axis=b)
            for a, b in ((1, 2), (2, 1))
        )
        response = -(sigma**2) * (across + along)
        squares, window = np.square(response), gaussian_kernel(config.neighbourhood_px)
        local = ndimage.correlate1d(ndimage.correlate1d(squares, window, axis=1), window, axis=2)
        answers = np.sort((response / (np.sqrt(local) + 1e-4)).reshape(len(patches), -1), axis=1)
        pooled.append(answers[:, -config.strongest :].mean(axis=1))
    return np.stack(pooled, axis=1)


def all_kinds(size):
    """Textured patches; at the rim of the tissue; with a bright edge beside quiet tissue; a speck in quiet tissue."""
    textured = noise_patches(6, count=5, size=size)
    textured[1, :, size // 3 :] = 0
    textured[2] = textured[2] // 100 + 20_000
    textured[2, : size // 8] += 30_000
    textured[3] = textured[3] // 100 + 20_000
    textured[3, size // 2, size // 3] = FULL_SCALE
    textured[4, size // 2 :, size // 2 :] = 0
    return textured


def compile_or_skip(size, config):
    pooling = compile_filters(size, config.sigmas_px, config.neighbourhood_px, config.strongest, floor=1e-4)
    if pooling is None:
        pytest.skip("nothing to test without compiled code")
    return pooling


CONFIGS = [
    (128, LaplacianConfig()),
    (64, COARSE_LAPLACIAN),
    (64, LaplacianConfig((6.0, 0.7, 1.5, 2.0), 40.0, 64)),  # wider than the patch, scales in any order
    (32, LaplacianConfig((1.0, 9.0), 2.0, 1)),
]


@pytest.mark.parametrize(("size", "config"), CONFIGS)
def test_the_scores_are_those_of_the_definition(size, config):
    patches = all_kinds(size)
    expected, plain = pool_precisely(patches, config), pool_plainly(patches, config)
    found = compile_or_skip(size, config).pool(patches)
    error, usual = np.abs(found / expected - 1), np.abs(plain / expected - 1)
    assert error.max() < max(2e-6, 1.5 * usual.max())  # the rounding of float32, which numpy's has as well
    assert np.median(error) < 1e-6
    values = compile_or_skip(size, config).pool((patches / np.float32(FULL_SCALE)).astype(np.float32))
    assert np.allclose(values, expected, rtol=1e-4)
    assert np.array_equal(compile_or_skip(size, config).pool(patches[::-1])[::-1], found)  # whatever comes before it


@pytest.mark.parametrize(("size", "config"), CONFIGS)
def test_maps_are_those_of_numpy(size, config, monkeypatch):
    patches = all_kinds(size)
    compile_or_skip(size, config)
    detector = Laplacian(config).fit(as_set(patches), QUIET)
    found = detector.examine_patches(patches)
    monkeypatch.setattr("unary.detectors.laplacian.compile_filters", lambda *_, **__: None)
    plain = detector.examine_patches(patches)
    assert np.allclose(found.maps, plain.maps, rtol=1e-3, atol=1e-3)  # in quiet tissue float32 rounds as much
    assert np.median(np.abs(found.maps - plain.maps)) < 1e-5
    assert np.allclose(found.scores, plain.scores, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_told_in_c_is_left_to_numpy():
    config, values = LaplacianConfig(), to_intensity(noise_patches(7, count=4))
    pooling = compile_or_skip(64, config)
    values[0, 3, 3], values[1, 5, 5] = np.nan, np.inf
    values[2] = 1.0
    values[2, 30, 30] = 0.0  # a dark speck: next to nothing is brighter than what surrounds it
    told = ~np.isnan(pooling.pool(values)).any(axis=1)
    assert told.tolist() == [False, False, told[2], True]
    with np.errstate(invalid="ignore"):
        pooled = pool_values(values, config)
        assert np.allclose(pooled, pool_plainly(values, config), rtol=1e-4, equal_nan=True)
    flat = np.full((1, 64, 64), 30_000, np.uint16)
    assert (pooling.pool(flat) == 0).all()
    with pytest.raises(ValueError, match=r"need \(n, 64, 64\)"):
        pooling.pool(noise_patches(0, size=32))


@pytest.mark.parametrize(
    ("size", "config"),
    [
        (40, LaplacianConfig()),  # no multiple of the vectors
        (64, LaplacianConfig(neighbourhood_px=0.5)),  # narrower than any lattice of nodes
        (64, LaplacianConfig(strongest=100)),
        (64, LaplacianConfig(sigmas_px=tuple(0.5 + 0.1 * n for n in range(17)))),
    ],
)
def test_other_filter_banks_are_numpys(size, config):
    assert compile_filters(size, config.sigmas_px, config.neighbourhood_px, config.strongest, floor=1e-4) is None
    patches = noise_patches(8, count=2, size=size)
    assert np.array_equal(pool_values(patches, config), pool_plainly(patches, config))
    if config.strongest < 100:
        assert np.allclose(pool_values(patches, config), pool_precisely(patches, config), rtol=1e-4)


def test_without_a_compiler_numpy_pools_and_says_so(monkeypatch, caplog):
    def fail(_):
        raise CompilerError("no C compiler was found")

    monkeypatch.setattr(laplacian_native, "load_library", fail)
    config = LaplacianConfig(sigmas_px=(1.25, 2.25))  # one that no other test has compiled
    patches = noise_patches(9, count=2)
    assert np.array_equal(pool_values(patches, config), pool_plainly(patches, config))
    assert "no C compiler" in caplog.text
    compile_filters.cache_clear()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the options are those of x86")
@pytest.mark.parametrize("option", ["-mavx", "-mno-avx"])
def test_shorter_vectors_pool_the_same(option, tmp_path, monkeypatch):
    command = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if command is None:
        pytest.skip("there is no C compiler")
    options = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-fno-math-errno", "-march=x86-64", option]
    source = Path(compiler.__file__).with_name("laplacian.c")
    subprocess.run([command, *options, "-o", tmp_path / "short.so", source], check=True)
    monkeypatch.setattr(laplacian_native, "load_library", lambda _: ctypes.CDLL(str(tmp_path / "short.so")))
    patches = all_kinds(64)
    compile_filters.cache_clear()
    found = compile_or_skip(64, COARSE_LAPLACIAN).pool(patches)
    compile_filters.cache_clear()
    assert np.allclose(found, pool_precisely(patches, COARSE_LAPLACIAN), rtol=1e-5)


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
