"""How much memory and time finding takes in an image of any size: each case in a process of its own, reading included.

The models are fitted on small phantoms, since neither depends on what a model has learned. The images are tissue on
60 % of their area, stored as TIFF of 16 bits. With a known pixel spacing of 0.07 mm the dense detectors work on a grid
of 0.14 mm, a quarter of the pixels; where it is unknown, on all of them. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
from scipy import ndimage

from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.detectors.blind_spot import BlindSpotConfig
from unary.detectors.fusion import Fusion, FusionConfig
from unary.detectors.laplacian import Laplacian
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import TrainingConfig
from unary.images.reading import read_image
from unary.models.bundle import read_model
from unary.models.examination import detect
from unary.models.fitting import fit
from unary.patches.preparation import PreparationConfig
from unary.training.engine import StepsConfig

SPACING_MM = 0.07
CASES = (  # and whether the pixel spacing is known
    ("fusion", True),
    ("fusion", False),
    ("wei2018", False),
    ("laplacian", False),
)


def write_image(path: Path, rows: int, cols: int) -> None:
    """Write noise on smooth tissue in half an ellipse at the left border, dark elsewhere; a band at a time."""
    rng = np.random.default_rng(0)
    coarse = ndimage.gaussian_filter(rng.normal(size=(rows // 16 + 1, cols // 16 + 1)).astype(np.float32), 4) * 4000
    pixels = tifffile.memmap(path, shape=(rows, cols), dtype=np.uint16)
    for start in range(0, rows, 256):
        down = np.arange(start, min(start + 256, rows))
        smooth = coarse[down // 16][:, np.arange(cols) // 16]
        tissue = np.clip(9000 + smooth + 300 * rng.standard_normal(smooth.shape, np.float32), 1, 16383)
        ellipse = ((down[:, None] / rows - 0.5) / 0.5) ** 2 + (np.arange(cols) / cols / 0.77) ** 2
        pixels[down] = np.where(ellipse < 1, tissue, rng.integers(20, 30, smooth.shape))
    pixels.flush()


def fit_models(folder: Path) -> None:
    """Fit one small model per detector."""
    config = PhantomConfig(rows=384, cols=320)
    normals = write_phantom_dataset(
        folder / "phantoms", patients_normal=6, patients_abnormal=0, config=config, seed=0, images_per_patient=1
    )
    detectors = {
        "fusion": Fusion(FusionConfig(blind_spot=BlindSpotConfig(training=StepsConfig(40, 2)))),
        "wei2018": Wei2018(Wei2018Config(training=TrainingConfig(epochs=2))),
        "laplacian": Laplacian(),
    }
    for name, detector in detectors.items():
        fit(normals, detector=detector, progress=False).save(folder / name)


def read_peak() -> int:
    """Return the largest resident set of this process so far, in kB; getrusage would count what started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def run_case(folder: Path, detector: str, *, known: bool) -> None:
    """Read, detect, and print what it took as JSON; in a process that has done nothing else."""
    torch.set_num_threads(1)
    model = read_model(folder / detector)
    if not known:
        model = dataclasses.replace(model, preparation=PreparationConfig())
    started, started_cpu = time.perf_counter(), time.process_time()
    image = read_image(folder / "image.tif")
    read = time.perf_counter()
    detection = detect(model, dataclasses.replace(image, spacing_mm=(SPACING_MM, SPACING_MM) if known else None))
    print(
        json.dumps(
            {
                "detector": detector,
                "size": list(image.shape),
                "spacing_mm": SPACING_MM if known else None,
                "seconds_to_read": round(read - started, 2),
                "seconds_to_detect": round(time.perf_counter() - read, 2),
                "cpu_seconds": round(time.process_time() - started_cpu, 2),
                "findings": len(detection.findings),
                "peak_gigabytes": round(read_peak() / 1e6, 3),
            }
        )
    )


def main() -> None:
    """Run all cases, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["3328x2560", "10000x10000"], metavar="ROWSxCOLS")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("unary").setLevel(logging.ERROR)
    if options.case:
        run_case(Path(options.case[0]), options.case[1], known=options.case[2] == "known")
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}"
    )
    print(f"{'size':>14s} {'detector':10s} {'spacing':>9s} {'read s':>7s} {'find s':>9s} {'CPU s':>7s} {'peak GB':>8s}")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit_models(folder)
        for size in options.sizes:
            rows, cols = map(int, size.split("x"))
            write_image(folder / "image.tif", rows, cols)
            for detector, known in CASES:
                command = [sys.executable, __file__, "--case", name, detector, "known" if known else "unknown"]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                result = json.loads(done.stdout.splitlines()[-1])
                results.append(result)
                spacing = f"{SPACING_MM} mm" if known else "unknown"
                print(
                    f"{size:>14s} {detector:10s} {spacing:>9s} {result['seconds_to_read']:7.2f} "
                    f"{result['seconds_to_detect']:9.2f} {result['cpu_seconds']:7.2f} {result['peak_gigabytes']:8.2f}",
                    flush=True,
                )
    peak = max(result["peak_gigabytes"] for result in results)
    print(json.dumps({"peak_gigabytes": peak, "cases": results}))


if __name__ == "__main__":
    main()
