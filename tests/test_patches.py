import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unary.patches.stitching
from unary.patches.grid import GridConfig, count_pixels, extract_patches, grid_origins, pad_to_patch, tissue_origins
from unary.patches.patch_set import build_patch_set, cut_window, find_window, join_patch_sets
from unary.patches.stitching import OverlapWeights, add_tapered, split_grid, taper_window

SHAPES = [(1, 1), (5, 300), (16, 16), (31, 17), (64, 48), (100, 33)]


def stitch(batches, shape):
    """Lay maps back on their image."""
    sums = np.zeros(shape, np.float32)
    for maps, origins in batches:
        add_tapered(sums, maps, origins)
    origins = np.concatenate([origins for _, origins in batches])
    OverlapWeights(origins, batches[0][0].shape[-1], shape[1]).divide(sums)
    return sums


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", [1, 7, 16])
def test_identity_stitches_back_exactly(shape, stride):
    pixels = np.random.default_rng(0).integers(0, 65535, shape, dtype=np.uint16)
    config = GridConfig(size_px=16, stride_px=stride)
    origins = grid_origins(shape, config)
    maps = extract_patches(pixels, origins, size_px=16).astype(np.float32)
    halves = [(maps[::2], origins[::2]), (maps[1::2], origins[1::2])]
    assert np.allclose(stitch(halves, shape), pixels, rtol=1e-5)


def test_what_no_patch_covers_is_nan():
    stitched = stitch([(np.ones((1, 4, 4), np.float32), np.array([[1, 1]], np.int32))], (8, 8))
    assert np.isnan(stitched).sum() == 64 - 16
    assert np.isnan(stitched[0]).all()


def test_hundreds_of_overlaps_are_counted():
    origins = np.zeros((300, 2), np.int32)  # an 8-bit counter would have wrapped round
    stitched = stitch([(np.full((300, 4, 4), 2.0, np.float32), origins)], (4, 4))
    assert (stitched == 2).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_grid_covers_every_pixel_and_stays_inside(shape):
    origins = grid_origins(shape, GridConfig(size_px=16, stride_px=11))
    covered = np.zeros(shape, bool)
    for row, col in origins:
        covered[row : row + 16, col : col + 16] = True
        assert row + 16 <= max(shape[0], 16)
        assert col + 16 <= max(shape[1], 16)
    assert covered.all()
    assert len(np.unique(origins, axis=0)) == len(origins)


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_of_patches_agree_with_counting(shape):
    mask = np.random.default_rng(1).random(shape) < 0.4
    origins = grid_origins(shape, GridConfig(size_px=16, stride_px=5))
    counted = extract_patches(mask, origins, size_px=16).sum(axis=(1, 2))
    assert np.array_equal(count_pixels(mask, origins, size_px=16), counted)


def test_patches_without_tissue_are_never_taken():
    mask = np.zeros((64, 64), bool)
    mask[:16, :16] = True
    config = GridConfig(size_px=16, stride_px=16, min_tissue=0.0)
    assert tissue_origins(mask, config).tolist() == [[0, 0]]


def test_patch_set_gathers_what_extraction_gives_and_joins_in_order():
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 65535, shape, dtype=np.uint16) for shape in [(40, 60), (10, 90), (33, 33)]]
    config = GridConfig(size_px=16, stride_px=9)
    origins = [grid_origins(image.shape, config)[2:] for image in images]
    expected = np.concatenate([extract_patches(i, o, size_px=16) for i, o in zip(images, origins, strict=True)])
    joined = join_patch_sets([build_patch_set(i, o, size_px=16) for i, o in zip(images, origins, strict=True)])
    assert (joined.gather(slice(None)) == expected).all()
    chosen = np.array([5, 0, 11])
    assert (joined.subset(chosen).gather(slice(None)) == expected[chosen]).all()
    with pytest.raises(ValueError, match="one size"):
        join_patch_sets([])


def test_patch_set_keeps_only_the_box_that_it_needs():
    image = np.zeros((1000, 1000), np.uint16)
    image[110:120, 205:210] = 1
    few = build_patch_set(image, np.array([[100, 200], [200, 200]], np.int32), size_px=16)
    rows, cols = 216 - (110 - 16), (210 + 16) - (205 - 16)  # the tissue with its margin, and all patches
    assert few.nbytes == rows * cols * 2
    assert few.index.tolist() == [[0, 100 - 94, 200 - 189], [0, 200 - 94, 200 - 189]]
    none = np.zeros((0, 2), np.int32)
    assert len(build_patch_set(image, none, size_px=16)) == 0
    assert build_patch_set(np.zeros_like(image), none, size_px=16).images[0].size == 0


