"""One mammogram by the default and by the paper's network, against MONAI's sliding window and onnxruntime.

All see the box of the tissue of one phantom of full size, of weights fitted on small phantoms, since time does not
depend on what a model has learned. Of the paper's network all make the same map: windows that overlap by half, the same
weights of blending, batches of 64; onnxruntime runs the network as torch exports it, in MONAI's windows, and the graph
that `unary export` writes. Of the default, the whole fusion is compared with its exported graph, and its network alone,
which takes most of the time, with MONAI's sliding window in tiles that overlap by what the network sees. All take
turns, and the median of the rounds counts. Last comes one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import fit_models
from numpy.typing import NDArray
from scoring import NOWHERE, SIZE_PX, STRIDE_PX, cut_to_tissue, map_with_monai, write_images

from unary.detectors.blind_spot import fine_structure, measure_surprise
from unary.detectors.protocol import View
from unary.images.reading import read_image
from unary.models.bundle import Model, read_model
from unary.models.exporting import export_model
from unary.patches.preparation import FULL_SCALE, prepare_image
from unary.patches.stitching import taper_window

TILE_PX = 256
Maps = dict[str, Callable[[], NDArray[np.float32] | None]]


def start_session(network: torch.nn.Module, threads: int) -> Any:
    """Return the paper's network in onnxruntime, exported by torch for any number of windows."""
    import onnxruntime

    example, file = torch.zeros(2, 1, SIZE_PX, SIZE_PX), io.BytesIO()
    torch.onnx.export(
        network.float().eval(),
        (example,),
        file,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("windows")},),
        external_data=False,
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])


def map_with_session(session: Any, pixels: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The same absolute error by onnxruntime in MONAI's sliding window."""
    from monai.inferers import sliding_window_inference

    name = session.get_inputs()[0].name
    image = torch.from_numpy(pixels.astype(np.float32) / np.float32(FULL_SCALE))[None, None]
    with torch.inference_mode():
        found = sliding_window_inference(
            image,
            (SIZE_PX, SIZE_PX),
            64,
            lambda windows: (windows - torch.from_numpy(session.run(None, {name: windows.numpy()})[0])).abs(),
            overlap=1 - STRIDE_PX / SIZE_PX,
            roi_weight_map=torch.from_numpy(taper_window(SIZE_PX))[None, None],
        )
    answer: NDArray[np.float32] = found[0, 0].numpy()
    return answer


def predict_with_monai(network: Any, view: View) -> NDArray[np.float32]:
    """Mean and log spread of the default's network, tile by tile, by MONAI's sliding window."""
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        structure = fine_structure(
            torch.from_numpy(view.pixels.astype(np.float32) / np.float32(FULL_SCALE))[None, None]
        )
        found = sliding_window_inference(
            structure,
            (TILE_PX, TILE_PX),
            4,
            lambda tiles: torch.cat(network(tiles.contiguous(memory_format=torch.channels_last)), dim=1),
            overlap=2 * network.reach_px / TILE_PX,
        )
    answer: NDArray[np.float32] = found[0].numpy()
    return answer


def examine(model: Model, view: View) -> NDArray[np.float32] | None:
    """A model's map alone, without scores of patches."""
    return model.detector.examine(view, NOWHERE, size_px=model.grid.size_px).anomaly_map


def list_maps(folder: Path, image: Path, threads: int) -> tuple[dict[str, Maps], float]:
    """Return what is timed, by what it is compared with, the first of each being ours; and the share of tissue."""
    models = {name: read_model(folder / name) for name in ("fusion", "wei2018")}
    stored = read_image(image)
    whole = {name: prepare_image(stored, model.preparation) for name, model in models.items()}
    box = {name: cut_to_tissue(prepared) for name, prepared in whole.items()}
    exported = {}
    for name in models:
        export_model(folder / name, folder / f"{name}-onnx")
        exported[name] = read_model(folder / f"{name}-onnx")
    paper, fusion = models["wei2018"], models["fusion"]
    torch_network, session = paper.detector.network, start_session(paper.detector.network, threads)
    blind_spot = next(part.detector for part in fusion.detector.parts if part.name == "blind_spot").network
    return {
        "the paper's network": {
            "unary": lambda: examine(paper, box["wei2018"]),
            "MONAI, torch": lambda: map_with_monai(torch_network, box["wei2018"].pixels),
            "MONAI, torch, whole image": lambda: map_with_monai(torch_network, whole["wei2018"].pixels),
            "MONAI, onnxruntime": lambda: map_with_session(session, box["wei2018"].pixels),
            "unary export, onnxruntime": lambda: examine(exported["wei2018"], box["wei2018"]),
        },
        "the default": {
            "unary": lambda: examine(fusion, box["fusion"]),
            "unary export, onnxruntime": lambda: examine(exported["fusion"], box["fusion"]),
        },
        "the default's network alone": {
            "unary": lambda: measure_surprise(blind_spot, box["fusion"].tissue),
            "MONAI, torch": lambda: predict_with_monai(blind_spot, box["fusion"]),
            "MONAI, torch, no rounding": lambda: predict_with_monai(blind_spot.without_rounding(), box["fusion"]),
        },
    }, float(whole["wei2018"].mask.mean())


def main() -> None:
    """Print table and JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="3328x2560", metavar="ROWSxCOLS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    missing = [name for name in ("monai", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"left out: {', '.join(missing)} not installed (pip install 'unary[bench]')")
        return
    torch.set_num_threads(options.threads)
    logging.getLogger("unary").setLevel(logging.ERROR)
    rows, cols = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit_models(folder)
        files = write_images(folder, rows, cols)
        groups, share = list_maps(folder, files["read uncompressed"], options.threads)
        times: dict[str, dict[str, list[float]]] = {group: {} for group in groups}
        found: dict[str, dict[str, NDArray[np.float32] | None]] = {group: {} for group in groups}
        for turn in range(options.rounds + 1):
            for group, maps in groups.items():
                for who, make in maps.items():
                    started = time.perf_counter()
                    found[group][who] = make()
                    if turn:  # the first round warms up
                        times[group].setdefault(who, []).append(time.perf_counter() - started)
    report(times, found, f"{rows} x {cols} px, tissue on {share:.0%}; {options.threads} of {os.cpu_count()} cores")


def report(
    times: dict[str, dict[str, list[float]]], found: dict[str, dict[str, NDArray[np.float32] | None]], what: str
) -> None:
    """Print seconds, ratios to ours, and how far maps of one shape differ from ours."""
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}; {what}")
    print(f"{'':52s}{'seconds':>9s}{'fastest':>9s}{'slowest':>9s}{'ratio':>7s}{'difference':>12s}")
    result: dict[str, dict[str, dict[str, float | None]]] = {}
    for group, by_who in times.items():
        ours, own_map = statistics.median(by_who["unary"]), found[group]["unary"]
        for who, values in by_who.items():
            other, difference = found[group][who], None
            if own_map is not None and other is not None and other.shape == own_map.shape and who != "unary":
                difference = float(np.nanmax(np.abs(other - own_map)))
            middle = statistics.median(values)
            result.setdefault(group, {})[who] = {"seconds": middle, "ratio": middle / ours, "difference": difference}
            told = "" if difference is None else f"{difference:12.1e}"
            print(
                f"{group + ': ' + who:52s}{middle:9.3f}{min(values):9.3f}{max(values):9.3f}{middle / ours:7.2f}{told}"
            )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
