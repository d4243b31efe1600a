"""Is drift noticed, and nothing where there is none? Real normal images, as they are and changed, in simulated streams.

Each normal image is examined as it is and as three changed scanners would have made it: values 10 % higher, noise
20 % stronger, and another maker's tone curve (a power of 0.8). Then streams of studies are drawn from these results,
patients with replacement; after the first studies, those of a changed scanner come. `unary.evaluation.monitoring`
watches each stream. Patients recur, so that streams are more alike than a hospital's; a study is one image.

Prints how many of the streams have a signal before the change, after it, and after how many studies; one JSON line
last.

    python benchmarks/monitoring.py MODEL/ NORMALS.csv --out DIR [--before 300] [--after 150] [--streams 100]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from scipy import ndimage

from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.clinic.monitoring import monitor_results
from unary.clinic.result_folder import read_whole_result
from unary.datasets.manifest import read_manifest
from unary.datasets.simulated.tissue import measure_tissue
from unary.evaluation.monitoring import Observation, watch
from unary.evaluation.monitoring_limits import MonitorLimits
from unary.models.bundle import read_model
from unary.patches.collection import read_row
from unary.patches.preparation import enlarge, prepare_image
from unary.progress import show_progress
from unary.records import NOTICE, Image, ManifestRow

CHANGES = ("none", "gain", "noise", "curve")
TITLES = {"none": "none", "gain": "values + 10 %", "noise": "noise + 20 %", "curve": "another tone curve"}
_POWER, _GAIN, _NOISE = 0.8, 1.1, 1.2
_PER_MONTH = 30


def change_pixels(image: Image, mask: NDArray[np.bool_], change: str, rng: np.random.Generator) -> NDArray[Any]:
    """Return an image's pixels as a changed scanner would have made them."""
    low, high = image.value_range
    values = image.pixels.astype(np.float32)
    if change == "gain":
        values *= _GAIN
    elif change == "curve":
        values = high * (np.clip(values, 0, high) / high) ** _POWER
    elif change == "noise":
        tissue = measure_tissue(image.pixels, mask, float(np.mean(image.spacing_mm or (0.1,))))
        cells = np.interp(tissue.level, tissue.levels, tissue.grain_at).astype(np.float32)
        grain = np.kron(cells, np.ones((tissue.step, tissue.step), np.float32))
        grain = np.pad(grain, [(0, max(0, n - m)) for n, m in zip(values.shape, grain.shape, strict=True)], mode="edge")
        added = ndimage.gaussian_filter(rng.standard_normal(values.shape, np.float32), tissue.blur_px)
        added *= np.sqrt(_NOISE**2 - 1) / added.std()
        values += np.where(mask, added * grain[: values.shape[0], : values.shape[1]], 0)
    return np.rint(np.clip(values, low, high)).astype(image.pixels.dtype)


def write_changed(rows: tuple[ManifestRow, ...], folder: Path, change: str, model: Any) -> list[Path]:
    """Write the images of a changed scanner as DICOM; those there already stay."""
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(show_progress(rows, title=f"writing: {change}", unit="image")):
        path = folder / f"{row.image_id}.dcm"
        paths.append(path)
        if path.exists() or row.path is None:
            continue
        image = read_row(row)
        prepared = prepare_image(image, model.preparation)
        mask = enlarge(prepared.mask, prepared)
        pixels = change_pixels(image, mask, change, np.random.default_rng(number))
        dataset = pydicom.dcmread(row.path)
        dataset.PixelData = pixels.astype("<u2").tobytes()
        uid = generate_uid(entropy_srcs=[row.image_id, change])
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.save_as(path, enforce_file_format=True)
    return paths


def read_observations(folder: Path) -> dict[str, Observation]:
    """The results of a folder by the name of their file."""
    names = {}
    for place in sorted(folder.iterdir()):
        found = read_whole_result(place) if place.is_dir() else None
        if found is not None:
            own = monitor_results([place])
            (scanner,) = own.scanners
            medians = dict(scanner.months[0].medians)
            alarmed = len(found["findings"]) > 0
            names[place.name] = Observation("A", place.name, "2026-01", ("", place.name), alarmed, medians, {})
    return names


