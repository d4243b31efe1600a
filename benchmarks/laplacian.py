"""How fast the `laplacian` yardstick pools patches, against its former arithmetic, and how far scores differ.

The former arithmetic is kept here as it was: products with dense smoothing matrices, every scale and every root mean
square of its own, and a partition for the strongest pixels. Both take turns on the same patches, of phantoms at full
size, with the same threads; the former takes the first so many of them, since it is slow. Scores are those of a
detector that the former arithmetic has fitted. A third opinion, in float64, says how much of the difference is whose.
Last comes one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from unary.datasets.phantom import PhantomConfig, build_phantom
from unary.detectors.filters import gaussian_kernel
from unary.detectors.laplacian import Laplacian, LaplacianConfig, pool_patch_set
from unary.detectors.windows import examine_in_batches, to_intensity
from unary.patches.bright_region import find_bright_region
from unary.patches.grid import GridConfig, tissue_origins
from unary.patches.patch_set import PatchSet, build_patch_set, join_patch_sets
from unary.patches.preparation import FULL_SCALE

CONFIG = LaplacianConfig()
SIZE_PX = 128
FLOOR = 1e-4
_Dtype = type[np.float32] | type[np.float64]


def build_patches(count: int, images: int, rows: int, cols: int) -> PatchSet:
    """Return so many patches with tissue, in random order, of phantoms."""
    sets = []
    for number in range(images):
        config = PhantomConfig(rows=rows, cols=cols, spacing_mm=0.07)
        phantom = build_phantom(config, rng=np.random.default_rng(number), lesions="calcifications")
        mask = find_bright_region(phantom.pixels)
        scaled = phantom.pixels.astype(np.float32) * (FULL_SCALE / phantom.pixels.max())
        pixels = np.where(mask, scaled, 0).astype(np.uint16)
        stride = max(int(np.sqrt(mask.sum() * images / count / 2)), 1)
        sets.append(build_patch_set(pixels, tissue_origins(mask, GridConfig(SIZE_PX, stride, 0.1)), size_px=SIZE_PX))
    joined = join_patch_sets(sets)
    return joined.subset(np.random.default_rng(0).permutation(len(joined))[:count])


def pool_formerly(patches: NDArray[np.uint16], kind: _Dtype = np.float32) -> NDArray[np.float64]:
    """The mean of the strongest pixels per scale, (n, scales), as it was computed before; or in float64."""
    values, pooled = to_intensity(patches).astype(kind, copy=False), []
    if kind is np.float64:
        values = patches / float(FULL_SCALE)
    rows, cols = values.shape[1:]
    for sigma in CONFIG.sigmas_px:
        across = smooth(rows, sigma, 2, kind) @ values @ smooth(cols, sigma, 0, kind).T
        along = smooth(rows, sigma, 0, kind) @ values @ smooth(cols, sigma, 2, kind).T
        response = (across + along) * -kind(sigma * sigma)
        window = [smooth(length, CONFIG.neighbourhood_px, 0, kind) for length in (rows, cols)]
        response /= np.sqrt(window[0] @ (response * response) @ window[1].T) + kind(FLOOR)
        flat = response.reshape(len(response), -1)
        first = flat.shape[1] - CONFIG.strongest
        pooled.append(np.partition(flat, first, axis=1)[:, first:].mean(axis=1, dtype=np.float64))
    return np.stack(pooled, axis=1)


@cache
def smooth(length: int, sigma: float, order: int, kind: _Dtype) -> NDArray[np.floating]:
    """A filter with mirrored borders as a dense matrix."""
    kernel = gaussian_kernel(sigma, 2 if order else 0)
    if order == 2:
        kernel = kernel - kernel.mean()
    return ndimage.correlate1d(np.eye(length), kernel, axis=0).astype(kind)


def compare_scores(patches: PatchSet, count: int) -> dict[str, float]:
    """How far scores lie from each other, in units of what they are among normal patches: largest and median."""
    some = patches.subset(np.arange(min(count, len(patches))))
    former, precise = (
        examine_in_batches(lambda batch, kind=kind: pool_formerly(batch, kind), some.gather, np.arange(len(some)))
        for kind in (np.float32, np.float64)
    )
    now = pool_patch_set(some, CONFIG)
    detector = Laplacian(CONFIG).fit_pooled(former, size_px=SIZE_PX)
    found = {"largest_pooled": float(np.abs(now / former - 1).max())}
    pairs = {"": (now, former), "_now_float64": (now, precise), "_former_float64": (former, precise)}
    for name, (one, other) in pairs.items():
        scores, others = detector.score_pooled(one), detector.score_pooled(other)
        difference = np.abs(scores - others) / np.maximum(np.abs(others), 1)
        found[f"largest{name}"], found[f"median{name}"] = float(difference.max()), float(np.median(difference))
    return found


def main() -> None:
    """Print table and JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=40_000)
    parser.add_argument("--former", type=int, default=4_000, help="how many of them the former arithmetic takes")
    parser.add_argument("--compared", type=int, default=2_000, help="how many scores are compared, in float64 as well")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", default="3328x2560", metavar="ROWSxCOLS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, cols = map(int, options.size.split("x"))
    patches = build_patches(options.patches, options.images, rows, cols)
    few = patches.subset(np.arange(min(options.former, len(patches))))
    pool_patch_set(few, CONFIG)  # what is compiled or computed once
    times: dict[str, list[float]] = {"former": [], "now": []}
    busy: dict[str, list[float]] = {"former": [], "now": []}
    for _ in range(options.rounds):
        for name, some in (("former", few), ("now", patches)):
            started, before = time.perf_counter(), time.process_time()
            if name == "now":
                pool_patch_set(some, CONFIG)
            else:
                examine_in_batches(pool_formerly, some.gather, np.arange(len(some)))
            times[name].append((time.perf_counter() - started) / len(some))
            busy[name].append((time.process_time() - before) / len(some))
    ratios = [former / now for former, now in zip(times["former"], times["now"], strict=True)]
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} of {os.cpu_count()} cores; {len(patches)} "
        f"patches of {SIZE_PX} px now, {len(few)} formerly; {options.rounds} rounds"
    )
    print(f"{'arithmetic':12s}{'us a patch':>12s}{'fastest':>10s}{'slowest':>10s}{'of processor':>14s}{'all, s':>9s}")
    for name, values in times.items():
        middle = statistics.median(values)
        print(
            f"{name:12s}{middle * 1e6:12.1f}{min(values) * 1e6:10.1f}{max(values) * 1e6:10.1f}"
            f"{statistics.median(busy[name]) * 1e6:14.1f}{middle * len(patches):9.1f}"
        )
    differences = compare_scores(patches, options.compared)
    ratio, processor = statistics.median(ratios), statistics.median(busy["former"]) / statistics.median(busy["now"])
    print(f"{ratio:.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f}); by processor time {processor:.1f}")
    for name, value in differences.items():
        print(f"difference of scores, {name.replace('_', ' ')}: {value:.1e}")
    print(
        json.dumps(
            {
                "patches": len(patches),
                "ratio": ratio,
                "ratio_of_processor_time": processor,
                "us_per_patch": {name: statistics.median(values) * 1e6 for name, values in times.items()},
                "differences": differences,
            }
        )
    )


if __name__ == "__main__":
    main()
