"""Patches per second of `unary fit` against a plain eager loop with a DataLoader, over the same patches, in one run.

Both train the network of equation 3 at batch 200 on the same pixels, which are held in memory once as uint16. The two
take turns, so that a noisy machine slows both; the median of the rounds counts. Prints a table and, last, one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import statistics
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from unary.detectors.autoencoder import AutoencoderConfig, build_autoencoder
from unary.patches import GridConfig, PatchSet, build_patch_set, grid_origins, join_patch_sets
from unary.training import TrainingConfig, train_autoencoder

PAPER_PATCHES = 36_013
ROWS, COLS = 26, 21  # patches per image, about the paper's 537
EPOCHS = 5  # per round; `fit` runs hundreds, so that what it does once must not weigh as if it did it every epoch


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


def train_plainly(patches: PatchSet, batch_size: int) -> None:
    """A few epochs, eager, contiguous layout, DataLoader."""
    network = build_autoencoder(AutoencoderConfig(), seed=0).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loader = DataLoader(PlainDataset(patches), batch_size=batch_size, shuffle=True)
    for _ in range(EPOCHS):
        for batch in loader:
            loss = torch.nn.functional.mse_loss(network(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def train_with_unary(patches: PatchSet, batch_size: int) -> None:
    """A few epochs of what `unary fit` runs, its statistics and baselines included."""
    train_autoencoder(patches, TrainingConfig(epochs=EPOCHS, batch_size=batch_size))


def main() -> None:
    """Time both, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=2000, help="per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=200)
    options = parser.parse_args()
    logging.getLogger("unary").setLevel(logging.ERROR)  # so short a training learns nothing, and says so
    whole = make_patches(PAPER_PATCHES)
    patches = whole.subset(np.arange(options.patches))
    loops = {"plain eager + DataLoader": train_plainly, "unary": train_with_unary}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(options.rounds + 1):
        for name, loop in loops.items():
            started = time.perf_counter()
            loop(patches, options.batch_size)
            if turn:  # the first round warms up
                rates[name].append(EPOCHS * len(patches) / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    eager = medians["plain eager + DataLoader"]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{len(whole)} patches in {whole.nbytes / 1e9:.2f} GB; {len(patches)} per round, batch {options.batch_size}")
    print(f"{'loop':28s}{'patches/s':>12s}{'slowest':>10s}{'fastest':>10s}{'ratio':>8s}")
    for name, values in rates.items():
        ratio = medians[name] / eager
        print(f"{name:28s}{medians[name]:12.0f}{min(values):10.0f}{max(values):10.0f}{ratio:8.2f}")
    print(
        json.dumps(
            {
                "patches_per_second": round(medians["unary"]),
                "ratio_to_eager": round(medians["unary"] / eager, 3),
                "patches_in_memory": len(whole),
                "pixel_gigabytes": round(whole.nbytes / 1e9, 3),
                "peak_memory_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
