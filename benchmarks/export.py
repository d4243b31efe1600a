"""An exported model beside the model that it was made of: speed, memory, size, and the time to start.

    python benchmarks/export.py MODEL/ EXPORT/ IMAGE... [--repeats 3]

Each image is examined by both, alternating, after preparation: times are of the detector alone, as ratios within this
run. Then either examines a noisy disc of 3328 x 2560 working pixels in a process of its own, which tells its peak of
memory less what it had before; and ``unary detect EXPORT/ ONE.png --dicom none`` is started, whose time is told beside
that of the work on the image. Parity is told by ``unary export --images``. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from unary.images.reading import read_image
from unary.models.bundle import Model, read_model
from unary.models.examination import map_prepared
from unary.models.exported import GRAPH_FILE
from unary.patches.preparation import PreparedImage, prepare_image
from unary.training.threads import count_threads, using_threads

LARGE = (3328, 2560)


def time_once(model: Model, prepared: PreparedImage) -> float:
    start = time.perf_counter()
    map_prepared(model.detector, prepared, model.grid, model.profile.lengths)
    return time.perf_counter() - start


def compare_speed(model: Model, exported: Model, images: list[Path], repeats: int) -> list[float]:
    """The exported model's time over the model's, image by image, the median of repeats, on one thread."""
    ratios = []
    with using_threads(1):
        for path in images:
            prepared = prepare_image(read_image(path), model.preparation)
            for one in (model, exported):
                time_once(one, prepared)  # once for all that is loaded at first use
            pairs = [(time_once(exported, prepared), time_once(model, prepared)) for _ in range(repeats)]
            ratios.append(statistics.median(other / own for other, own in pairs))
            size = f"{prepared.shape[0]} x {prepared.shape[1]} working px"
            print(f"image {len(ratios)}: {size}, {ratios[-1]:.2f} x the model's time")
    return ratios


def draw_large() -> PreparedImage:
    """A noisy disc that fills the picture."""
    rng = np.random.default_rng(0)
    row, col = np.ogrid[: LARGE[0], : LARGE[1]]
    mask = ((row / LARGE[0] - 0.5) ** 2 + (col / LARGE[1] - 0.5) ** 2) < 0.24
    noise = rng.normal(26000, 1500, LARGE).clip(1, 65535)
    return PreparedImage(np.where(mask, noise, 0).astype(np.uint16), mask, (1.0, 1.0), LARGE, None)


def tell_memory(folder: Path) -> None:
    """Examine the large picture, and print by how much that raised the peak, in MB."""
    model, prepared = read_model(folder), draw_large()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    map_prepared(model.detector, prepared, model.grid, model.profile.lengths)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def measure_memory(folder: Path) -> float:
    command = [sys.executable, __file__, str(folder), str(folder), "--memory"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_start(exported: Path, image: Path, repeats: int) -> tuple[float, float]:
    """Seconds of the whole command, and of the work on its image in a process that has done one before."""
    with tempfile.TemporaryDirectory() as place:
        stored = read_image(image)
        picture, spacing = Path(place) / "one.tiff", float(np.mean(stored.spacing_mm or (0.07, 0.07)))
        tifffile.imwrite(picture, stored.pixels.astype(np.uint16))
        command = [sys.executable, "-m", "unary.cli", "detect", str(exported), str(picture), "--dicom", "none"]
        script = (
            "import sys, time\nfrom unary.cli.main import main\n"
            "for out in ('a', 'b'):\n    start = time.perf_counter()\n"
            "    main([*sys.argv[1:], '--out', f'{sys.argv[3]}-{out}'])\nprint(time.perf_counter() - start)"
        )
        whole, work = [], []
        for number in range(repeats):
            options = [*command[3:], "--spacing-mm", f"{spacing:g}"]
            start = time.perf_counter()
            subprocess.run([*command[:3], *options, "--out", f"{place}/{number}"], capture_output=True, check=True)
            whole.append(time.perf_counter() - start)
            inside = [sys.executable, "-c", script, *options]
            work.append(float(subprocess.run(inside, capture_output=True, text=True, check=True).stdout.split()[-1]))
            for left in Path(place).glob("one.tiff-*"):
                left.rename(left.with_name(f"{number}-{left.name}"))
    return statistics.median(whole), statistics.median(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("exported", type=Path)
    parser.add_argument("images", type=Path, nargs="*")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="tell the memory that MODEL/ takes, and nothing else")
    options = parser.parse_args()
    if options.memory:
        return tell_memory(options.model)
    model, exported = read_model(options.model), read_model(options.exported)
    ratios = compare_speed(model, exported, options.images, options.repeats)
    memory = [measure_memory(folder) for folder in (options.model, options.exported)]
    whole, work = measure_start(options.exported, options.images[0], options.repeats)
    size = (options.exported / GRAPH_FILE).stat().st_size
    print(
        f"time of the exported model over the model's: median {statistics.median(ratios):.2f}, of {len(ratios)} images"
    )
    print(f"memory of {LARGE[0]} x {LARGE[1]} working px: model {memory[0]:.0f} MB, exported {memory[1]:.0f} MB")
    print(f"unary detect of one image: {whole:.2f} s, of which {work:.2f} s are work on it: start {whole - work:.2f} s")
    told = {
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "memory_mb": {"model": memory[0], "exported": memory[1]},
        "start_s": whole - work,
        "whole_s": whole,
        "graph_bytes": size,
        "threads": count_threads(),
    }
    print(json.dumps(told))
    return None


if __name__ == "__main__":
    main()
