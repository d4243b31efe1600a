import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from unary.detectors.coarse import STEP, Coarse, shrink_tissue
from unary.detectors.mass import Mass, MassConfig, Tail, measure_regions
from unary.detectors.protocol import DetectorState, View
from unary.errors import DetectorError, TrainingError
from unary.patches.grid import GridConfig, tissue_origins
from unary.patches.patch_set import PatchSet, build_patch_set, join_patch_sets
from unary.training.context import FitContext

SMALL = MassConfig((32.0, 48.0))
NOWHERE = np.zeros((0, 2), np.int32)
SHAPE = (640, 400)


def make_breast(seed, *, at=None, radius=40, contrast=0.12, shape=SHAPE):
    """A half disc of textured tissue at the left border, with a mass at a place, intensity and mask."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[: shape[0], : shape[1]]
    mask = np.hypot((row / shape[0] - 0.5) / 0.48, col / shape[1] / 0.9) < 1
    texture = ndimage.zoom(ndimage.gaussian_filter(rng.normal(size=(shape[0] // 8, shape[1] // 8)), 1.2), 8, order=1)
    bright = 0.4 + 0.03 * texture / texture.std() + rng.normal(size=shape) * 0.01
    if at is not None:
        bright += contrast * np.sqrt(np.clip(1 - np.square(np.hypot(row - at[0], col - at[1]) / radius), 0, None))
    return bright, mask


def make_view(bright, mask):
    return View(np.where(mask, np.clip(bright * 65535, 1, 65535), 0).astype(np.uint16), mask)


def find_origins(view, stride=32):
    return tissue_origins(view.mask, GridConfig(64, stride, 0.5))


def gather(seeds):
    views = [make_view(*make_breast(seed)) for seed in seeds]
    return join_patch_sets([build_patch_set(view.pixels, find_origins(view), size_px=64) for view in views])


@pytest.fixture(scope="module")
def fitted():
    return Mass(SMALL).fit(gather(range(4)), FitContext(progress=False))


def examine(detector, view, origins=NOWHERE, **options):
    return detector.examine(view, origins, size_px=64, **options)


def map_of(detector, bright, mask):
    return examine(detector, make_view(bright, mask)).anomaly_map


@pytest.mark.parametrize("radius", [32, 48])
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_planted_mass_is_the_highest_place(fitted, seed, radius):
    at = (300, 150)
    bright, mask = make_breast(seed, at=at, radius=radius)
    found = map_of(fitted, bright, mask)
    row, col = np.unravel_index(np.nanargmax(found), found.shape)
    assert np.hypot(row - at[0], col - at[1]) < radius / 2
    normal = map_of(fitted, *make_breast(seed))
    assert np.nanmax(found) > np.nanmax(normal) + 3, "by several times what normal tissue exceeds its 99 % by"


def test_a_bright_band_is_no_mass(fitted):
    bright, mask = make_breast(21)
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]]
    band = 0.12 * (np.abs((row - 300) - 0.5 * (col - 150)) < 45)
    mass, _ = make_breast(21, at=(300, 150))
    own = (slice(250, 350), slice(100, 200))
    assert np.nanmax(map_of(fitted, mass, mask)[own]) > np.nanmax(map_of(fitted, bright + band, mask)[own]) + 3


def test_patches_score_the_mean_of_their_strongest_pixels(fitted):
    view = make_view(*make_breast(14, at=(300, 150)))
    origins = find_origins(view)
    examined = examine(fitted, view, origins)
    whole = np.nan_to_num(examined.anomaly_map, nan=-np.inf)
    for (row, col), score in zip(origins.tolist(), examined.scores.tolist(), strict=True):
        own = whole[row : row + 64, col : col + 64].ravel()
        if np.isfinite(own).all():
            assert score == pytest.approx(np.sort(own)[-SMALL.strongest :].mean(), rel=1e-6)
    best = origins[examined.scores.argmax()]
    assert np.hypot(*(best + 32 - (300, 150))) < 40
    assert np.array_equal(examine(fitted, view, origins, with_map=False).scores, examined.scores)


def test_exposure_and_contrast_of_the_whole_image_do_not_matter(fitted):
    bright, mask = make_breast(15, at=(300, 150))
    before = map_of(fitted, bright, mask)
    for changed in (bright + 0.2, 0.6 * bright):
        assert np.allclose(map_of(fitted, changed, mask), before, atol=0.1, equal_nan=True)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirrored_image_gives_the_mirrored_map(fitted, axis):
    bright, mask = make_breast(16, at=(280, 140))
    before = map_of(fitted, bright, mask)
    after = map_of(fitted, np.flip(bright, axis), np.flip(mask, axis))
    assert np.allclose(np.flip(after, axis), before, atol=0.02, equal_nan=True)


def test_the_muscle_is_left_out_of_the_search():
    bright, mask = make_breast(17)
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]]
    mask |= (row < 320) & (col < 300)
    bright = bright + 0.2 * np.exp(-0.5 * (np.square((row - 380) / 120) + np.square((col - 150) / 90)))
    bright += 0.25 * (row / 330 + col / 170 < 1)
    cells = [block.reshape(80, STEP, 50, STEP).mean(axis=(1, 3)) for block in (bright * mask, mask.astype(float))]
    inside = cells[1] >= 0.5
    coarse = Coarse(np.where(inside, cells[0] / np.maximum(cells[1], 0.1), 0).astype(np.float32), inside)
    rise = measure_regions(coarse, SMALL)[0]
    assert (rise[2:12, 2:6] == -9).all()
    assert (measure_regions(coarse, dataclasses.replace(SMALL, muscle=False))[0][8:12, 2:6] > -9).all()


def test_corners_where_few_directions_are_tissue_say_nothing():
    rng = np.random.default_rng(18)
    coarse = Coarse(rng.random((40, 40)).astype(np.float32), np.ones((40, 40), bool))
    rise, convergence = measure_regions(coarse, MassConfig((40.0,), muscle=False))
    assert rise[0, 0] == rise[-1, -1] == -9
    assert (rise[12:28, :] > -9).all(), "at a straight border five directions are left"
    assert (convergence > -2).all()


def test_gradients_towards_a_centre_converge_fully():
    row, col = np.mgrid[:60, :60]
    cone = (1 - np.hypot(row - 30, col - 30) / 60).astype(np.float32)
    _, convergence = measure_regions(Coarse(cone, np.ones((60, 60), bool)), MassConfig((48.0,), muscle=False))
    assert np.unravel_index(convergence.argmax(), convergence.shape) == (30, 30)
    assert convergence[30, 30] == pytest.approx(1, abs=0.03)
    _, diverging = measure_regions(Coarse(1 - cone, np.ones((60, 60), bool)), MassConfig((48.0,), muscle=False))
    assert diverging[30, 30] == pytest.approx(-1, abs=0.03)


def test_a_large_image_read_in_strips_is_answered_alike(fitted, monkeypatch):
    bright, mask = make_breast(19, at=(300, 150))
    before = map_of(fitted, bright, mask)
    monkeypatch.setattr("unary.detectors.tissue._STRIP_PX", 64 * SHAPE[1])
    view = make_view(bright, mask)
    assert view.tissue.strip_rows == 64
    assert np.allclose(examine(fitted, view).anomaly_map, before, atol=0.02, equal_nan=True)


def test_a_state_gives_the_same_detector_bit_for_bit(fitted):
    state = fitted.get_state()
    again = Mass.from_state(DetectorState(json.loads(json.dumps(state.settings)), dict(state.tensors)))
    view = make_view(*make_breast(20, at=(300, 150)))
    one, other = (examine(detector, view, find_origins(view)) for detector in (fitted, again))
    assert np.array_equal(one.anomaly_map, other.anomaly_map, equal_nan=True)
    assert np.array_equal(one.scores, other.scores)
    with pytest.raises(ValueError, match="4 tails"):
        Mass.from_state(DetectorState({**state.settings, "tails": state.settings["tails"][:2]}))
    with pytest.raises(ValueError, match="excess"):
        Mass.from_state(DetectorState({**state.settings, "tails": [{"start": 0.0, "excess": 0.0}] * 4}))
    with pytest.raises(DetectorError, match="fit it first"):
        Mass().get_state()


def test_threads_change_nothing(fitted):
    view = make_view(*make_breast(22, at=(300, 150)))
    before = torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers.append(examine(fitted, view).anomaly_map)
            assert Mass(SMALL).fit(gather(range(2)), FitContext(progress=False)).tails is not None
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(answer, answers[0], equal_nan=True) for answer in answers)


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (64, 64), (100, 20)])
def test_images_that_are_blank_or_smaller_than_the_filter_stand_out_nowhere(fitted, shape):
    for pixels in (np.full(shape, 20000, np.uint16), np.zeros(shape, np.uint16)):
        found = examine(fitted, View(pixels, pixels > 0), np.zeros((1 if pixels.size else 0, 2), np.int32))
        assert found.anomaly_map.shape == shape
        assert (found.scores <= -30).all()
        assert not (found.anomaly_map > -30).any()


def test_a_tail_is_what_one_in_a_hundred_patches_exceeds():
    normals = gather(range(4))
    tails = Mass(SMALL).fit(normals, FitContext(progress=False)).tails
    pooled = [[] for _ in tails]
    for pixels, mask, origins, _ in normals.views():
        found = measure_regions(shrink_tissue(View(pixels, mask).tissue), SMALL)
        for values, answer in zip(pooled, found, strict=True):
            for row, col in (origins // STEP).tolist():
                values.append(np.sort(answer[row : row + 8, col : col + 8].ravel())[-7:].mean())
    for values, tail in zip(pooled, tails, strict=True):
        known = np.array([value for value in values if value > -4.5])
        assert tail.start == pytest.approx(np.quantile(known, 0.99), abs=1e-5)
        beyond = known[known > tail.start] - tail.start
        assert tail.excess == pytest.approx(max(beyond.mean(), (tail.start - np.median(known)) / 10), rel=1e-4)


def test_blank_images_and_too_few_patches_are_named():
    blank = np.full((256, 256), 20000, np.uint16)
    with pytest.raises(TrainingError, match="at least two"):
        Mass().fit(PatchSet((blank,), np.array([[0, 0, 0]], np.int32), 64), FitContext())
    with pytest.raises(TrainingError, match="blank"):
        Mass().fit(PatchSet((blank,), np.array([[0, 0, 0], [9, 9, 0]], np.int32)[:, [2, 0, 1]], 64), FitContext())


@pytest.mark.parametrize(
    "wrong", [{"radii_px": ()}, {"radii_px": (4.0,)}, {"radii_px": (float("nan"),)}, {"strongest": 0}]
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MassConfig(**wrong)
    with pytest.raises(ValueError, match="excess"):
        Tail(0.0, -1.0)
