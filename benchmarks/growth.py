"""What an image costs in a folder of ten and of ten thousand: results made, kept, and read again to be sure.

Images are 64 x 64, every tenth file is no image, and the examination is a mean, so that what is measured is all that is
done around it. Prints the processor time per file, all processes together, for every size of the folder and, last, one
JSON line with how many times as much a file costs in the largest folder as in the smallest of a thousand or more; in
smaller ones, most is the start of the process that reads.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unary.clinic.batch import BatchSummary, run_batch
from unary.clinic.file_work import Job
from unary.clinic.result_folder import Result, Source, Write
from unary.models.gate import Gate
from unary.profiles import GENERAL
from unary.records import Image

BAD_EVERY = 10
KINDS = ("made", "kept", "verified")


def examine(image: Image, _: Source) -> Write:
    """Return what writes the mean of an image."""
    mean = float(image.pixels.mean())

    def write(folder: Path) -> Result:
        (folder / "mean.txt").write_text(f"{mean}\n")
        return {"mean": mean}, {"mean": mean}

    return write


def write_images(folder: Path, count: int) -> None:
    """Write so many files, all older than what is taken for too fresh to be known by its look."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // 100:03d}" / f"{number:06d}.pgm"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = b"no image\n" if number % BAD_EVERY == 0 else b"P5 64 64 65535\n"
        path.write_bytes(head + rng.bytes(64 * 64 * 2))


def run(folder: Path, out: Path, *, verify: bool = False) -> BatchSummary:
    """Run the batch once."""
    job = Job("growth", examine, {"model_sha256": "0"}, Gate(GENERAL, spacing_mm=0.1), verify=verify)
    return run_batch([folder], out, job, progress=False)


def measure(count: int) -> Mapping[str, float]:
    """Return milliseconds of processor time per file of each kind of run over a folder of so many files."""
    with tempfile.TemporaryDirectory(prefix="growth-") as place:
        folder = Path(place, "in")
        write_images(folder, count)
        time.sleep(2.1)
        found = {}
        for kind in KINDS:
            begun = sum(os.times()[:4])
            summary = run(folder, Path(place, "out"), verify=kind == "verified")
            found[kind] = 1000 * (sum(os.times()[:4]) - begun) / count
            bad = -(-count // BAD_EVERY)
            assert len(summary.failed) == bad
            assert len(summary.done if kind == "made" else summary.kept) == count - bad
        return found


def compare(found: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return by kind how many times as much a file costs in the largest folder."""
    least, most = min((count for count in found if count >= 1000), default=min(found)), max(found)
    return {kind: round(found[most][kind] / found[least][kind], 2) for kind in KINDS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000, 10000], metavar="N")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # one of every file that is no image
    found: dict[int, Mapping[str, float]] = {}
    print(f"{'files':>8} " + " ".join(f"{f'{kind}, ms':>13}" for kind in KINDS), flush=True)
    for count in options.counts:
        found[count] = measure(count)
        print(f"{count:8d} " + " ".join(f"{found[count][kind]:13.2f}" for kind in KINDS), flush=True)
    print(json.dumps({
        "benchmark": "growth",
        "ms_per_file": {count: {kind: round(value, 3) for kind, value in row.items()} for count, row in found.items()},
        "largest_to_thousand": compare(found),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
