"""What every detector of the list must do. A new one is tested by being listed.

Learning is cut short: what is asked here does not depend on its being good, but for specks, where some steps more are
taken.
"""

import contextlib
import dataclasses
import functools
import json
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors import DETECTORS, check_detector, find_detector_class, name_of
from unary.detectors.denoising import DenoisingConfig
from unary.detectors.protocol import Detector, DetectorState, Grid, Knowledge, View
from unary.detectors.scoring import score_patches
from unary.detectors.segmentation import SegmentationConfig
from unary.errors import DetectorError
from unary.patches.grid import GridConfig, tissue_origins
from unary.patches.patch_set import build_patch_set, join_patch_sets
from unary.patches.preparation import PreparationConfig, prepare_image
from unary.records import Image
from unary.training.context import FitContext
from unary.training.engine import StepsConfig

pytestmark = pytest.mark.usefixtures("few_templates")

SIZE = 64
LEARNED = {  # to have learned what a speck is; for others the first steps are enough
    "segmentation": SegmentationConfig(widths=(8,), training=StepsConfig(400, 8, 1e-2)),
    "denoising": DenoisingConfig(widths=(8, 16), training=StepsConfig(150, 4, 5e-3)),
}
NOTHING_DRAWN = ("clusters", "nearest_neighbour")  # unless there are more pictures than it keeps
NO_SPECKS = ("prominence", "mass", "nearest_neighbour")  # which look for regions

WITHIN_FUSION = ("clusters", "blind_spot", "mass", "prominence", "fusion_prior")  # the last has what `fusion` has
every = pytest.mark.parametrize("name", DETECTORS)


