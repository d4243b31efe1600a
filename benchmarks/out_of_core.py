"""Training from a file (`unary fit --store`) against training from memory: time per patch and peak memory.

Each turn is a process of its own, so that its peak memory (ru_maxrss) is its own. The file is cold at first; the epochs
that are timed come after the first one, and find in the system's cache what it keeps of a file: all of a small one,
nothing of one that is larger than memory. Where the patches would take more than a third of the machine's memory, as
many as do not are trained from memory instead. The median of the rounds counts; last comes one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from unary.detectors.wei2018 import learning
from unary.detectors.wei2018.autoencoder import Autoencoder
from unary.patches.grid import GridConfig, grid_origins
from unary.patches.patch_set import PatchSet
from unary.patches.store import open_images, release_pages, writing_images
from unary.training.context import FitContext

SHAPE = (3328, 2688)
PER_IMAGE = len(grid_origins(SHAPE, GridConfig()))
EPOCH_SECONDS = 20  # of epochs after the first, roughly, and one at least


def write_synthetic(path: Path, images: int) -> None:
    """Write smooth random images; what they show does not matter to the clock."""
    rng = np.random.default_rng(0)
    with writing_images(path) as write:
        for _ in range(images):
            coarse = rng.random((SHAPE[0] // 8, SHAPE[1] // 8), dtype=np.float32)
            write((np.kron(coarse, np.ones((8, 8), np.float32)) * 65535).astype(np.uint16))


def open_patches(path: Path, count: int) -> PatchSet:
    """Return the first patches of a file."""
    images = open_images(path)[: -(-count // PER_IMAGE)]
    origins = grid_origins(SHAPE, GridConfig())
    index = [np.column_stack([np.full(PER_IMAGE, number), origins]) for number in range(len(images))]
    return PatchSet(images, np.concatenate(index)[:count].astype(np.int32), 128)


def copy_image(image: np.ndarray) -> np.ndarray:
    """Copy an image into memory, and do not count it twice."""
    copy = image.copy()
    release_pages([image])
    return copy


def forget(path: Path) -> None:
    """Drop a file from the system's cache."""
    with path.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def take_turn(path: Path, count: int, *, stored: bool, threads: int) -> None:
    """Train, and print what it took as one JSON line."""
    torch.set_num_threads(threads)
    logging.getLogger("unary").setLevel(logging.ERROR)  # so short a training learns nothing, and says so
    patches = open_patches(path, count)
    if stored:
        forget(path)
    else:
        patches = dataclasses.replace(patches, images=tuple(copy_image(image) for image in patches.images))
    ends: list[tuple[float, float]] = []
    measure = learning.dead_unit_share

    def note(network: Autoencoder, probe: torch.Tensor) -> float:
        """What is measured after each epoch; then the time, and the processor's."""
        share = measure(network, probe)
        ends.append((time.perf_counter(), time.process_time()))
        return share

    learning.dead_unit_share = note
    epochs = 1 + max(1, min(10, round(EPOCH_SECONDS * 20_000 / count)))
    learning.train_autoencoder(patches, learning.TrainingConfig(epochs=epochs), FitContext(progress=False))
    seconds, used = np.diff(ends, axis=0).T.tolist()  # the first epoch has a part in what is done once
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    taken, worked = (statistics.median(values) / count * 1e6 for values in (seconds, used))
    print(json.dumps({"microseconds": taken, "processor_microseconds": worked, "peak_gigabytes": peak}))


def run_turn(path: Path, count: int, where: str, threads: int) -> dict[str, float]:
    """Take a turn in a process of its own."""
    command = [sys.executable, __file__, "--turn", where, "--file", str(path), "--patches", str(count)]
    done = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Write the images, take turns, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--file", type=Path, help="keep the images here, and use them if they are there (33 GB)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turn", choices=["memory", "file"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        take_turn(options.file, options.patches[0], stored=options.turn == "file", threads=options.threads)
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "prepared.tif"
        if not path.exists():
            write_synthetic(path, -(-max(options.patches) // PER_IMAGE))
        print(f"{platform.machine()}, {options.threads} of {os.cpu_count()} cores, {memory / 1e9:.0f} GB of memory")
        print(f"{'patches':>9s}{'GB':>7s}{'in memory':>12s}{'us/patch':>10s}{'peak GB':>9s}", end="")
        print(f"{'file us':>10s}{'CPU us':>8s}{'peak GB':>9s}{'speed':>8s}{'lowest':>8s}")
        results = [compare(path, count, memory, options) for count in options.patches]
    print(json.dumps({"sizes": results, "threads": options.threads, "memory_gigabytes": round(memory / 1e9, 1)}))


def compare(path: Path, count: int, memory: int, options: argparse.Namespace) -> dict[str, float]:
    """Take turns for one number of patches; print a line of the table."""
    fits = min(count, memory // 3 // (2 * 128 * 128))
    kept, stored, speed = [], [], []
    for _ in range(options.rounds):
        kept.append(run_turn(path, fits, "memory", options.threads))
        stored.append(run_turn(path, count, "file", options.threads))
        speed.append(kept[-1]["microseconds"] / stored[-1]["microseconds"])
    result = {
        "patches": count,
        "patches_in_memory": fits,
        "memory_microseconds": statistics.median(turn["microseconds"] for turn in kept),
        "file_microseconds": statistics.median(turn["microseconds"] for turn in stored),
        "file_processor_microseconds": statistics.median(turn["processor_microseconds"] for turn in stored),
        "memory_processor_microseconds": statistics.median(turn["processor_microseconds"] for turn in kept),
        "memory_peak_gigabytes": max(turn["peak_gigabytes"] for turn in kept),
        "file_peak_gigabytes": max(turn["peak_gigabytes"] for turn in stored),
        "speed_ratio": statistics.median(speed),
    }
    print(
        f"{count:9d}{count * 2**15 / 1e9:7.1f}{fits:12d}{result['memory_microseconds']:10.1f}"
        f"{result['memory_peak_gigabytes']:9.2f}{result['file_microseconds']:10.1f}"
        f"{result['file_processor_microseconds']:8.1f}{result['file_peak_gigabytes']:9.2f}"
        f"{result['speed_ratio']:8.2f}{min(speed):8.2f}",
        flush=True,
    )
    return {name: round(value, 3) for name, value in result.items()}


if __name__ == "__main__":
    main()
