"""One method on one task, in a process of its own: ``peers_cell.py FOLDER METHOD SEED LIMIT aligned|anywhere OUT``.

Run by ``benchmarks/peers.py``, in the environment of unary or of the peers. Writes the scores, the processor time of
learning and of scoring, the largest resident set, and the versions of what was imported.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from peers_methods import Clock, Task, run_method

_PACKAGES = ("anomalib", "pyod", "scikit-learn", "torch", "torchvision", "lightning", "timm", "numpy", "scipy", "unary")


def read_peak_megabytes() -> float:
    """Return the largest resident set of this process so far; getrusage would count what started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def list_versions() -> dict[str, str]:
    """Return the versions of the packages that are imported."""
    modules = {"scikit-learn": "sklearn"}
    loaded = [name for name in _PACKAGES if modules.get(name, name) in sys.modules]
    return {name: metadata.version(name) for name in loaded}


def main(folder: str, method: str, seed: str, limit_s: str, place: str, out: str) -> None:
    """Run the method and write the cell; the file is whole or not there."""
    clock = Clock()
    scores, note = run_method(method, Task(Path(folder), place == "aligned", int(seed), float(limit_s)), clock)
    if not np.isfinite(scores).all() or np.ptp(scores) == 0:
        raise ValueError(f"{method}: scores must be finite and not all equal")
    facts = {
        "fit_s": clock.seconds["fit"],
        "score_s": clock.seconds["score"],
        "peak_mb": read_peak_megabytes(),
        "note": note,
        "versions": list_versions(),
    }
    partial = Path(f"{out}.partial.npz")
    np.savez(partial, scores=scores, facts=json.dumps(facts))
    partial.replace(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
