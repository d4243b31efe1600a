"""Patches per second of `unary fit --detector wei2018` against plain torch loops, over the same patches, in one run.

All train the network of equation 3 on the same pixels, which are held in memory once as uint16. They take turns, so
that a noisy machine slows all; the median of the rounds counts. Above the table stand two floors, the arithmetic's and
the memory traffic's, from what this machine was seen to do in the same run; last comes one JSON line.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from unary.detectors.wei2018.autoencoder import AutoencoderConfig, build_autoencoder, layer_sizes
from unary.detectors.wei2018.learning import TrainingConfig, train_autoencoder
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import PatchSet, build_patch_set, join_patch_sets
from unary.training.context import FitContext

PAPER_PATCHES = 36_013
ROWS, COLS = 26, 21  # patches per image, about the paper's 537
EPOCHS = 2  # per turn; `fit` runs hundreds, so that what it does once must not weigh as if it did it every epoch
PLAIN = "plain eager + DataLoader"
COMPILED = "channels-last, torch.compile"
OURS = "unary"


class PlainDataset(Dataset):
    """One patch at a time, as most tutorials do it."""

    def __init__(self, patches: PatchSet) -> None:
        self.patches = patches

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> torch.Tensor:
        patch = self.patches.gather(slice(index, index + 1))[0]
        return torch.from_numpy(patch.astype(np.float32) / 65535)[None]


def make_patches(count: int) -> PatchSet:
    """Smooth random images, cut without overlap; what they show does not matter to the clock."""
    rng, sets, left = np.random.default_rng(0), [], count
    while left > 0:
        coarse = rng.random((ROWS * 16, COLS * 16), dtype=np.float32)
        pixels = (np.kron(coarse, np.ones((8, 8), np.float32)) * 65535).astype(np.uint16)
        sets.append(build_patch_set(pixels, grid_origins(pixels.shape, GridConfig())[:left], size_px=128))
        left -= len(sets[-1])
    return join_patch_sets(sets)


def train_plainly(patches: PatchSet, batch_size: int, network: torch.nn.Module, layout: torch.memory_format) -> int:
    """An epoch with a DataLoader; return how many patches were seen."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for plain in DataLoader(PlainDataset(patches), batch_size=batch_size, shuffle=True):
        batch = plain.to(memory_format=layout)
        loss = torch.nn.functional.mse_loss(network(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(patches)


def train_with_unary(patches: PatchSet, batch_size: int, *, compiled: bool) -> int:
    """A few epochs of what `unary fit` runs, its statistics and baselines included; return how many were seen."""
    training = TrainingConfig(epochs=EPOCHS, batch_size=batch_size, compiled=compiled)
    train_autoencoder(patches, training, FitContext(progress=False))
    return EPOCHS * len(patches)


def build_loops(patches: PatchSet, few: PatchSet, batch_size: int) -> dict[str, Callable[[], int]]:
    """What takes turns, by name; the slow ones over fewer patches, and `torch.compile` only where it works."""
    plain = build_autoencoder(AutoencoderConfig(), seed=0).to(memory_format=torch.contiguous_format)
    fused = torch.compile(build_autoencoder(AutoencoderConfig(), seed=0))
    run = functools.partial(train_plainly, few, batch_size)
    large = 10 * batch_size
    loops = {
        OURS: functools.partial(train_with_unary, patches, batch_size, compiled=True),
        f"{OURS}, batch {large}": functools.partial(train_with_unary, patches, large, compiled=True),
        f"{OURS}, compiled=False": functools.partial(train_with_unary, few, batch_size, compiled=False),
        PLAIN: functools.partial(run, plain, torch.contiguous_format),
    }
    try:
        fused(torch.rand(batch_size, 1, 128, 128).to(memory_format=torch.channels_last)).sum().backward()
    except RuntimeError as error:
        print(f"left out: {COMPILED}, which fails here ({str(error).splitlines()[0]})")
        return loops
    return loops | {COMPILED: functools.partial(run, fused, torch.channels_last)}


def count_multiply_adds(config: AutoencoderConfig) -> int:
    """Of one patch, forward and backward: every layer once each way and once for its weights.

    The patch itself needs no gradient, which saves one pass of the first layer.
    """
    sizes = layer_sizes(config)
    layers = [side**2 * inner * outer * 9 for (_, inner), (side, outer) in itertools.pairwise(sizes)]
    return 2 * 3 * sum(layers) - layers[0]


def measure_arithmetic() -> float:
    """Multiply-adds per second of a large matrix product in float32, which is as fast as the machine computes."""
    one, other = torch.rand(2, 1536, 1536)
    started = time.perf_counter()
    _ = one @ other
    return 1536**3 / (time.perf_counter() - started)


def measure_traffic() -> float:
    """Bytes per second read from memory that no cache holds, while they are written elsewhere."""
    source = torch.ones(1 << 26)
    target = torch.zeros_like(source)
    started = time.perf_counter()
    target.copy_(source)
    return source.nbytes / (time.perf_counter() - started)


def print_floors(arithmetic: list[float], traffic: list[float], reached: float) -> None:
    """Both floors as patches per second, and how far from them we are."""
    config = AutoencoderConfig()
    work, size = count_multiply_adds(config), 2 * config.size_px**2
    computed, read = statistics.median(arithmetic) / work, statistics.median(traffic) / size
    print(
        f"arithmetic floor: {work / 1e6:.2f} million multiply-adds a patch, {statistics.median(arithmetic) / 1e9:.0f} "
        f"billion a second = {computed:.0f} patches/s, of which unary reaches {reached / computed:.0%}"
    )
    print(
        f"memory-traffic floor: {size / 1024:.0f} KiB a patch, read once, {statistics.median(traffic) / 1e9:.1f} GB a "
        f"second = {read:.0f} patches/s, of which unary reaches {reached / read:.0%}"
    )


def main() -> None:
    """Time all, print floors, table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=32_400, help="per epoch (default: %(default)s, the paper's)")
    parser.add_argument("--few", type=int, default=4000, help="the same for the slow loops (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("unary").setLevel(logging.ERROR)  # so short a training learns nothing, and says so
    whole = make_patches(PAPER_PATCHES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train_with_unary(whole.subset(np.arange(options.batch_size)), options.batch_size, compiled=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    patches = whole.subset(np.random.default_rng(1).permutation(len(whole))[: options.patches])
    few = patches.subset(np.arange(options.few))
    loops = build_loops(patches, few, options.batch_size)
    rates: dict[str, list[float]] = {name: [] for name in loops}
    busy: dict[str, list[float]] = {name: [] for name in loops}
    arithmetic, traffic = [], []
    for turn, (name, loop) in itertools.product(range(options.rounds + 1), loops.items()):
        arithmetic.append(measure_arithmetic())
        traffic.append(measure_traffic())
        started, used = time.perf_counter(), time.process_time()
        seen = loop()
        if turn:  # the first round warms up
            rates[name].append(seen / (time.perf_counter() - started))
            busy[name].append(seen / (time.process_time() - used))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    threads = torch.get_num_threads()
    print(
        f"{platform.processor() or platform.machine()}, {threads} of {os.cpu_count()} cores, torch {torch.__version__}"
    )
    print(f"{len(whole)} patches in {whole.nbytes / 1e9:.2f} GB; {len(patches)} an epoch, {len(few)} in the slow loops")
    print_floors(arithmetic, traffic, medians[OURS])
    print(f"{'loop':30s}{'patches/s':>11s}{'slowest':>9s}{'fastest':>9s}{'ratio':>8s}{'per CPU second':>16s}")
    for name, values in rates.items():
        print(
            f"{name:30s}{medians[name]:11.0f}{min(values):9.0f}{max(values):9.0f}{medians[name] / medians[PLAIN]:8.2f}"
            f"{statistics.median(busy[name]):16.0f}"
        )
    print(
        json.dumps(
            {
                "patches_per_second": round(medians[OURS]),
                "ratio_to_eager": round(medians[OURS] / medians[PLAIN], 3),
                "threads": threads,
                "ratio_to_torch_compile": round(medians[OURS] / medians[COMPILED], 3) if COMPILED in medians else None,
                "patches_in_memory": len(whole),
                "pixel_gigabytes": round(whole.nbytes / 1e9, 3),
                "training_megabytes": round(own / 1e3),
                "peak_memory_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