def shorten(config, steps):
    """The same with so few steps, wherever it is told how many."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("steps", "epochs"):
            config = dataclasses.replace(config, **{field.name: steps})
        elif field.name == "batch_size":
            config = dataclasses.replace(config, batch_size=8)
        elif dataclasses.is_dataclass(value):
            with contextlib.suppress(ValueError):  # settings of what takes no part
                config = dataclasses.replace(config, **{field.name: shorten(value, steps)})
    return config


def make_view(seed, shape=(192, 160)):
    """A disc of textured tissue, nothing around it."""
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 6) * 50000 + rng.normal(size=shape) * 500
    row, col = np.mgrid[: shape[0], : shape[1]]
    mask = np.hypot((row / shape[0] - 0.5) / 0.5, (col / shape[1] - 0.4) / 0.5) < 1
    pixels = np.where(mask, np.clip(26000 + texture, 1, 65535), 0).astype(np.uint16)
    return View(pixels, mask)


def find_origins(view, stride=16):
    return tissue_origins(view.mask, GridConfig(SIZE, stride, 0.5))


@functools.cache
def gather_normals():
    views = [make_view(seed) for seed in range(3)]
    return join_patch_sets([build_patch_set(view.pixels, find_origins(view), size_px=SIZE) for view in views])


@functools.cache
def fit_detector(name, *, config=None, seed=0, threads=1):
    built = find_detector_class(name)
    with using(threads):
        return built(config or shorten(built().config, 3)).fit(gather_normals(), FitContext(seed=seed, progress=False))


@contextlib.contextmanager
def using(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def examine(detector, view, origins=None, **options):
    return detector.examine(view, find_origins(view) if origins is None else origins, size_px=SIZE, **options)


def assert_same_state(one, other):
    assert json.dumps(one.settings) == json.dumps(other.settings)
    assert one.tensors.keys() == other.tensors.keys()
    assert all(np.array_equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def assert_same_answer(one, other):
    assert np.array_equal(one.scores, other.scores)
    assert np.array_equal(one.anomaly_map, other.anomaly_map, equal_nan=True)


@every
def test_the_default_constructs_and_says_what_it_is(name):
    detector = find_detector_class(name)()
    check_detector(detector)
    assert isinstance(detector, Detector)
    assert detector.grid in get_args(Grid)
    assert detector.knowledge in get_args(Knowledge)
    assert type(detector)(type(detector.config)()) is not None
    assert name_of(detector) == name
    assert type(detector).__doc__.splitlines()[0].endswith(".")
    assert "\n" not in repr(detector)


@every
def test_fitting_leaves_the_original_as_it_is(name):
    built = find_detector_class(name)
    if len(dataclasses.fields(built)) == 1:
        pytest.skip("there is nothing to fit")
    view = make_view(5)
    detector = built(shorten(built().config, 3))
    detector.fit(gather_normals(), FitContext(progress=False))
    with pytest.raises(DetectorError, match="fit it first"):
        examine(detector, view)
    with pytest.raises(DetectorError, match="fit it first"):
        detector.get_state()


@every
def test_patches_asked_for_together_or_one_by_one_score_the_same(name):
    detector, view = fit_detector(name), make_view(5)
    origins = find_origins(view, 24)
    together = examine(detector, view, origins)
    alone = [examine(detector, view, origins[k : k + 1], with_map=False) for k in range(len(origins))]
    assert all(one.anomaly_map is None for one in alone)
    # Equal but for the last digit, since torch rounds otherwise in batches of another size.
    assert np.allclose(np.concatenate([one.scores for one in alone]), together.scores, rtol=1e-5, atol=1e-6)
    backwards = examine(detector, view, origins[::-1])
    assert np.allclose(backwards.scores[::-1], together.scores, rtol=1e-5, atol=1e-6)
    assert np.array_equal(backwards.anomaly_map, together.anomaly_map, equal_nan=True)
    nothing = examine(detector, view, origins[:0])
    assert nothing.scores.shape == (0,)
    assert np.array_equal(nothing.anomaly_map, together.anomaly_map, equal_nan=True)


@every
def test_scores_of_a_set_are_those_of_its_images(name):
    normals = gather_normals()
    detector = fit_detector(name)
    scores = score_patches(detector, normals)
    for pixels, mask, origins, which in normals.views():
        assert np.array_equal(scores[which], examine(detector, View(pixels, mask), origins).scores)


@every
def test_a_state_survives_json_and_arrays_bit_for_bit(name):
    detector, view = fit_detector(name), make_view(5)
    state = detector.get_state()
    assert all(isinstance(tensor, np.ndarray) for tensor in state.tensors.values())
    tensors = {name: np.frombuffer(t.tobytes(), t.dtype).reshape(t.shape) for name, t in state.tensors.items()}
    read = type(detector).from_state(DetectorState(json.loads(json.dumps(state.settings)), tensors))
    assert read.config == detector.config
    assert_same_state(read.get_state(), state)
    assert_same_answer(examine(read, view), examine(detector, view))


@every
def test_a_state_that_lacks_something_is_refused(name):
    state = fit_detector(name).get_state()
    refused = (KeyError, TypeError, ValueError)
    for key in state.settings:
        less = {other: value for other, value in state.settings.items() if other != key}
        with pytest.raises(refused):
            find_detector_class(name).from_state(DetectorState(less, state.tensors))
    for key in list(state.tensors)[:3]:
        less = {other: value for other, value in state.tensors.items() if other != key}
        with pytest.raises(refused):
            find_detector_class(name).from_state(DetectorState(state.settings, less))


@every
def test_threads_change_nothing_and_seeds_repeat_and_differ(name):
    one, two, three, other = (
        fit_detector(name, seed=seed, threads=threads) for seed, threads in ((1, 1), (1, 2), (1, 3), (2, 1))
    )
    assert_same_state(one.get_state(), two.get_state())
    assert_same_state(one.get_state(), three.get_state())
    if one.knowledge != "no learning" and name not in NOTHING_DRAWN:
        assert any((one.get_state().tensors[key] != tensor).any() for key, tensor in other.get_state().tensors.items())
    view = make_view(5, (330, 210))
    expected = examine(one, view)
    for threads in (2, 3):
        with using(threads):
            assert_same_answer(examine(one, view), expected)


@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in NO_SPECKS])
def test_planted_specks_raise_the_score(name):
    detector, before = fit_detector(name, config=LEARNED.get(name)), make_view(5)
    pixels = before.pixels.copy()
    for row, col in ((90, 60), (96, 66), (88, 70)):
        pixels[row : row + 2, col : col + 2] = np.minimum(pixels[row : row + 2, col : col + 2] + 16000.0, 65535)
    origins = find_origins(before)
    held = ((origins <= (88, 60)) & (origins + SIZE >= (98, 72))).all(axis=1)
    assert held.sum() > 3
    calm, found = (examine(detector, view, origins) for view in (before, View(pixels, before.mask)))
    assert (found.scores[held] > calm.scores[held]).all()


@every
def test_nothing_outside_the_mask_counts(name):
    rng = np.random.default_rng(0)
    view = make_view(5)
    plain = Image.from_array(view.pixels, padding=~view.mask)
    noisy = np.where(view.mask, view.pixels, rng.integers(0, 65535, view.shape)).astype(np.uint16)
    answers = []
    for image in (plain, Image.from_array(noisy, padding=~view.mask)):
        prepared = prepare_image(image, PreparationConfig(mask="none"))
        answers.append(examine(fit_detector(name), View(prepared.pixels, prepared.mask)))
    assert_same_answer(*answers)
    seen = np.isfinite(answers[0].anomaly_map)
    assert seen.any()
    assert not seen[~view.mask].any()
    assert answers[0].anomaly_map.dtype == np.float32
    assert answers[0].scores.dtype == np.float64


@every
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (70, 5), (100, 90)])
@pytest.mark.parametrize("kind", ["constant", "textured", "masked out"])
def test_odd_images_are_answered(name, shape, kind):
    mask = np.full(shape, kind != "masked out")
    values = np.random.default_rng(0).integers(1, 65535, shape) if kind == "textured" else np.full(shape, 20000)
    origins = np.array([[0, 0]], np.int32)
    examined = examine(fit_detector(name), View(np.where(mask, values, 0).astype(np.uint16), mask), origins)
    assert np.isfinite(examined.scores).all()
    assert examined.anomaly_map.shape == shape
    assert np.array_equal(np.isfinite(examined.anomaly_map), mask)


@every
def test_an_empty_view_is_answered(name):
    view = View(np.zeros((0, 0), np.uint16), np.zeros((0, 0), bool))
    examined = examine(fit_detector(name), view, np.zeros((0, 2), np.int32))
    assert examined.scores.shape == (0,)
    assert examined.anomaly_map.shape == (0, 0)


@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in WITHIN_FUSION])
def test_a_hundred_megapixels(name):
    """With little tissue in them: that more takes memory for some strips only, benchmarks show."""
    tissue = make_view(5)
    view = View(np.pad(tissue.pixels, 20), np.pad(tissue.mask, 20))
    pixels, mask = np.zeros((10240, 9800), np.uint16), np.zeros((10240, 9800), bool)
    place = (slice(6000, 6000 + view.shape[0]), slice(9000, 9000 + view.shape[1]))
    pixels[place], mask[place] = view.pixels, view.mask
    detector, origins = fit_detector(name), np.array([[80, 50]], np.int32)
    moved = origins + np.array([6000, 9000], np.int32)
    examined, expected = examine(detector, View(pixels, mask), moved), examine(detector, view, origins)
    assert np.allclose(examined.scores, expected.scores, rtol=0.01, atol=0.01)
    seen = np.isfinite(examined.anomaly_map)
    assert np.array_equal(seen[place], np.isfinite(expected.anomaly_map))
    assert seen.sum() == seen[place].sum()