@settings(deadline=None, database=None, max_examples=200)
@given(data=st.data())
def test_a_window_holds_all_tissue_and_all_patches(data):
    shape = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    mask = np.zeros(shape, bool)
    for row, col in data.draw(st.lists(st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1)))):
        mask[row, col] = True
    size_px = data.draw(st.sampled_from([4, 16, 128]))
    corners = grid_origins(shape, GridConfig(size_px, 3))
    origins = corners[sorted(data.draw(st.sets(st.integers(0, len(corners) - 1), max_size=4)))]
    rows, cols = find_window(mask, origins, size_px=size_px)
    kept = cut_window(mask, (rows, cols))
    assert kept.shape == (rows.stop - rows.start, cols.stop - cols.start)
    assert kept.sum() == mask.sum()
    assert all(rows.start <= row and row + size_px <= rows.stop for row in origins[:, 0])
    assert all(cols.start <= col and col + size_px <= cols.stop for col in origins[:, 1])
    pixels = mask.astype(np.uint16) * 7
    patches = build_patch_set(pixels, origins, size_px=size_px, mask=mask)
    assert (patches.gather(slice(None)) == extract_patches(pixels, origins, size_px=size_px)).all()
    for view, tissue, inside, which in patches.views():
        assert np.array_equal(view, kept * 7)
        assert np.array_equal(tissue, kept)
        assert np.array_equal(inside + np.array([rows.start, cols.start]), origins)
        assert which.tolist() == list(range(len(origins)))


def test_the_mask_goes_with_the_image_however_dark_the_tissue_is():
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 2, (40 + n, 50)).astype(np.uint16) for n in range(3)]
    masks = [rng.random(image.shape) < 0.9 for image in images]
    origins = np.array([[0, 0], [16, 30]], np.int32)
    joined = join_patch_sets(
        [build_patch_set(image, origins, size_px=16, mask=mask) for image, mask in zip(images, masks, strict=True)]
    )
    for number, (pixels, mask, _, _) in enumerate(joined.subset(np.array([0, 3, 4])).views()):
        window = find_window(masks[number], origins, size_px=16)
        assert np.array_equal(mask, cut_window(masks[number], window))
        assert np.array_equal(pixels, cut_window(images[number], window))


def test_a_digest_follows_pixels_and_places():
    image = np.random.default_rng(0).integers(1, 9, (64, 64), dtype=np.uint16)
    places = np.array([[0, 0], [16, 16]], np.int32)
    first = build_patch_set(image, places, size_px=16)
    assert first.digest() == build_patch_set(image.copy(), places, size_px=16).digest()
    assert first.digest() != build_patch_set(image, places[::-1], size_px=16).digest()
    assert first.digest() != build_patch_set(image + np.uint16(1), places, size_px=16).digest()
    assert first.digest() != first.subset([0]).digest()


def test_padding_leaves_large_images_alone():
    large = np.ones((20, 20))
    assert pad_to_patch(large, 16) is large
    assert pad_to_patch(np.ones((3, 20)), 16).sum() == 60


@pytest.mark.parametrize("wrong", [{"size_px": 0}, {"stride_px": 0}, {"min_tissue": 1.5}])
def test_configuration_is_checked(wrong):
    with pytest.raises(ValueError):
        GridConfig(**wrong)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", [1, 5, 8, 16])
def test_constants_stay_constant_and_nothing_is_left_uncovered(shape, stride):
    origins = grid_origins(shape, GridConfig(size_px=16, stride_px=stride))
    stitched = stitch([(np.full((len(origins), 16, 16), -3.7, np.float32), origins)], shape)
    assert np.allclose(stitched, np.float32(-3.7), rtol=1e-5)


