import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_tissue import make_breast

from unary.detectors.blind_spot import (
    MEAN_WINDOW_PX,
    BlindSpot,
    BlindSpotConfig,
    build_blind_spot,
    fine_structure,
    smooth_target,
    subtract_local_mean,
)
from unary.detectors.dense_laplacian import DenseLaplacian
from unary.training.threads import map_in_threads
from unary.detectors.tissue import read_tissue
from unary.detectors.wei2018.autoencoder import AutoencoderConfig, ReconstructionDetector, build_autoencoder
from unary.detectors.wei2018.native import build_reconstruction
from unary.models.detection import map_prepared
from unary.patches.grid import GridConfig, tissue_origins
from unary.patches.stitching import taper_window
from unary.patches.preparation import FULL_SCALE, PreparedImage


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_answers_come_in_order_and_are_not_piled_up(threads):
    started = []

    def work(number):
        started.append(number)
        time.sleep(0.002 * (number % 3))
        return number, torch.get_num_threads(), threading.current_thread()

    answers = map_in_threads(work, range(30))
    assert next(answers)[0] == 0
    time.sleep(0.02)
    assert len(started) <= 2 * threads
    rest = list(answers)
    assert [number for number, _, _ in rest] == list(range(1, 30))
    assert {count for _, count, _ in rest} == {1}
    assert len({thread for _, _, thread in rest}) <= threads
    assert torch.get_num_threads() == threads
    assert list(map_in_threads(work, [])) == []


def test_an_error_ends_the_work_and_leaves_torch_as_it_was(threads):
    def work(number):
        if number == 5:
            raise ZeroDivisionError
        return number

    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(work, range(1000)))
    abandoned = map_in_threads(work, range(1000))
    next(abandoned)
    abandoned.close()
    assert torch.get_num_threads() == threads
    counts = []
    other = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert counts == [threads], "threads to come have as many as before"


def test_the_map_of_tiles_is_that_of_the_network_on_the_whole_image(threads):
    tissue = read_tissue(make_breast(2, (420, 230)))
    network = build_blind_spot(BlindSpotConfig(), seed=0).eval()
    with torch.no_grad():
        structure = fine_structure(torch.from_numpy(tissue.intensity)[None, None])
        mean, log_spread = network(structure)
        error, spread = (smooth_target(structure) - mean)[0, 0].numpy(), log_spread.exp()[0, 0].numpy()
    expected = error / np.sqrt(spread * np.median(spread[tissue.mask]))
    difference = np.abs(BlindSpot(network).map_tissue(tissue) - expected)[tissue.mask]
    assert difference.max() < 0.02 * expected[tissue.mask].std(), "a sum that rounds to the neighbouring bfloat16"
    assert (difference > 1e-4).mean() < 0.01


def test_the_laplacian_does_not_depend_on_threads():
    tissue = read_tissue(make_breast(4))
    detector = DenseLaplacian((1.0, 2.0, 3.0, 4.0), (1.0, 1.5, 2.0, 2.5))
    before = torch.get_num_threads()
    maps = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            maps.append(detector.map_tissue(tissue))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*maps)


def test_the_local_mean_by_rows_and_columns_is_that_of_the_square():
    intensity = torch.rand(2, 1, 60, 45, generator=torch.Generator().manual_seed(0))
    border = MEAN_WINDOW_PX - 1
    padded = F.pad(intensity, (border, border, border, border), mode="replicate").double()
    square = F.avg_pool2d(F.avg_pool2d(padded, MEAN_WINDOW_PX, 1), MEAN_WINDOW_PX, 1)
    assert torch.allclose(subtract_local_mean(intensity).double(), intensity - square, atol=1e-6)


@pytest.mark.parametrize("build", [ReconstructionDetector, build_reconstruction])
def test_the_paper_network_on_a_whole_image_against_a_loop(threads, build):
    pixels = make_breast(5, (300, 170))
    mask = pixels > 0
    network = build_autoencoder(AutoencoderConfig(size_px=32, widths=(2, 4)), seed=0).eval()
    prepared = PreparedImage(pixels, mask, (1.0, 1.0), pixels.shape, None)
    found = map_prepared(build(network), prepared, size_px=32, stride_px=16)
    total, weights = np.zeros(pixels.shape), np.zeros(pixels.shape)
    padded = np.pad(pixels, ((0, 32), (0, 32))).astype(np.float32) / FULL_SCALE
    cols = int(np.flatnonzero(mask.any(axis=0))[-1]) + 1 + 16  # where `map_prepared` cuts, margin included
    for row, col in tissue_origins(mask[:, :cols], GridConfig(32, 16, 0.0)).tolist():
        window = torch.from_numpy(padded[row : row + 32, col : col + 32])[None, None]
        with torch.no_grad():
            error = (window - network(window)).abs()[0, 0].numpy()
        part = (slice(row, row + 32), slice(col, col + 32))
        inside = total[part].shape
        total[part] += (error * taper_window(32))[: inside[0], : inside[1]]
        weights[part] += taper_window(32)[: inside[0], : inside[1]]
    scored = np.isfinite(found)
    assert scored.any()
    assert np.allclose(found[scored], (total / np.maximum(weights, 1e-9))[scored], atol=1e-4)


@pytest.mark.parametrize("build", [ReconstructionDetector, build_reconstruction])
def test_the_number_of_threads_changes_no_bit_of_blended_windows(build):
    pixels = make_breast(6, (700, 170))
    prepared = PreparedImage(pixels, pixels > 0, (1.0, 1.0), pixels.shape, None)
    detector = build(build_autoencoder(AutoencoderConfig(size_px=32, widths=(2, 4)), seed=0).eval())
    before, maps = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            maps.append(map_prepared(detector, prepared, size_px=32, stride_px=8))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*maps, equal_nan=True)
