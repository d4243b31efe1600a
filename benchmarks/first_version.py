"""Fitting the default detector now, and as it was when it became the default: the same images, in turns.

The first version is taken from the repository's own history into a temporary folder. Two times are told apart:
training, which is all that becomes the detector (`unary.detectors.fusion.Fusion.fit`), and the whole command, in which
the present version also sets operating points for findings, which the first could not do. Last comes one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIRST = "6b8d52b"
CHILD = """
import sys, time
def timed(fit):
    def call(*words, **named):
        started = time.perf_counter()
        fitted = fit(*words, **named)
        print("seconds of training", time.perf_counter() - started)
        return fitted
    return call
try:
    from unary.detectors.fusion import Fusion
    from unary.cli.main import main
    Fusion.fit = timed(Fusion.fit)
except ImportError:
    import unary.pipeline
    from unary.cli import main
    unary.pipeline.fit_fusion = timed(unary.pipeline.fit_fusion)
sys.exit(main(["fit", sys.argv[1], "--out", sys.argv[2]]))
"""


def take_turn(source: Path, manifest: Path, folder: Path) -> tuple[float, float]:
    """Fit in a process of its own; return the seconds of training and of the command."""
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    for state in folder.glob("model.checkpoint*"):
        state.unlink()
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(manifest), str(model)],
        env={**os.environ, "PYTHONPATH": str(source)},
        check=True,
        capture_output=True,
        text=True,
    )
    whole = time.perf_counter() - started
    line = next(line for line in done.stdout.splitlines() if line.startswith("seconds of training"))
    return float(line.split()[-1]), whole


def main() -> None:
    """Take turns, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--first", default=FIRST, help="commit to compare with (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    repository = Path(__file__).resolve().parent.parent
    seconds: dict[str, list[tuple[float, float]]] = {"first version": [], "now": []}
    with tempfile.TemporaryDirectory() as name:
        first = Path(name) / "first"
        subprocess.run(["git", "clone", "--quiet", str(repository), str(first)], check=True)
        subprocess.run(["git", "-C", str(first), "checkout", "--quiet", options.first], check=True)
        sources = {"first version": first / "src", "now": repository / "src"}
        for _ in range(options.rounds):
            for version, source in sources.items():
                seconds[version].append(take_turn(source, options.manifest.resolve(), Path(name)))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {options.manifest}; medians of {options.rounds} rounds")
    print(f"{'':16s}{'training, s':>12s}{'fit, s':>9s}")
    medians = {
        version: [statistics.median(one) for one in zip(*turns, strict=True)] for version, turns in seconds.items()
    }
    for version, (training, whole) in medians.items():
        print(f"{version:16s}{training:12.1f}{whole:9.1f}")
    training, whole = (before / now for before, now in zip(medians["first version"], medians["now"], strict=True))
    print(f"{'ratio':16s}{training:12.2f}{whole:9.2f}")
    print(json.dumps({"ratio_to_first": training, "ratio_to_first_whole_command": whole, "seconds": medians}))


if __name__ == "__main__":
    main()