def test_taper_keeps_borders_and_corners_and_hides_the_seams():
    shape, config = (40, 56), GridConfig(size_px=16, stride_px=8)
    origins = grid_origins(shape, config)
    rng = np.random.default_rng(4)
    maps = rng.normal(size=(len(origins), 16, 16)).astype(np.float32)
    stitched = stitch([(maps, origins)], shape)
    for corner, number in (((0, 0), 0), ((0, -1), 5), ((-1, 0), -6), ((-1, -1), -1)):
        assert np.allclose(stitched[corner], maps[number][corner], rtol=1e-6), "one patch alone covers a corner"
    levels = np.arange(len(origins), dtype=np.float32)[:, None, None] * np.ones((16, 16), np.float32)
    plain, counts = np.zeros(shape), np.zeros(shape)
    for level, (row, col) in zip(levels, origins, strict=True):
        plain[row : row + 16, col : col + 16] += level
        counts[row : row + 16, col : col + 16] += 1
    plain /= counts
    step = np.abs(np.diff(stitch([(levels, origins)], shape), axis=1)).max()
    assert step < np.abs(np.diff(plain, axis=1)).max() / 2


def test_taper_against_loops():
    shape = (23, 19)
    origins = grid_origins(shape, GridConfig(size_px=8, stride_px=3))
    maps = np.random.default_rng(5).normal(size=(len(origins), 8, 8))
    window = taper_window(8).astype(np.float64)
    assert window.max() == 1
    assert window.min() == window[0, 0] == 1 / 16
    assert np.array_equal(window, window[::-1].T)
    total, weight = np.zeros(shape), np.zeros(shape)
    for patch, (row, col) in zip(maps, origins, strict=True):
        total[row : row + 8, col : col + 8] += window * patch
        weight[row : row + 8, col : col + 8] += window
    stitched = stitch([(maps.astype(np.float32), origins)], shape)
    assert np.allclose(stitched, total / weight, atol=1e-5)


def test_order_batches_and_bands_change_nothing(monkeypatch):
    shape = (61, 45)
    origins = grid_origins(shape, GridConfig(size_px=16, stride_px=6))[::2]
    maps = np.random.default_rng(6).normal(size=(len(origins), 16, 16)).astype(np.float32)
    whole = stitch([(maps, origins)], shape)
    order = np.random.default_rng(7).permutation(len(origins))
    monkeypatch.setattr(unary.patches.stitching, "_BAND_PX", 5)
    parts = [(maps[order[k : k + 7]], origins[order[k : k + 7]]) for k in range(0, len(order), 7)]
    assert np.allclose(stitch(parts, shape), whole, atol=1e-5, equal_nan=True)
    assert not np.isnan(whole).all()


@pytest.mark.parametrize("rows", [1, 2, 4, 100])
def test_strips_of_the_grid_add_up_to_the_whole(rows):
    shape = (61, 45)
    origins = grid_origins(shape, GridConfig(size_px=16, stride_px=6))[1::2]
    maps = np.random.default_rng(8).normal(size=(len(origins), 16, 16)).astype(np.float32)
    runs = split_grid(origins, rows)
    assert np.array_equal(np.concatenate(runs), origins)
    assert len(runs) == -(-len(np.unique(origins[:, 0])) // rows)
    assert all(np.isin(one[:, 0], other[:, 0]).sum() == 0 for one, other in itertools.pairwise(runs))
    sums = np.zeros(shape, np.float32)
    for run, of_run in zip(runs, np.split(maps, np.cumsum([len(run) for run in runs])[:-1]), strict=True):
        add_tapered(sums, of_run, run)
    weights = OverlapWeights(origins, 16, shape[1])
    for start in range(0, shape[0], 7):
        weights.divide(sums[start : start + 7], start)
    assert np.allclose(sums, stitch([(maps, origins)], shape), rtol=1e-4, equal_nan=True)


def test_no_patches_make_no_strips():
    assert split_grid(np.zeros((0, 2), np.int32), 4) == []


def test_a_map_that_is_not_finite_is_not_hidden():
    origins = np.array([[0, 0], [0, 2]], np.int32)
    maps = np.ones((2, 4, 4), np.float32)
    maps[0, 1, 3] = np.nan
    maps[0, 2, 3] = np.inf
    stitched = stitch([(maps, origins)], (4, 6))
    assert np.isnan(stitched[1, 3])
    assert np.isinf(stitched[2, 3])
    assert np.isfinite(stitched).sum() == 22


@pytest.mark.parametrize("size_px", [0, 1.5, "64", None])
def test_a_grid_is_of_whole_pixels(size_px):
    with pytest.raises(ValueError, match="size_px and stride_px must be"):
        GridConfig(size_px=size_px)
    assert GridConfig(size_px=np.int64(64)).size_px == 64
