"""What following a run costs the training: rounds of fixed work, followed by nobody, or by some store.

Usage: python benchmarks/tracking.py [--rounds 1500] [--repeats 3]

Of each repeat, all ways are run one after the other; quoted is the median over repeats of the ratio to nobody's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from unary.training.context import FitContext
from unary.training.engine import Rounds, train
from unary.training.tracking import open_tracker


def measure(destination: str | None, rounds: int, folder: Path) -> float:
    """Return the seconds that so many rounds take, opening and closing of the tracker apart."""
    network = torch.nn.Linear(8, 1)
    optimizer = torch.optim.Adam(network.parameters())
    work = torch.randn(500, 500)

    def advance(_rng: object, number: int) -> float:
        torch.mm(work, work)
        return 1.0 / (number + 1)

    with nullcontext() if destination is None else open_tracker(destination, name="cost") as tracker:
        context = FitContext(0, progress=False, tracker=tracker)
        start = time.perf_counter()
        train(network, optimizer, advance, Rounds("cost", rounds, "step"), context, settings=[], data=None)
        return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print a table, and the ratios as one line of JSON last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["tensorboard", "mlflow", "dead server"])
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {
            "tensorboard": f"tensorboard:{folder / 'runs'}",
            "mlflow": f"mlflow:{folder / 'runs.db'}",
            "dead server": "mlflow:http://127.0.0.1:9",
        }
        measure(None, options.rounds, folder)
        ratios: dict[str, list[float]] = {way: [] for way in options.only}
        for repeat in range(options.repeats):
            alone = measure(None, options.rounds, folder)
            for way in options.only:
                ratios[way].append(measure(places[way], options.rounds, folder) / alone)
            print(f"repeat {repeat + 1}: a round alone takes {1000 * alone / options.rounds:.2f} ms", file=sys.stderr)
    found = {way: statistics.median(values) for way, values in ratios.items()}
    print(f"{'followed by':14s} time of a round, ratio to nobody's")
    for way, ratio in found.items():
        print(f"{way:14s} {ratio:.3f}  ({', '.join(f'{value:.3f}' for value in ratios[way])})")
    print(json.dumps({"rounds": options.rounds, **found}))
    return found


if __name__ == "__main__":
    main()
