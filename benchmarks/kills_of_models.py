"""Kills of `unary fit` and `unary calibrate`, for ``benchmarks/kills.py``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from killing import run_killed
from safetensors import safe_open

import unary.detectors.wei2018.detector
import unary.models.calibrating
import unary.models.fitting  # noqa: F401
from unary.cli.main import main as run_unary
from unary.datasets.manifest import write_manifest
from unary.datasets.phantom import PhantomConfig, write_phantom_dataset
from unary.models.bundle import read_model

MOST_KILLS_OF_ONE = 5  # of one run, which then is left to end
FAST = ["--size-px", "64", "--stride-px", "32"]
LEARNED = [*FAST, "--detector", "wei2018", "--epochs", "40", "--batch-size", "10", "--widths", "2,4"]
PLAIN = [*FAST, "--detector", "laplacian"]


def run(words: list[str], after_s: float | None = None) -> bool:
    """Run a command, which is silent, in a process of its own; return whether it came to its end."""

    def work() -> None:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            run_unary(words)

    return run_killed(work, after_s)


def list_files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks and the versions that are kept, by its name there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".unary.lock" and not path.name.startswith("model-")
    }


def count_rounds(folder: Path) -> int:
    """How many rounds of training are kept beside a model."""
    found = 0
    for path in folder.glob("model.checkpoint.*"):
        with safe_open(path, "np") as file:
            found = max(found, len(json.loads(file.metadata()["curves"])[0]))
    return found


def break_fits(folder: Path, options: list[str], rng: np.random.Generator, kills: int) -> dict[str, object]:
    """Kill fits: rounds of training are never fewer than before, and what comes of it is that of an unbroken run."""
    manifest, _ = write_sets(folder)

    def words(place: Path) -> list[str]:
        return ["fit", str(manifest), "--out", str(place / "model"), *options]

    expected, seconds = run_whole(folder / "unbroken", words)
    struck = runs = resumed = faults = 0
    for place in draw_folders(folder):
        rounds = 0
        for _ in range(MOST_KILLS_OF_ONE):
            if run(words(place), float(rng.uniform(0, 1.1 * seconds))):
                break
            struck += 1
            if (place / "model" / "model.json").exists():
                read_model(place / "model")
                break
            now = count_rounds(place)
            faults += now < rounds
            resumed += now > 0
            rounds = now
        killed_at_its_end = (place / "model" / "model.json").exists() and list_files(place) != expected
        run([*words(place), *(["--overwrite"] if killed_at_its_end else [])])
        faults += list_files(place) != expected
        runs += 1
        print(f"{struck:3} kills, {runs:3} runs, {resumed:3} kept rounds of training, {faults} faults", flush=True)
        if struck >= kills:
            break
    return {"kills": struck, "runs": runs, "kept_rounds": resumed, "faults": faults, "right": not faults}


def kill_fit(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, object]:
    """Kill the fitting of a detector that learns for many epochs."""
    return break_fits(folder, LEARNED, rng, kills)


def kill_fit_unlearned(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, object]:
    """Kill the fitting of one that learns nothing."""
    return break_fits(folder, PLAIN, rng, kills)


def kill_calibrate(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, object]:
    """Kill calibrations in place: at every moment the model is the one before or the new one, and that before stays."""
    to_fit, manifest = write_sets(folder)
    model = folder / "fitted"
    run(["fit", str(to_fit), "--out", str(model), *PLAIN])
    before = (model / "model.json").read_bytes()

    def words(place: Path) -> list[str]:
        shutil.copytree(model, place, dirs_exist_ok=True)
        return ["calibrate", str(place), str(manifest)]

    expected, seconds = run_whole(folder / "unbroken", words)
    struck = runs = faults = 0
    for place in draw_folders(folder):
        command = words(place)
        for _ in range(MOST_KILLS_OF_ONE):
            if run(command, float(rng.uniform(0, 1.1 * seconds))):
                break
            struck += 1
            faults += (place / "model.json").read_bytes() not in (before, expected["model.json"])
            read_model(place)
        run(command)
        kept = [path.read_bytes() for path in place.glob("model-*.json")]
        faults += list_files(place) != expected or kept != [before]
        runs += 1
        print(f"{struck:3} kills, {runs:3} runs, {faults} faults", flush=True)
        if struck >= kills:
            break
    return {"kills": struck, "runs": runs, "faults": faults, "right": not faults}


def run_whole(place: Path, words: object) -> tuple[dict[str, bytes], float]:
    """Run a command undisturbed, the second time by the clock; return the files that it leaves, and its seconds."""
    assert callable(words)
    for again in (place / "first", place):
        again.mkdir(parents=True, exist_ok=True)
        command, began = words(again), time.monotonic()
        assert run(command), "it ends"
        seconds = time.monotonic() - began
    shutil.rmtree(place / "first")
    return list_files(place), seconds


def draw_folders(folder: Path) -> Iterator[Path]:
    """Yield a new folder each time, the last one being removed."""
    place = folder / "killed"
    while True:
        place.mkdir()
        yield place
        shutil.rmtree(place)


def write_sets(folder: Path) -> tuple[Path, Path]:
    """Write phantoms, and two manifests of normal patients: to fit, and to calibrate; the site's key is there too."""
    os.environ["UNARY_PATIENT_KEY"] = str(folder / "patients.key")
    config = PhantomConfig(rows=256, cols=200)
    phantoms = write_phantom_dataset(folder / "phantoms", patients_normal=9, patients_abnormal=1, config=config, seed=0)
    normal = [row for row in phantoms.rows if row.label == "negative"]
    names = sorted({row.patient_id for row in normal})
    paths = folder / "fit.csv", folder / "calibrate.csv"
    for path, chosen in zip(paths, (names[:6], names[6:]), strict=True):
        write_manifest(phantoms.select(tuple(row for row in normal if row.patient_id in chosen)), path)
    return paths
