"""What would a user take instead, and is it better? Peers beside unary on the same patches and pictures.

Detectors of scikit-learn and PyOD on simple features, models of anomalib with random first weights, and a plain
autoencoder in PyTorch, each by its own package with its own defaults, beside detectors of unary with theirs. Every
method runs in a process of its own, on one thread; times are of the processor. All learn from the same normals, with as
much time as ``--limit`` where they have no end of their own, and score the same patches. A method that fails is named,
and the others go on. Prints Markdown tables, then one JSON line. Interrupt when you like; the same command goes on.

    python benchmarks/peers.py --out DIR --peers-python PEERS_ENVIRONMENT/bin/python [--inbreast DIR [--annotation CSV]]
        [--brainmri DIR] [--chestxray DIR] [--split as_files_without_copies]
        [--methods padim,fusion] [--seed 0] [--folds 3] [--limit 60] [--show]

The peers' environment: ``python -m venv ENV; ENV/bin/pip install -r benchmarks/peers-requirements.txt``. What it
measures, and how to read it, is in ``docs/peers.md``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers_data import USUAL, Limits, PeerTask, open_sets, write_tasks
from peers_methods import ALONE, ENDLESS, EXTRA, PEERS

from unary.evaluation.metrics import ALL, ScoreTable, compare_all, summarise
from unary.experiments.image_level import list_rows
from unary.experiments.image_level_stages import SPLITS
from unary.profiles import find_profile

CONTROLS = ("mean_brightness", "standard_deviation")
PACKAGES = {
    **dict.fromkeys(("isolation_forest", "one_class_svm", "local_outlier_factor"), "scikit-learn"),
    **dict.fromkeys(("ecod", "knn", "pyod_autoencoder"), "PyOD"),
    **dict.fromkeys(("padim", "padim_256", "patchcore", "fastflow", "ganomaly"), "anomalib"),
    "torch_autoencoder": "PyTorch",
    **dict.fromkeys(CONTROLS, "control"),
}
ENOUGH_S = 1800  # of the clock; a method that takes longer is stopped


@dataclass(frozen=True, eq=False)
class Cell:
    """What one method did in one task: scores of the test patches, and seconds, megabytes, a note and versions."""

    scores: NDArray[np.float64]
    facts: dict[str, Any]


def list_methods(name: str) -> tuple[str, ...]:
    """Return the methods of a data set: unary's first, the one that is compared before all others."""
    if name == "inbreast":
        return ("fusion", f"fusion{ALONE}", "laplacian", "wei2018", *PEERS)
    return (*(row.name for row in list_rows(find_profile("general"))), "laplacian", *PEERS)


def run_cell(method: str, task: PeerTask, options: argparse.Namespace) -> Cell | str:
    """Run a method on a task, or read what an earlier call kept; the last line of its error where it fails."""
    path = task.folder / (f"{method}-{options.limit:g}.npz" if method in ENDLESS else f"{method}.npz")
    if not path.exists():
        if options.show:
            return "not run yet"
        python = options.peers_python if method in PEERS else Path(sys.executable)
        place = "aligned" if task.aligned else "anywhere"
        script = Path(__file__).with_name("peers_cell.py")
        command = [python, script, task.folder, method, options.seed, options.limit, place, path]
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(threads, "1"), "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True, env=environment, timeout=ENOUGH_S
            )
        except subprocess.TimeoutExpired:
            return f"not finished after {ENOUGH_S} s"
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    with np.load(path, allow_pickle=False) as found:
        return Cell(found["scores"], json.loads(str(found["facts"])))


def measure_controls(task: PeerTask) -> dict[str, Cell]:
    """Mean brightness and standard deviation of each test patch."""
    values = np.load(task.folder / "test.npy").astype(np.float64).reshape(len(task.positive), -1) / 65535
    figures = {"mean_brightness": values.mean(axis=1), "standard_deviation": values.std(axis=1)}
    return {name: Cell(scores, {}) for name, scores in figures.items()}


def run_set(name: str, tasks: Sequence[PeerTask], options: argparse.Namespace) -> dict[str, Any]:
    """Run all methods on a data set's tasks, and return its part of the JSON line."""
    cells = {control: [measure_controls(task)[control] for task in tasks] for control in CONTROLS}
    failures: dict[str, str] = {}
    known = list_methods(name)
    listed = [method for method in known if method in (options.methods or set(known) - set(EXTRA))]
    for method in sorted(listed, key=(options.methods or known).index):  # those named first, first
        own = []
        for task in tasks:
            found = run_cell(method, task, options)
            if isinstance(found, str):
                failures[method] = found
                break
            own.append(found)
            told = f"{found.facts['fit_s']:.0f} + {found.facts['score_s']:.0f} s, {found.facts['note']}"
            print(f"{task.folder.name} {method}: {told}", file=sys.stderr, flush=True)
        else:
            cells[method] = own
    tables = [
        task.build_table({method: own[number].scores for method, own in cells.items()}, number)
        for number, task in enumerate(tasks)
    ]
    subjects = [method for method in known[: 2 if name == "inbreast" else 1] if method in cells]
    return {
        **compare_methods(tables, subjects, resamples=options.resamples),
        "failures": failures,
        "costs": {method: summarise_costs(own) for method, own in cells.items() if method not in CONTROLS},
        "counts": [count_task(task) for task in tasks],
    }


