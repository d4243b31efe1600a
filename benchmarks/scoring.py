"""How long one image takes from file to findings, by stage, and the same windows scored by MONAI's sliding window.

All take turns, so that a noisy machine slows all, and the median of the rounds counts; a folder of images comes once.
The models are fitted on small phantoms, since time does not depend on what a model has learned; the image is a phantom
of full size. Without MONAI (the extra `bench`) that comparison is left out. Last comes one JSON line.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import logging
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from memory import fit_models
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1
from training import count_multiply_adds, measure_arithmetic, measure_traffic

from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.detectors.protocol import View
from unary.images.reading import read_image
from unary.models.bundle import Model, read_model
from unary.models.examination import ScoredImage, build_detection, choose_point, map_prepared
from unary.models.findings import find_candidates
from unary.patches.bright_region import find_bright_region
from unary.patches.grid import GridConfig, tissue_origins
from unary.patches.patch_set import cut_window, find_window
from unary.patches.preparation import FULL_SCALE, PreparedImage, prepare_image
from unary.patches.stitching import taper_window

SPACING_MM = 0.07
SIZE_PX, STRIDE_PX = 128, 64
NOWHERE = np.zeros((0, 2), np.int32)  # no patch is asked for
IMAGES = 100  # of the folder
Times = dict[str, list[float]]


def write_images(folder: Path, rows: int, cols: int) -> dict[str, Path]:
    """Write one phantom in three encodings; leave out those without an encoder here."""
    config = PhantomConfig(rows=rows, cols=cols, spacing_mm=SPACING_MM)
    plain = folder / "plain.dcm"
    phantom = build_phantom(config, rng=np.random.default_rng(0), lesions="calcifications")
    write_phantom(phantom, plain, image_id="plain", patient_id="plain")
    files = {"read uncompressed": plain}
    dataset = pydicom.dcmread(plain)
    dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    dataset.save_as(folder / "jpeg2000.dcm")
    files["read JPEG 2000"] = folder / "jpeg2000.dcm"
    if _write_jpeg_lossless(plain, folder / "jpeg.dcm"):
        files["read JPEG lossless"] = folder / "jpeg.dcm"
    else:
        print("left out: JPEG lossless, for which there is no encoder here")
    return files


def _write_jpeg_lossless(plain: Path, path: Path) -> bool:
    if importlib.util.find_spec("gdcm") is None:
        return False
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    if not reader.Read():
        return False
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    if not change.Change():
        return False
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    return bool(writer.Write()) and pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEGLosslessSV1


def time_call(times: Times, name: str, function: Callable[[], Any]) -> Any:
    """Call, and add the seconds that it took to a name."""
    started = time.perf_counter()
    answer = function()
    times.setdefault(name, []).append(time.perf_counter() - started)
    return answer


def find_in_stages(times: Times, model: Model, files: dict[str, Path]) -> PreparedImage:
    """From every file to an image, and from there to findings, each stage timed."""
    images = [time_call(times, name, functools.partial(read_image, path)) for name, path in files.items()]
    time_call(times, "tissue mask", lambda: find_bright_region(images[0].pixels))  # which preparing does as well
    prepared = time_call(times, "prepare", lambda: prepare_image(images[0], model.preparation))
    origins, examined = time_call(
        times, "map", lambda: map_prepared(model.detector, prepared, model.grid, model.profile.lengths)
    )
    candidates = time_call(
        times,
        "candidates",
        lambda: find_candidates(examined.require_map(), model.level, model.findings, spacing_mm=prepared.spacing_mm),
    )
    scored = ScoredImage(prepared, origins, examined.scores, examined.require_map(), candidates)
    point = choose_point(model, None)
    time_call(times, "findings", lambda: build_detection(scored, model, point))
    return prepared


def map_with_monai(network: torch.nn.Module, pixels: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The same absolute error by MONAI's sliding window: same network, windows, weights and batch."""
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        image = torch.from_numpy(pixels.astype(np.float32) / np.float32(FULL_SCALE))[None, None]
        found = sliding_window_inference(
            image,
            (SIZE_PX, SIZE_PX),
            64,
            lambda windows: (windows - network(windows)).abs(),
            overlap=1 - STRIDE_PX / SIZE_PX,
            roi_weight_map=torch.from_numpy(taper_window(SIZE_PX))[None, None],
        )
    answer: NDArray[np.float32] = found[0, 0].numpy()
    return answer


def cut_to_tissue(prepared: PreparedImage) -> View:
    """The box of the tissue and its margin, which is what detectors see of an image."""
    window = find_window(prepared.mask, NOWHERE, size_px=SIZE_PX)
    return View(cut_window(prepared.pixels, window), cut_window(prepared.mask, window))


def map_with_unary(model: Model, view: View) -> NDArray[np.float32]:
    """The map alone, without scores of patches."""
    return model.detector.examine(view, NOWHERE, size_px=SIZE_PX).anomaly_map


def print_floors(name: str, multiply_adds: float, size: float, arithmetic: list[float], traffic: list[float]) -> None:
    """What the processor and the memory alone would take."""
    computed, moved = multiply_adds / statistics.median(arithmetic), size / statistics.median(traffic)
    print(
        f"{name}: {multiply_adds / 1e9:.1f} billion multiply-adds, arithmetic floor {computed:.3f} s; "
        f"{size / 1e6:.0f} MB read and written once, memory-traffic floor {moved:.3f} s"
    )


