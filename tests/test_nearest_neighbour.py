import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from unary.detectors.nearest_neighbour import (
    NearestNeighbour,
    NearestNeighbourConfig,
    describe_picture,
    find_content,
)
from unary.detectors.protocol import DetectorState, View
from unary.errors import DetectorError, TrainingError
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import build_patch_set, join_patch_sets
from unary.patches.preparation import FULL_SCALE
from unary.training.context import FitContext

QUIET = FitContext(progress=False)
NOWHERE = np.zeros((0, 2), np.int32)
SIDE = 128
PLACES = 5


def make_anatomy(seed, texture=1.0):
    """A bright oval with dark hollows left and right, the right one smaller; every picture varies a little."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5 + rng.normal(scale=0.01, size=(2, 1, 1))
    body = np.hypot(row / 0.48, col / 0.42) < 1
    hollow = sum(
        np.exp(-(((row + 0.05) / 0.25) ** 2 + ((col - at) / wide) ** 2)) for at, wide in ((-0.2, 0.12), (0.2, 0.08))
    )
    grain = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 2.0) * 0.15 * texture
    return np.where(body, np.clip(0.6 - 0.3 * hollow + grain, 0.12, 1.0), 0.0) * 0.8


def to_pixels(picture):
    return np.round(np.clip(picture, 0, 1) * FULL_SCALE).astype(np.uint16)


def as_view(picture):
    pixels = to_pixels(picture)
    return View(pixels, np.ones(pixels.shape, bool))


def as_set(pictures):
    origins = grid_origins((SIDE, SIDE), GridConfig(64, 64))
    return join_patch_sets(
        [build_patch_set(v.pixels, origins, size_px=64, mask=v.mask) for v in map(as_view, pictures)]
    )


@pytest.fixture(scope="module")
def normal_pictures():
    return [make_anatomy(seed) for seed in range(30)]


@pytest.fixture(scope="module")
def fitted(normal_pictures):
    return NearestNeighbour().fit(as_set(normal_pictures), QUIET)


@pytest.fixture(scope="module")
def usual(fitted):
    """The highest of ten normal pictures that were not learned."""
    return max(highest(fitted, make_anatomy(seed)) for seed in range(100, 110))


def draw_map(detector, picture):
    answer = detector.examine(as_view(picture), NOWHERE, size_px=64).anomaly_map
    assert answer is not None
    return answer


def highest(detector, picture):
    return float(np.nanmax(draw_map(detector, picture)))


def test_what_no_normal_picture_has_is_found_in_its_part_of_the_picture(fitted, usual):
    row, col = np.mgrid[:SIDE, :SIDE]
    for place in ((40, 84), (88, 48)):
        lump = 0.5 * np.exp(-((row - place[0]) ** 2 + (col - place[1]) ** 2) / (2 * 8**2))
        answer = draw_map(fitted, make_anatomy(100) + lump)
        assert np.nanmax(answer) > 1.2 * usual
        # compared in quarters of the picture: the quarter that holds the lump is the most abnormal
        half = SIDE // 2
        quarters = {(r, c): np.nanmean(answer[r : r + half, c : c + half]) for r in (0, half) for c in (0, half)}
        assert max(quarters, key=quarters.get) == (place[0] // half * half, place[1] // half * half)


def test_smoother_than_normal_is_as_abnormal_as_rougher(fitted, usual):
    assert highest(fitted, make_anatomy(100, texture=0.1)) > 1.2 * usual
    assert highest(fitted, make_anatomy(100, texture=3.0)) > 1.2 * usual


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: 0.5 * picture,
        lambda picture: np.pad(picture, ((30, 5), (0, 60))),
        lambda picture: picture.repeat(2, axis=0).repeat(2, axis=1),
        lambda picture: picture.repeat(3, axis=1),
    ],
    ids=["darker", "with a margin", "larger", "wider"],
)
def test_contrast_margin_size_and_proportions_do_not_count(fitted, usual, change):
    before, after = (highest(fitted, picture) for picture in (make_anatomy(101), change(make_anatomy(101))))
    assert after == pytest.approx(before, rel=0.1)
    assert after < 1.1 * usual


def test_mirrored_pictures_are_normal_unless_said_otherwise(fitted, normal_pictures, usual):
    plain = dataclasses.replace(fitted, config=NearestNeighbourConfig(mirror=False))
    picture = make_anatomy(102)
    turned = np.ascontiguousarray(picture[:, ::-1])
    assert np.allclose(draw_map(fitted, turned), draw_map(fitted, picture)[:, ::-1], rtol=1e-3, equal_nan=True)
    assert highest(plain, turned) > 1.1 * highest(plain, picture)
    assert highest(plain, picture) >= highest(fitted, picture) * (1 - 1e-6)


def test_a_learned_picture_is_not_its_own_neighbour(fitted, normal_pictures, usual):
    scores = [highest(fitted, picture) for picture in normal_pictures[:5]]
    assert min(scores) > 0.5 * usual  # and not 0, as its own neighbour would be


def test_distances_agree_with_a_second_way(fitted):
    memory = fitted.memory
    assert memory is not None
    energies, copy = memory.energies[3] + np.float32(0.2), memory.copies[4]
    found = memory.compare(energies, copy)
    assert found.shape == (len(memory.copies), PLACES, PLACES)
    for number, row, col in ((0, 0, 0), (7, 2, 3), (29, 4, 4)):
        cells = np.s_[:, row : row + 4, col : col + 4]
        texture = ((memory.energies[number] - energies) / memory.spread)[cells]
        blocks = [a[2 * row : 2 * row + 8, 2 * col : 2 * col + 8].astype(float) for a in (memory.copies[number], copy)]
        one, other = ((block - block.mean()) / (block.std() + 0.1) for block in blocks)
        expected = np.mean(texture.astype(float) ** 2) + np.mean((one - other) ** 2)
        assert found[number, row, col] == pytest.approx(expected, rel=1e-4)


def test_energies_are_those_of_known_pictures():
    row, col = np.mgrid[:64, :64].astype(np.float32)
    energies, copy = describe_picture(0.1 * (col - 27.5) + 0.1 * (row - 27.5))
    inner = energies[:, 3, 3]
    slope = 0.1 * 2.0  # at sigma 2, the second scale
    expected = np.log(np.array([slope**2, slope**2, 2 * slope**2, 0, 0, 0]) + 1e-4)
    assert inner[7:13] == pytest.approx(expected, abs=5e-3)
    assert copy[4, 8] == pytest.approx(0.1 * (4 * 4 + 1.5 - 27.5) + 0.1 * (8 * 4 + 1.5 - 27.5), rel=1e-5)
    flat, _ = describe_picture(np.full((64, 64), 0.5, np.float32))
    assert (flat[0] == 0.5).all()
    assert flat[1:] == pytest.approx(np.log(1e-4), abs=1e-2)


def test_content_is_the_box_of_what_is_bright():
    pixels = np.zeros((200, 300), np.uint16)
    pixels[40:150, 90:240] = 30000
    dusty = pixels.copy()
    dusty[[5, 8, 190], [5, 280, 12]] = 65535
    for shown in (pixels, np.maximum(pixels, 1), dusty):
        rows, cols = find_content(shown)
        assert (rows.start, rows.stop, cols.start, cols.stop) == pytest.approx((40, 150, 90, 240), abs=6)
    for nothing in (np.zeros((50, 60), np.uint16), np.full((50, 60), 9, np.uint16)):
        assert find_content(nothing) == (slice(0, 50), slice(0, 60))


def test_no_more_pictures_are_kept_than_asked_for(normal_pictures):
    detector = NearestNeighbour(NearestNeighbourConfig(most_pictures=10))
    kept = [detector.fit(as_set(normal_pictures), FitContext(seed, progress=False)).memory for seed in (0, 0, 1)]
    assert all(memory is not None and len(memory.copies) == 10 for memory in kept)
    assert (kept[0].copies == kept[1].copies).all()
    assert not (kept[0].copies == kept[2].copies).all()


def test_what_cannot_be_compared_is_refused(normal_pictures, fitted):
    with pytest.raises(TrainingError, match="at least two"):
        NearestNeighbour().fit(as_set(normal_pictures[:1]), QUIET)
    with pytest.raises(TrainingError, match="blank"):
        NearestNeighbour().fit(as_set([np.zeros((SIDE, SIDE))] * 3), QUIET)
    with pytest.raises(DetectorError, match="nearest_neighbour"):
        NearestNeighbour().examine(as_view(normal_pictures[0]), NOWHERE, size_px=64)
    with pytest.raises(ValueError, match="smoothing"):
        NearestNeighbourConfig(smoothing=0.01)
    state = fitted.get_state()
    for name, wrong in (
        ("copies", state.tensors["copies"][:-1]),
        ("energies", state.tensors["energies"].astype(np.float64)),
        ("mean", np.full_like(state.tensors["mean"], np.nan)),
        ("spread", np.zeros_like(state.tensors["spread"])),
    ):
        with pytest.raises(ValueError, match=r"must be finite float32|positive spreads"):
            NearestNeighbour.from_state(DetectorState(state.settings, {**state.tensors, name: wrong}))
