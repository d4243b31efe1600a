import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_detectors import make_view

from unary.detectors.blind_spot import (
    BlindSpotConfig,
    build_blind_spot,
    fine_structure,
    measure_surprise,
    smooth_target,
)
from unary.detectors.filters import MEAN_WINDOW_PX, subtract_local_mean
from unary.training.threads import count_threads, map_in_threads, using_threads


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


def test_the_number_of_threads_is_given_back(threads):
    with using_threads(2):
        assert count_threads() == 2
    with pytest.raises(ZeroDivisionError), using_threads(2):
        raise ZeroDivisionError
    assert count_threads() == threads


def test_threads_are_counted_and_limited_without_torch():
    code = """
import sys
from unary.training.threads import count_threads, map_in_threads, using_threads
count = count_threads()
with using_threads(3):
    inside = list(map_in_threads(lambda _: count_threads(), range(6)))
    assert (count_threads(), inside) == (3, [1] * 6)
assert count_threads() == count and "torch" not in sys.modules
import torch
torch.set_num_threads(2)
assert count_threads() == 2
print(count)
"""
    for asked, expected in (("1", "1"), ("", str(len(os.sched_getaffinity(0)))), ("many", None)):
        found = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": asked}, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        assert expected is None or found.stdout.strip() == expected


def test_the_map_of_tiles_is_that_of_the_network_on_the_whole_image(threads):
    tissue = make_view(2, (420, 230)).tissue
    network = build_blind_spot(BlindSpotConfig(), seed=0).eval()
    with torch.no_grad():
        structure = fine_structure(torch.from_numpy(tissue.intensity)[None, None])
        mean, log_spread = network(structure)
        error, spread = (smooth_target(structure) - mean)[0, 0].numpy(), log_spread.exp()[0, 0].numpy()
    expected = error / np.sqrt(spread * np.median(spread[tissue.mask]))
    difference = np.abs(measure_surprise(network, tissue) - expected)[tissue.mask]
    assert difference.max() < 0.02 * expected[tissue.mask].std(), "a sum that rounds to the neighbouring bfloat16"
    assert (difference > 1e-4).mean() < 0.01


def test_the_local_mean_by_rows_and_columns_is_that_of_the_square():
    intensity = torch.rand(2, 1, 60, 45, generator=torch.Generator().manual_seed(0))
    border = MEAN_WINDOW_PX - 1
    padded = F.pad(intensity, (border, border, border, border), mode="replicate").double()
    square = F.avg_pool2d(F.avg_pool2d(padded, MEAN_WINDOW_PX, 1), MEAN_WINDOW_PX, 1)
    assert torch.allclose(subtract_local_mean(intensity).double(), intensity - square, atol=1e-6)
