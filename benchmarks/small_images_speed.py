"""How the evaluation of many small images grows: time per image, memory, and the statistics of very many.

Pictures of 224 x 224 pixels, each a file of its own, a quarter of them with one outlined spot. The detector that the
profile `general` names, and the `laplacian` yardstick, are fitted on some and evaluated on the others by the command
that a user types, in a process of its own, once for each number of images; its children's memory is in the peak. Then
the statistics alone, of as many images as evaluated ones are repeated under other names with other scores. Last comes
one JSON line.
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
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from unary.datasets.manifest import read_manifest
from unary.evaluation import evaluate as evaluating
from unary.models.bundle import read_model
from unary.models.fitting import FitConfig, fit
from unary.outputs.evaluation_report import write_evaluation

SIDE_PX, SPOT_PX = 224, 8
NORMALS = 40  # that are learned from
SOURCES = 200  # evaluated images that are repeated for the statistics
DETECTORS = ("nearest_neighbour", "laplacian")


def write_pictures(folder: Path, name: str, count: int, *, spots: bool) -> Path:
    """Write so many pictures and their manifest."""
    rng = np.random.default_rng(len(name))
    textures = [_draw_texture(rng) for _ in range(64)]
    (folder / name).mkdir()
    rows, lesions = ["image_id,patient_id,path,label"], ["image_id,name,kind,points,radius_px"]
    ys, xs = np.ogrid[:SIDE_PX, :SIDE_PX]
    for number in range(count):
        picture = np.roll(textures[number % 64], rng.integers(SIDE_PX, size=2), axis=(0, 1))
        picture = picture + rng.normal(size=picture.shape) * 3
        positive = spots and number % 4 == 3
        if positive:
            y, x = rng.integers(30, SIDE_PX - 30, 2)
            picture = picture + 60 * np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / 50)
            lesions.append(f"{name}{number},spot,circle,{y} {x},{SPOT_PX}")
        path = folder / name / f"{number}.png"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)
        rows.append(f"{name}{number},{name}{number},{path},{'positive' if positive else 'negative'}")
    manifest = folder / f"{name}.csv"
    manifest.write_text("\n".join(rows) + "\n")
    if spots:
        (folder / f"{name}.lesions.csv").write_text("\n".join(lesions) + "\n")
    return manifest


def _draw_texture(rng: np.random.Generator) -> NDArray[np.float64]:
    fine = ndimage.gaussian_filter(rng.normal(size=(SIDE_PX, SIDE_PX)), 3, mode="wrap")
    wide = ndimage.gaussian_filter(rng.normal(size=(SIDE_PX, SIDE_PX)), 20, mode="wrap")
    return np.asarray(110 + 25 * fine / fine.std() + 20 * wide / wide.std())


def run_watched(*words: str) -> tuple[float, float, float, str]:
    """Run Python; return seconds, processor seconds, the most memory of it and its children in GB, and what it said."""
    before = os.times()
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    most = [0.0]
    watch = threading.Thread(target=_watch, args=(process, most), daemon=True)
    watch.start()
    said = process.communicate()[0]
    seconds = time.perf_counter() - started
    watch.join()
    if process.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(words)} fails with {process.returncode}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used, most[0], said


def _watch(process: subprocess.Popen[str], most: list[float]) -> None:
    """Add up the resident memory of a process and its children, four times a second."""
    while process.poll() is None:
        found = subprocess.run(
            ["ps", "-o", "rss=", "--pid", str(process.pid), "--ppid", str(process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        most[0] = max(most[0], sum(map(int, found.stdout.split())) * 1024 / 1e9)
        time.sleep(0.25)


def measure_growth(folder: Path, counts: list[int], workers: int) -> list[dict[str, Any]]:
    """Evaluate the first so many images, by detector and number."""
    rows = (folder / "test.csv").read_text().splitlines()
    found = []
    print(
        f"{'detector':18s}{'images':>8s}{'seconds':>10s}{'ms an image':>12s}{'ms more':>9s}{'processor':>10s}{'GB':>7s}"
    )
    for name in DETECTORS:
        last = (0, 0.0)
        for count in counts:
            part = folder / f"part{count}.csv"
            part.write_text("\n".join(rows[: count + 1]) + "\n")
            kept = {row.split(",")[0] for row in rows[1 : count + 1]}
            lesions = (folder / "test.lesions.csv").read_text().splitlines()
            named = [line for line in lesions[1:] if line.split(",")[0] in kept]
            part.with_suffix(".lesions.csv").write_text("\n".join([lesions[0], *named]) + "\n")
            code = "import sys; from unary.cli.main import main; sys.exit(main())"
            words = ("evaluate", str(folder / name), str(part), "--out", str(folder / "out"), "--workers", str(workers))
            seconds, used, memory, _ = run_watched("-c", code, *words)
            more = (seconds - last[1]) / (count - last[0])
            last = (count, seconds)
            print(
                f"{name:18s}{count:8d}{seconds:10.1f}{seconds / count * 1e3:12.2f}{more * 1e3:9.2f}"
                f"{used / count * 1e3:10.2f}{memory:7.2f}",
                flush=True,
            )
            found.append(
                {"detector": name, "images": count, "seconds": seconds, "ms_per_image_more": more * 1e3, "gb": memory}
            )
    return found


def time_statistics(folder: Path, count: int) -> None:
    """Evaluate a few images, repeat what was kept of them, and print the seconds of all statistics and the report."""
    logging.getLogger("unary").setLevel(logging.ERROR)
    model, manifest = read_model(folder / DETECTORS[0]), read_manifest(folder / "test.csv")
    few = manifest.select(manifest.rows[:SOURCES])
    evaluation = evaluating.evaluate(model, few, progress=False)
    repeated = _repeat(evaluation, count)
    started = time.perf_counter()
    write_evaluation(repeated, model, folder / "statistics", progress=False)
    print(json.dumps({"seconds": time.perf_counter() - started}))


def _repeat(evaluation: evaluating.Evaluation, count: int) -> evaluating.Evaluation:
    """The same images again and again, each time of other patients and with other scores."""
    rng, turns = np.random.default_rng(0), -(-count // len(evaluation.evaluated))
    shifts = rng.normal(size=turns) * 0.1
    evaluated = [
        dataclasses.replace(
            image,
            row=dataclasses.replace(image.row, image_id=f"{turn}-{image.row.image_id}", patient_id=f"{turn}-{place}"),
            image_score=None if image.image_score is None else image.image_score + shift,
        )
        for turn, shift in enumerate(shifts)
        for place, image in enumerate(evaluation.evaluated)
    ]
    samples = {
        name: tuple(
            dataclasses.replace(
                sample,
                patient=f"{turn}-{sample.patient}",
                scores=sample.scores[:: _thin(count)] + shift,
                positive=sample.positive[:: _thin(count)],
                weights=sample.weights[:: _thin(count)],
            )
            for turn, shift in enumerate(shifts)
            for sample in kept
        )
        for name, kept in evaluation.pixels.items()
    }
    tables = []
    for table in (evaluation.patches, evaluation.images):
        assert table is not None
        size = len(table.positive)
        turn_of = np.repeat(np.arange(turns), size).astype(str)
        repeated = {
            field.name: np.tile(getattr(table, field.name), turns)
            for field in dataclasses.fields(table)
            if isinstance(getattr(table, field.name), np.ndarray)
        }
        for name in ("patient", "image"):
            repeated[name] = np.char.add(np.char.add(turn_of, "-"), repeated[name].astype(str))
        scores = {name: np.tile(found, turns) + np.repeat(shifts, size) for name, found in table.scores.items()}
        groups = {name: np.tile(member, turns) for name, member in table.groups.items()}
        tables.append(dataclasses.replace(table, scores=scores, groups=groups, **repeated))
    return dataclasses.replace(
        evaluation, patches=tables[0], images=tables[1], evaluated=tuple(evaluated), pixels=samples
    )


def _thin(count: int) -> int:
    """As many times fewer pixels as an evaluation of so many images keeps of each, about."""
    return max(1, min(50, count // 1000))


def main() -> None:
    """Print tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--statistics", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", nargs=2, help=argparse.SUPPRESS)  # a process of its own: folder and number
    options = parser.parse_args()
    if options.repeat is not None:
        time_statistics(Path(options.repeat[0]), int(options.repeat[1]))
        return
    logging.getLogger("unary").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        normals = read_manifest(write_pictures(folder, "train", NORMALS, spots=False))
        write_pictures(folder, "test", max(SOURCES, *options.counts), spots=True)
        for detector in DETECTORS:
            fit(normals, FitConfig(), detector=detector, profile="general", progress=False).save(folder / detector)
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.workers} workers")
        growth = measure_growth(folder, options.counts, options.workers)
        statistics = []
        for count in options.statistics:
            _, _, memory, said = run_watched(__file__, "--repeat", str(folder), str(count))
            seconds = json.loads(said.splitlines()[-1])["seconds"]
            print(f"statistics of {count} images: {seconds:.1f} s, {memory:.2f} GB", flush=True)
            statistics.append({"images": count, "seconds": seconds, "gb": memory})
    for detector in DETECTORS:
        last = [each for each in growth if each["detector"] == detector][-1]
        minutes = last["ms_per_image_more"] * 100_000 / 60_000
        print(f"{detector}: 100,000 images at what one more takes, statistics included: {minutes:.1f} minutes")
    print(json.dumps({"workers": options.workers, "growth": growth, "statistics": statistics}))


if __name__ == "__main__":
    main()