def draw_stream(
    sources: dict[str, dict[str, Observation]],
    patients: dict[str, list[str]],
    change: str,
    sizes: tuple[int, int],
    rng: np.random.Generator,
) -> list[Observation]:
    """Return studies of one image each, the later ones of a changed scanner, thirty a month."""
    names = sorted(patients)
    stream = []
    for number in range(sum(sizes)):
        image = str(rng.choice(patients[names[rng.integers(len(names))]]))
        source = sources["none" if number < sizes[0] else change][image]
        month = number // _PER_MONTH
        when = f"{2026 + month // 12}-{month % 12 + 1:02d}"
        # no two images of a scanner are quite alike: a hundredth, so that the same image is no tie
        values = {key: value * float(np.exp(0.01 * rng.normal())) for key, value in source.values.items()}
        order = ("", f"{number:06d}")
        stream.append(dataclasses.replace(source, study=str(number), month=when, order=order, values=values))
    return stream


def measure(
    sources: dict[str, dict[str, Observation]],
    patients: dict[str, list[str]],
    point: dict[str, Any],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Return a row for each change."""
    rows = []
    limits = MonitorLimits(average_run_length=options.run_length)
    sizes = (options.before, options.after)
    for change in CHANGES:
        early = late = 0
        broken, delays, what = 0, [], dict[str, int]()
        for stream_number in range(options.streams):
            rng = np.random.default_rng([CHANGES.index(change), stream_number])
            stream = draw_stream(sources, patients, change, sizes, rng)
            (scanner,) = watch(stream, {}, point, limits).scanners
            places = [
                (place, key) for key, each in scanner.charts.items() if each.chart for place, _ in each.chart.signals
            ]
            after = sorted((place, key) for place, key in places if place >= options.before)
            early += any(place < options.before for place, _ in places)
            late += bool(after)
            if scanner.guarantee is not None:
                broken += bool(scanner.guarantee.capital.max() >= scanner.guarantee.needed)
            if after:
                delays.append(after[0][0] - options.before + 1)
                what[after[0][1]] = what.get(after[0][1], 0) + 1
        rows.append(
            {
                "change": change,
                "streams": options.streams,
                "signal_before": early,
                "signal_after": late,
                "median_studies": float(np.median(delays)) if delays else None,
                "first_in": what,
                "guarantee_broken": broken,
            }
        )
    return rows


def main() -> None:
    """Write, examine, watch; print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", type=int, default=300)
    parser.add_argument("--after", type=int, default=150)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--run-length", type=float, default=5000.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    model, rows = read_model(options.model), read_manifest(options.manifest).rows
    sources = {}
    for change in CHANGES:
        paths = write_changed(rows, options.out / "images" / change, change, model)
        folder = options.out / "results" / change
        detect_files(model, paths, folder, DetectConfig(dicom=()), model_folder=options.model)
        sources[change] = read_observations(folder)
    patients: dict[str, list[str]] = {}
    for row in rows:
        if all(row.image_id in found for found in sources.values()):
            patients.setdefault(row.patient_id, []).append(row.image_id)
    assert model.calibration is not None
    point = dataclasses.asdict(model.calibration.find_operating_point("1"))
    found = measure(sources, patients, point, options)
    print(f"| change after {options.before} studies | streams | signal before | after | median studies | first in |")
    print("|---" * 6 + "|")
    for row in found:
        first = ", ".join(f"{key} {count}" for key, count in sorted(row["first_in"].items()))
        cells = [
            TITLES[row["change"]],
            row["streams"],
            row["signal_before"],
            row["signal_after"],
            row["median_studies"],
        ]
        print("| " + " | ".join(map(str, [*cells, first])) + " |")
    print(f"\n{NOTICE}")
    print(json.dumps({"monitoring": found, "images": sum(map(len, patients.values())), "patients": len(patients)}))


if __name__ == "__main__":
    main()
