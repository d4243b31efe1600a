"""Kills at random moments: nothing that was done is lost, and what comes out has the bytes of an unbroken run.

    python benchmarks/kills.py detect --kills 100

(or fit, fit-unlearned, calibrate) starts the work again and again in a process that is killed (SIGKILL) after a random
time, then lets it end. After each kill, what is there must be what an unbroken run has made, whole, and nothing that
was there before may be gone; at the end all must be there. Processes are forked from this one, which has imported
everything, so that kills fall into the work and not into imports. Prints a line per kill or run and, last, one JSON
line; ends with 1 unless all is right.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
from batch_failures import write_small_model
from killing import run_killed
from kills_of_models import kill_calibrate, kill_fit, kill_fit_unlearned

from unary.clinic.batch_detection import detect_files
from unary.models.bundle import read_model

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)  # else every run would write its own time into its objects
TABLES = ("summary.csv", "failures.csv")


def read_all(folder: Path) -> dict[str, bytes]:
    """Every file of the folders of results, and the tables."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("[!.]*/*")}
    return found | {name: (folder / name).read_bytes() for name in TABLES if (folder / name).exists()}


def find_faults(expected: dict[str, bytes], before: dict[str, bytes], now: dict[str, bytes]) -> Iterator[str]:
    """What is wrong after a kill."""
    results = {name: content for name, content in now.items() if name not in TABLES}
    yield from (f"{name} is gone" for name in before if name not in TABLES and name not in results)
    yield from (f"{name} has other bytes" for name, content in results.items() if expected.get(name) != content)
    folders = {name.split("/")[0] for name in results}
    whole = {name for name in expected if name.split("/")[0] in folders}
    yield from (f"{name} is missing" for name in whole - results.keys())
    listed = {row["image"] for row in csv.DictReader(now.get("summary.csv", b"").decode().splitlines())}
    yield from (f"{name} is listed and not there" for name in listed - folders)


def kill_detect(folder: Path, kills: int, rng: np.random.Generator) -> dict[str, object]:
    """Kill detection over as many images as there are kills, and two files without a result, into one folder."""
    model_folder, sound = write_small_model(folder)
    (folder / "in").mkdir()
    for number in range(kills):
        dataset = pydicom.dcmread(sound[number % len(sound)])
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.{number + 1}"
        dataset.save_as(folder / "in" / f"{number:03d}.dcm", enforce_file_format=True)
    (folder / "in" / "000.dcm").write_bytes(b"")
    (folder / "in" / "zzz.dcm").write_bytes(b"no image")
    model = read_model(model_folder)

    def detect_into(out: Path) -> None:
        detect_files(model, [folder / "in"], out, model_folder=model_folder, moment=MOMENT, progress=False)

    detect_into(folder / "unbroken")  # in this process, which has imported all when the others are forked
    expected, before, faults, ended, most_s = read_all(folder / "unbroken"), {}, 0, 0, 2.0
    for number in range(kills):
        after_s = float(rng.uniform(0.0, most_s))
        ended += run_killed(lambda: detect_into(folder / "killed"), after_s)
        now = read_all(folder / "killed")
        found = list(find_faults(expected, before, now))
        faults += len(found)
        results = len({name.split("/")[0] for name in now if "/" in name})
        print(f"kill {number + 1:3} after {after_s:.2f} s: {results:3} results", *found[:5], sep="; ", flush=True)
        most_s *= 1.1 if len(now) == len(before) else 0.9  # so that kills fall before, into and after results
        before = now
    run_killed(lambda: detect_into(folder / "killed"), None)
    now = read_all(folder / "killed")
    left = [
        path.name
        for path in (folder / "killed").iterdir()
        if path.name.startswith(".") and path.suffix not in (".lock", ".files")
    ]
    same = now == expected
    return {
        "kills": kills - ended,
        "results": kills - 1,
        "faults": faults,
        "same_bytes": same,
        "left_over": left,
        "right": same and not faults and not left,
    }


PARTS = {
    "detect": kill_detect,
    "fit": kill_fit,
    "fit-unlearned": kill_fit_unlearned,
    "calibrate": kill_calibrate,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = PARTS[options.part](Path(folder), options.kills, np.random.default_rng(options.seed))
    print(json.dumps({"benchmark": f"kills {options.part}", "seed": options.seed, **told}))
    return 0 if told["right"] else 1


if __name__ == "__main__":
    sys.exit(main())
