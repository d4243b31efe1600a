"""Where the time of `unary detect` of one small image goes: Python, imports, torch, the model, the image itself.

Each part is a process of its own, run several times, of which the quickest counts. The image is a PNG of 400 x 300,
and no DICOM objects are written. What is left when the import of torch and the work on the image (a second one, in a
process that has examined a first) are taken from the whole is the start-up. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np

from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.models.bundle import write_model
from unary.models.fitting import FitConfig, fit
from unary.records import Manifest

WORK = """
import sys, time
from pathlib import Path
from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.images.isolation import IsolatedReader
from unary.models.bundle import read_model
from unary.profiles import DEFAULT
folder, image, out = map(Path, sys.argv[1:])
model, config = read_model(folder), DetectConfig(dicom=(), spacing_mm=0.2)
for number in range(3):
    reader = IsolatedReader()
    reader.read_attributes(image, DEFAULT.headers)
    begun = time.perf_counter()
    detect_files(model, [image], out / str(number), config, model_folder=folder, reader=reader, progress=False)
print(time.perf_counter() - begun)
"""
TORCH = "import torch"
TORCH_FREE = "import unary.clinic.batch_detection"
MODEL = "import sys; from unary.models.bundle import read_model; read_model(sys.argv[1])"


def measure(code: Sequence[str], repeats: int) -> float:
    """Return the seconds of the quickest of several processes."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - begun)
    return min(times)


def fit_small(folder: Path) -> Path:
    """Fit the default detector, hardly trained, on phantoms; return its folder."""
    from unary.detectors.blind_spot import BlindSpotConfig
    from unary.detectors.fusion import Fusion, FusionConfig
    from unary.training.engine import StepsConfig

    phantoms = PhantomConfig(rows=384, cols=320)
    manifest = write_phantom_dataset(
        folder / "phantoms", patients_normal=6, patients_abnormal=0, config=phantoms, seed=1
    )
    normals = Manifest(tuple(row for row in manifest.rows if row.label == "negative"))
    detector = Fusion(FusionConfig(blind_spot=BlindSpotConfig(training=StepsConfig(20, batch_size=8))))
    write_model(fit(normals, FitConfig(size_px=64, stride_px=32), detector=detector, progress=False), folder / "model")
    return folder / "model"


def write_image(path: Path) -> None:
    """Write something with tissue in it."""
    values = np.random.default_rng(0).normal(20000, 1000, (400, 300))
    values[:, 220:] = values[:40] = 0
    path.write_bytes(imagecodecs.png_encode(values.clip(0, 65535).astype(np.uint16)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, metavar="MODEL/", help="default: the default detector, fitted on phantoms"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="startup-") as place:
        model, image = options.model or fit_small(Path(place)), Path(place, "one.png")
        write_image(image)
        cli, many = ["-m", "unary.cli"], options.repeats
        names = (str(Path(place, f"out-{number}")) for number in range(many))
        found = {
            "python": measure(["-c", "pass"], many),
            "unary --version": measure([*cli, "--version"], many),
            "unary --help": measure([*cli, "--help"], many),
            "unary detect --help": measure([*cli, "detect", "--help"], many),
            "import torch": measure(["-c", TORCH], many),
            "import what detects": measure(["-c", TORCH_FREE], many),
            "read the model": measure(["-c", MODEL, str(model)], many),
        }
        given = ["--dicom", "none", "--spacing-mm", "0.2"]
        found["unary detect"] = min(
            measure([*cli, "detect", str(model), str(image), "--out", name, *given], 1) for name in names
        )
        works = (str(Path(place, f"work-{number}")) for number in range(many))
        command = [sys.executable, "-c", WORK, str(model), str(image)]
        found["the image"] = min(
            float(subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout) for name in works
        )
        imports = subprocess.run(
            [sys.executable, "-c", f"{MODEL}; print('torch' in sys.modules)", str(model)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    uses_torch = imports.strip() == "True"
    torch = found["import torch"] - found["python"] if uses_torch else 0.0
    found["start-up without torch"] = found["unary detect"] - torch - found["the image"]
    for name, seconds in found.items():
        print(f"{name:24s} {seconds:6.2f} s")
    print(json.dumps({
        "benchmark": "startup",
        "torch": uses_torch,
        "seconds": {name: round(seconds, 3) for name, seconds in found.items()},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