def compare_methods(tables: Sequence[ScoreTable], subjects: Sequence[str], *, resamples: int) -> dict[str, Any]:
    """Return the AUROC of every method and group, and of each subject minus every other method, with intervals."""
    metrics = summarise(tables, rng=np.random.default_rng(0), resamples=resamples)
    groups = [*(group for group in metrics[next(iter(metrics))] if group != ALL), ALL]
    asked = [(other, one, group) for one in subjects for other in metrics if other != one for group in groups]
    pairs = compare_all(tables, asked, resamples=resamples)
    differences = {
        one: {
            other: {group: [found.value, found.interval] for group, found in own[one].items()}
            for other, own in pairs.items()
            if one in own
        }
        for one in subjects
    }
    auroc = {
        method: {group: [own[group]["auroc"], own[group]["auroc_ci95"]] for group in groups}
        for method, own in metrics.items()
    }
    return {"groups": groups, "auroc": auroc, "differences": differences}


def summarise_costs(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what a method took: mean seconds over the tasks, the largest memory, and the first task's note."""
    facts = [cell.facts for cell in cells]
    return {
        "fit_s": float(np.mean([one["fit_s"] for one in facts])),
        "score_ms": float(
            np.mean([1000 * one["score_s"] / len(cell.scores) for one, cell in zip(facts, cells, strict=True)])
        ),
        "peak_mb": max(one["peak_mb"] for one in facts),
        "note": facts[0]["note"],
        "versions": facts[0]["versions"],
    }


def count_task(task: PeerTask) -> dict[str, int]:
    """Return how much is learned from and tested in a task."""
    return {
        "train": len(np.load(task.folder / "train.npy", mmap_mode="r")),
        "negative": int((~task.positive).sum()),
        "positive": int(task.positive.sum()),
        "negative_units": len(np.unique(task.unit[~task.positive])),
        "positive_units": len(np.unique(task.unit[task.positive])),
    }


def format_figure(found: Sequence[Any] | None, *, signed: bool = False) -> str:
    """Return a value with its interval, to three decimals.

    >>> format_figure([0.5, [0.4, 0.6]]), format_figure([0.02, None], signed=True)
    ('0.500 (0.400 to 0.600)', '+0.020')
    """
    if found is None:
        return ""
    sign = "+" if signed else ""
    value, bounds = found
    return f"{value:{sign}.3f}" + (f" ({bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f})" if bounds else "")


def build_tables(name: str, result: dict[str, Any]) -> list[str]:
    """Return a data set's tables as lines of Markdown: areas by method, best first, and differences with cost."""
    groups, auroc = result["groups"], result["auroc"]
    ordered = sorted(auroc, key=lambda method: -auroc[method][ALL][0])
    lines = [f"### {name}", "", *_head(["method", "of", *groups, "fit s", "ms each", "peak MB", "how"])]
    for method in ordered:
        cost = result["costs"].get(method)
        told = ["", "", "", ""]
        if cost:
            told = [f"{cost['fit_s']:.1f}", f"{cost['score_ms']:.1f}", f"{cost['peak_mb']:.0f}", cost["note"]]
        figures = [format_figure(auroc[method][group]) for group in groups]
        lines.append(_row([f"`{method}`", PACKAGES.get(method, "unary"), *figures, *told]))
    for one, others in result["differences"].items():
        lines += ["", *_head([f"`{one}` minus", *groups])]
        for other in sorted(others, key=lambda method: others[method].get(ALL, [0])[0]):
            figures = [format_figure(others[other].get(group), signed=True) for group in groups]
            lines.append(_row([f"`{other}`", *figures]))
    lines += ["", *(f"`{method}` is not there: {why}" for method, why in result["failures"].items())]
    return lines


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), _row(["---"] * len(names))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of tasks and cells")
    parser.add_argument("--peers-python", type=Path, default=Path(sys.executable), help="of the peers' environment")
    parser.add_argument("--inbreast", type=Path)
    parser.add_argument("--annotation", type=Path)
    parser.add_argument("--brainmri", type=Path)
    parser.add_argument("--chestxray", type=Path)
    parser.add_argument("--split", choices=SPLITS, default=USUAL, help="of whole pictures")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=3, help="of INbreast")
    parser.add_argument("--train", type=int, default=Limits.train, help="normals to learn from, at most")
    parser.add_argument("--test", type=int, default=Limits.test, help="normals to test, at most")
    parser.add_argument("--limit", type=float, default=60, help="seconds of the processor to learn without an end")
    parser.add_argument("--show", action="store_true", help="run nothing: print what earlier calls have kept")
    parser.add_argument("--resamples", type=int, default=2000)
    return parser.parse_args()


def main() -> None:
    """Run all data sets that are given, print the tables and the JSON line."""
    options = parse_options()
    limits = Limits(options.train, options.test)
    sets = open_sets(
        inbreast=options.inbreast,
        annotation=options.annotation,
        brain=options.brainmri,
        chest=options.chestxray,
        split=options.split,
    )
    results = {}
    for name, collect in sets.items():
        facts = {"train": limits.train, "test": limits.test, "folds": options.folds, "seed": options.seed}
        folder = options.out / "tasks"
        folder.mkdir(parents=True, exist_ok=True)
        tasks = write_tasks(name, folder, functools.partial(collect, limits, options.folds, options.seed), facts)
        results[name] = run_set(name, tasks, options)
        print("\n".join(build_tables(name, results[name])), flush=True)
    print(json.dumps({"seed": options.seed, "limit_s": options.limit, "sets": results}))


if __name__ == "__main__":
    main()