def count_network(model: Model, windows: int) -> float:
    """Multiply-adds of the paper's network, forward alone."""
    config = model.detector.network.config
    first = (config.size_px // 2) ** 2 * config.channels * config.widths[0] * 9
    return windows * (count_multiply_adds(config) + first) / 3


def count_fusion(model: Model, tissue_px: int) -> float:
    """Multiply-adds of the fusion's network, which are nearly all that it computes."""
    config = next(part.detector for part in model.detector.parts if part.name == "blind_spot").network.config
    around = config.window_px**2 - (2 * config.hole_px + 1) ** 2
    local = 9 * config.features * (1 + config.features)
    return tissue_px * (local + around * config.features * config.hidden + config.hidden * (config.hidden + 2))


def run_command(*words: str) -> tuple[float, float]:
    """Return the seconds of a command, and how many cores it kept busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    code = "import sys; from unary.cli.main import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / seconds


def run_commands(times: Times, folder: Path, commands: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """Start the program as a user does, into an empty folder ``out``; return how many cores each kept busy."""
    busy = {}
    for name, words in commands.items():
        shutil.rmtree(folder / "out", ignore_errors=True)
        seconds, busy[name] = run_command(*words)
        times.setdefault(name, []).append(seconds)
    return busy


def list_commands(folder: Path, plain: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The commands of a start, and those on a folder of images, which is made here."""
    many = folder / "many"
    many.mkdir()
    for number in range(IMAGES):
        os.link(plain, many / f"{number}.dcm")
    out = ("--out", str(folder / "out"))
    score, detect = (("score", str(folder / "fusion")), ("detect", str(folder / "fusion")))
    return {
        "unary --help": ("--help",),
        "unary score, one image": (*score, str(plain), *out),
        "unary detect, one image": (*detect, str(plain), "--dicom", "none", *out),
    }, {
        f"unary detect, {IMAGES} images": (*detect, str(many), "--dicom", "none", *out),
        "unary detect with DICOM results": (*detect, str(many), *out),
    }


def main() -> None:
    """Time all, print floors, table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="3328x2560", metavar="ROWSxCOLS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-commands", action="store_true", help="leave out starting the program")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("unary").setLevel(logging.ERROR)
    rows, cols = map(int, options.size.split("x"))
    with_monai = importlib.util.find_spec("monai") is not None
    if not with_monai:
        print("left out: MONAI, which is not installed (pip install 'unary[bench]')")
    with tempfile.TemporaryDirectory() as name:
        report(Path(name), (rows, cols), options, with_monai=with_monai)


def report(folder: Path, shape: tuple[int, int], options: argparse.Namespace, *, with_monai: bool) -> None:
    """Do what `main` says in a folder."""
    fit_models(folder)
    files = write_images(folder, *shape)
    fusion, paper = read_model(folder / "fusion"), read_model(folder / "wei2018")
    whole = prepare_image(read_image(files["read uncompressed"]), paper.preparation)
    box = cut_to_tissue(whole)
    score = functools.partial(map_with_unary, paper)
    compare = functools.partial(map_with_monai, paper.detector.network)
    times: Times = {}
    arithmetic, traffic, difference = [], [], 0.0
    starts, folders = list_commands(folder, files["read uncompressed"])
    for turn in range(options.rounds + 1):
        if turn == 1:  # the first round warms up
            times.clear()
        arithmetic.append(measure_arithmetic())
        traffic.append(measure_traffic())
        prepared = find_in_stages(times, fusion, files)
        found = time_call(times, "wei2018: unary", lambda: score(box))
        if with_monai:
            other = time_call(times, "wei2018: MONAI", lambda: compare(box.pixels))
            time_call(times, "wei2018: MONAI, whole image", lambda: compare(whole.pixels))
            difference = float(np.nanmax(np.abs(found - other)))
        if not options.no_commands:
            run_commands(times, folder, starts)
    busy = {} if options.no_commands else run_commands(times, folder, folders)
    medians = {name: statistics.median(values) for name, values in times.items()}
    windows = len(tissue_origins(box.mask, GridConfig(SIZE_PX, STRIDE_PX, 0.0)))
    tissue_px = int(prepared.mask.sum())
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} of {os.cpu_count()} cores, torch "
        f"{torch.__version__}; {shape[0]} x {shape[1]} px, tissue on {prepared.mask.mean():.0%}"
    )
    print_floors(f"wei2018, {windows} windows", count_network(paper, windows), 6 * box.mask.size, arithmetic, traffic)
    print_floors("fusion", count_fusion(fusion, tissue_px), 6 * prepared.mask.size, arithmetic, traffic)
    print(f"{'stage':32s}{'seconds':>9s}{'fastest':>9s}{'slowest':>9s}{'MP/s':>9s}")
    for stage, values in times.items():
        speed = f"{shape[0] * shape[1] / 1e6 / medians[stage]:9.0f}" if "unary " not in stage else ""
        print(f"{stage:32s}{medians[stage]:9.3f}{min(values):9.3f}{max(values):9.3f}{speed}")
    after = sum(medians[stage] for stage in ("prepare", "map", "candidates", "findings"))
    print(f"{'all after reading':32s}{after:9.3f}")
    result: dict[str, Any] = {"seconds": after, "ratio_to_monai": None, "seconds_by_stage": medians}
    if with_monai:
        ours = medians["wei2018: unary"]
        result["ratio_to_monai"] = medians["wei2018: MONAI"] / ours
        result["ratio_to_monai_whole_image"] = medians["wei2018: MONAI, whole image"] / ours
        result["largest_difference"] = difference
        print(
            f"times MONAI on the box of the tissue: {result['ratio_to_monai']:.2f}, on the whole image: "
            f"{result['ratio_to_monai_whole_image']:.2f}; maps differ by at most {difference:.1e}"
        )
    for name, cores in busy.items():
        print(f"{name}: {cores:.2f} cores busy, start-up included")
    result["cores_busy"] = busy
    print(json.dumps(result))


if __name__ == "__main__":
    main()
