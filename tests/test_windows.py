"""From patches to images: windows, taper, blending, with detectors simple enough to be computed by a loop."""

import numpy as np
import pytest
import torch
from test_detectors import make_view

from unary.detectors.protocol import View
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.windows import (
    PatchExamination,
    examine_in_batches,
    examine_windows,
    spread_evenly,
    to_intensity,
)
from unary.patches.grid import GridConfig, grid_origins, tissue_origins
from unary.patches.preparation import FULL_SCALE
from unary.patches.stitching import taper_window

SIZE = 32


def show_patches(patches):
    """Map each patch to itself and score it by its mean."""
    values = to_intensity(patches)
    return PatchExamination(values.mean(axis=(1, 2), dtype=np.float64), values)


def examine(view, origins, *, function=show_patches, with_map=True):
    return examine_windows(function, view, np.asarray(origins, np.int32), size_px=SIZE, with_map=with_map)


def build_detector(bottleneck, side=SIZE):
    """Compiled, or by torch where there is a bottleneck."""
    network = build_autoencoder(AutoencoderConfig(side, widths=(2, 4), bottleneck=bottleneck), seed=0).eval()
    return Wei2018(Wei2018Config((2, 4), bottleneck), network)


def whole(shape, seed=0):
    pixels = np.random.default_rng(seed).integers(1, 65536, shape).astype(np.uint16)
    return View(pixels, np.ones(shape, bool))


@pytest.mark.parametrize("shape", [(1, 1), (5, 90), (32, 32), (33, 31), (64, 48), (77, 101), (200, 40)])
def test_an_identity_stitches_back_to_the_image(shape):
    view = whole(shape)
    found = examine(view, np.zeros((0, 2)))
    assert found.scores.shape == (0,)
    assert found.anomaly_map.shape == shape
    assert found.anomaly_map.dtype == np.float32
    assert np.allclose(found.anomaly_map, view.pixels / FULL_SCALE, rtol=1e-5)


def test_a_constant_stays_constant_and_the_outside_is_not_scored():
    view = make_view(1)
    found = examine(view, [], function=lambda p: PatchExamination(np.zeros(len(p)), np.full(p.shape, 3, np.float32)))
    assert np.allclose(found.anomaly_map[view.mask], 3, rtol=1e-6)
    assert np.isnan(found.anomaly_map[~view.mask]).all()


def test_the_mask_decides_what_is_scored_not_the_pixels():
    view = whole((70, 60))
    mask = np.zeros((70, 60), bool)
    mask[10:50, 20:30] = True
    found = examine(View(view.pixels, mask), [])
    assert np.array_equal(np.isfinite(found.anomaly_map), mask)
    assert np.allclose(found.anomaly_map[mask], view.pixels[mask] / FULL_SCALE, rtol=1e-5)
    nothing = examine(View(view.pixels, np.zeros_like(mask)), [[0, 0]])
    assert np.isnan(nothing.anomaly_map).all()
    assert nothing.scores == pytest.approx(view.pixels[:SIZE, :SIZE].mean() / FULL_SCALE)


def test_scores_are_those_of_the_patches_in_their_order_and_zero_past_the_border():
    view = whole((70, 45))
    origins = np.random.default_rng(1).permutation(grid_origins((70, 45), GridConfig(SIZE, 3)))
    origins = np.concatenate([origins, [[60, 40], [0, 30], [69, 0]]])
    padded = np.pad(view.pixels, ((0, SIZE), (0, SIZE))) / FULL_SCALE
    expected = [padded[row : row + SIZE, col : col + SIZE].mean() for row, col in origins.tolist()]
    assert len(origins) > 64, "more than one batch"
    for with_map in (True, False):
        found = examine(view, origins, with_map=with_map)
        assert np.allclose(found.scores, expected, rtol=1e-5)
        assert (found.anomaly_map is not None) == with_map


def test_the_view_is_left_as_it_is():
    view = make_view(2)
    before = view.pixels.copy(), view.mask.copy()
    build_detector(None).examine(view, np.zeros((1, 2), np.int32), size_px=SIZE)
    assert np.array_equal(view.pixels, before[0])
    assert np.array_equal(view.mask, before[1])


@pytest.mark.parametrize("bottleneck", [None, 5])
@pytest.mark.parametrize("shape", [(300, 170), (40, 20)])
def test_the_papers_network_on_a_whole_image_against_a_loop(bottleneck, shape):
    view, detector = make_view(5, shape), build_detector(bottleneck)
    found = detector.examine(view, np.zeros((0, 2), np.int32), size_px=SIZE).anomaly_map
    height, width = max(shape[0], SIZE), max(shape[1], SIZE)
    pixels = np.zeros((height, width), np.float32)
    pixels[: shape[0], : shape[1]] = view.pixels / FULL_SCALE
    total, weights = np.zeros(pixels.shape), np.zeros(pixels.shape)
    for row, col in tissue_origins(view.mask, GridConfig(SIZE, SIZE // 2, 0.0)).tolist():
        part = (slice(row, row + SIZE), slice(col, col + SIZE))
        window = torch.from_numpy(pixels[part])[None, None]
        with torch.no_grad():
            error = (window - detector.network(window)).abs()[0, 0].numpy()
        total[part] += error * taper_window(SIZE)
        weights[part] += taper_window(SIZE)
    expected = (total / np.maximum(weights, 1e-9))[: shape[0], : shape[1]]
    assert np.array_equal(np.isfinite(found), view.mask)
    assert np.allclose(found[view.mask], expected[view.mask], atol=1e-5)


@pytest.mark.parametrize("bottleneck", [None, 5])
def test_the_number_of_threads_changes_no_bit(bottleneck):
    view, detector = make_view(6, (700, 170)), build_detector(bottleneck)
    origins = tissue_origins(view.mask, GridConfig(SIZE, 8))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(detector.examine(view, origins, size_px=SIZE))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert np.array_equal(found[0].scores, other.scores)
        assert np.array_equal(found[0].anomaly_map, other.anomaly_map, equal_nan=True)


def test_positions_are_spread_evenly():
    assert spread_evenly(3, 10).tolist() == [0, 1, 2]
    assert spread_evenly(100, 4).tolist() == [0, 33, 66, 99]
    assert spread_evenly(0, 4).tolist() == []
    assert len(np.unique(spread_evenly(12345, 4000))) == 4000


def test_batches_are_measured_in_the_order_asked_for():
    values = np.arange(1000)
    chosen = np.random.default_rng(0).permutation(1000)[:300]
    assert np.array_equal(examine_in_batches(lambda some: some * 2.0, values.__getitem__, chosen), chosen * 2.0)
