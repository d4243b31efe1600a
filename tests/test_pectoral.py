import numpy as np
import pytest
from scipy import ndimage

from unary.detectors.coarse import STEP, Coarse, enlarge_cells, shrink_tissue, smooth_inside
from unary.detectors.pectoral import find_muscle
from unary.detectors.tissue import scan_tissue


def make_breast(seed=0, shape=(150, 90), *, muscle=True, across=35, down=80):
    """Cells of a breast at the left border with a bright gland, and where its muscle is: a bright corner above."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[: shape[0], : shape[1]]
    inside = np.hypot((row - shape[0] * 0.45) / (shape[0] * 0.7), col / (shape[1] * 0.95)) < 1
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 4)
    corner = inside & (row / down + col / across < 1) if muscle else np.zeros(shape, bool)
    gland = np.exp(-0.5 * (np.square((row - shape[0] * 0.5) / 22) + np.square((col - shape[1] * 0.45) / 15)))
    bright = 0.35 + 0.02 * texture / texture.std() + 0.25 * gland
    bright += 0.25 * ndimage.gaussian_filter(corner.astype(float), 0.8)
    return Coarse(np.where(inside, bright, 0).astype(np.float32), inside), corner


def overlap(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize(("across", "down"), [(35, 80), (22, 100), (45, 60)])
def test_a_muscle_is_found_with_its_edge(across, down):
    coarse, corner = make_breast(1, across=across, down=down)
    muscle = find_muscle(coarse)
    assert overlap(muscle, corner) > 0.92
    assert not (muscle & ~coarse.inside).any()


def test_a_bulging_edge_is_followed():
    coarse, _ = make_breast(2, muscle=False)
    row, col = np.mgrid[:150, :90]
    corner = coarse.inside & (col < 35 * (1 - row / 80) + 4 * np.sin(np.pi * row / 80)) & (row < 80)
    coarse = Coarse(coarse.bright + 0.25 * corner.astype(np.float32), coarse.inside)
    line = coarse.inside & (col < 35 * (1 - row / 80))
    assert overlap(find_muscle(coarse), corner) > max(0.94, overlap(line, corner) + 0.03)


@pytest.mark.parametrize("seed", range(6))
def test_there_is_none_where_no_corner_is_bright(seed):
    assert not find_muscle(make_breast(seed, muscle=False)[0]).any()


def test_a_round_mass_is_no_muscle():
    coarse, _ = make_breast(3, muscle=False)
    row, col = np.mgrid[:150, :90]
    mass = 0.3 * (np.hypot(row - 30, col - 20) < 12)
    assert not find_muscle(Coarse(coarse.bright + mass.astype(np.float32), coarse.inside)).any()


def test_sides_ends_exposure_and_background_around_do_not_matter():
    coarse, _ = make_breast(4)
    muscle = find_muscle(coarse)
    assert muscle.any()
    for turned in ((slice(None), slice(None, None, -1)), (slice(None, None, -1), slice(None))):
        assert np.array_equal(find_muscle(Coarse(coarse.bright[turned], coarse.inside[turned])), muscle[turned])
    exposed = np.where(coarse.inside, 0.5 * coarse.bright + np.float32(0.3), np.float32(0))
    assert overlap(find_muscle(Coarse(exposed, coarse.inside)), muscle) > 0.999
    framed = Coarse(np.pad(coarse.bright, 5), np.pad(coarse.inside, 5))
    assert np.array_equal(find_muscle(framed), np.pad(muscle, 5))


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (3, 40), (40, 3)])
@pytest.mark.parametrize("inside", [True, False])
def test_images_of_no_size_or_contrast_have_none(shape, inside):
    flat = Coarse(np.full(shape, 0.5, np.float32), np.full(shape, inside))
    assert not find_muscle(flat).any()
    rising = Coarse(np.arange(flat.bright.size, dtype=np.float32).reshape(shape), flat.inside)
    assert find_muscle(rising).shape == shape


def test_cells_hold_the_mean_of_their_tissue():
    rng = np.random.default_rng(5)
    pixels = rng.integers(1, 65535, (100, 61)).astype(np.uint16)
    mask = np.zeros(pixels.shape, bool)
    mask[7:83, 3:50] = True
    tissue = scan_tissue(pixels, mask)
    coarse = shrink_tissue(tissue)
    assert coarse.bright.shape == (13, 8)
    for row, col in np.ndindex(coarse.bright.shape):
        cell = slice(row * STEP, row * STEP + STEP), slice(col * STEP, col * STEP + STEP)
        share = tissue.mask[cell].sum() / STEP**2
        assert coarse.inside[row, col] == (share >= 0.5)
        expected = tissue.intensity[cell][tissue.mask[cell]].mean() if share >= 0.5 else 0
        assert coarse.bright[row, col] == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(enlarge_cells(coarse.bright, (100, 61))[::STEP, ::STEP], coarse.bright)


def test_a_large_image_read_in_strips_gives_the_same_cells():
    rng = np.random.default_rng(6)
    pixels = rng.integers(1, 65535, (300, 64)).astype(np.uint16)
    whole = scan_tissue(pixels, pixels > 0)
    strips = type(whole)(whole.pixels, whole.mask, 32, None)
    assert np.array_equal(shrink_tissue(strips).inside, shrink_tissue(whole).inside)
    assert np.allclose(shrink_tissue(strips).bright, shrink_tissue(whole).bright, atol=1e-6)


def test_means_stay_inside():
    inside = np.zeros((30, 30), bool)
    inside[:, :12] = True
    coarse = Coarse(np.where(inside, np.float32(0.7), np.float32(0)), inside)
    mean, weight = smooth_inside(coarse, 2.0)
    assert np.allclose(mean[:, :14], 0.7, atol=1e-5), "the edge of the tissue is no step"
    assert weight[15, 2] > 0.99 > 0.6 > weight[15, 12]
    left = coarse.leave_out(np.arange(30)[None] < 6)
    assert left.inside.sum() == 180
    assert not left.bright[:, :6].any()
