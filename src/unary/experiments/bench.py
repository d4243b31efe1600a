"""One bench for all detectors: the same patches, folds over patients, and figures that come with intervals.

Each detector learns from normal patches of all folds but one and scores what is left. The areas of the folds are
averaged, each fold having its own model, and the patients of all folds are drawn together for the intervals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shlex
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unary.errors import SplitError, TrainingError
from unary.evaluation.intervals import Estimate, FewPatientsError
from unary.evaluation.metrics import (
    ALL,
    ScoreTable,
    compare_detectors,
    summarise,
    write_metrics,
    write_scores,
)
from unary.experiments.bench_data import BenchData, Fold, collect_bench_data, draw_folds
from unary.files import replacing
from unary.models.bundle import describe_versions
from unary.models.pipeline import build_table
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.records import Manifest

__all__ = ["BenchConfig", "BenchData", "BenchResult", "Cell", "Entrant", "Fold", "Kind", "Scorer", "run_bench"]

logger = logging.getLogger(__name__)

Kind = Literal["control", "no learning", "normals only", "normals + lesion prior"]
REFERENCES = ("laplacian", "wei2018", "fusion")
MAIN_GROUPS = ("calcification_birads5", "calcification_birads2_4", "calcification", "mass", ALL)
_FORMAT = 1


class Scorer(Protocol):
    """A fitted detector."""

    @property
    def parameters(self) -> int:
        """Number of learned weights; 0 for none."""
        ...

    def score(self, data: BenchData, which: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return one score per chosen patch, shape (len(which),), higher being more abnormal."""
        ...


Fit = Callable[[BenchData, NDArray[np.intp], int, Path], Scorer]


@dataclass(frozen=True)
class Entrant:
    """A detector that takes part.

    Attributes
    ----------
    name
        A short word, usable as a file name.
    kind
        What it knows.
    summary
        One line for the table.
    fit
        Called with the data, the positions of the normal patches to learn from, the seed, and a path that may be used
        as a checkpoint; may raise `TrainingError`.
    """

    name: str
    kind: Kind
    summary: str
    fit: Fit


@dataclass(frozen=True)
class BenchConfig:
    """The comparison. Each seed divides the patients anew and starts training anew."""

    preparation: PreparationConfig = dataclasses.field(default_factory=PreparationConfig)
    grid: GridConfig = dataclasses.field(default_factory=GridConfig)
    folds: int = 3
    seeds: tuple[int, ...] = (0,)
    resamples: int = 2000

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise SplitError(f"a cross-validation needs at least 2 folds, got {self.folds}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct, and at least one, got {self.seeds}")


@dataclass(frozen=True, eq=False)
class Cell:
    """What one detector did in one fold.

    ``scores`` has one entry, float64, per position of the fold's ``test``; times are in seconds.
    """

    scores: NDArray[np.float64]
    fit_seconds: float
    score_seconds_per_image: float
    parameters: int


@dataclass(frozen=True, eq=False)
class BenchResult:
    """Everything that the reports show.

    Attributes
    ----------
    folds, tables
        One per seed and fold, in the same order; a table holds the detectors that have scores there.
    cells
        By detector, one per fold; None where it failed.
    failures
        By detector, why it is not in ``metrics``.
    metrics
        ``{NAME: {GROUP: {...}}}`` as in `unary.evaluation.metrics`, of the detectors that finished every fold.
    differences
        ``{REFERENCE: {NAME: {GROUP: estimate}}}``: AUROC of NAME minus that of REFERENCE, paired.
    """

    config: BenchConfig
    manifest: Manifest
    data: BenchData
    entrants: tuple[Entrant, ...]
    folds: tuple[Fold, ...]
    tables: tuple[ScoreTable, ...]
    cells: dict[str, tuple[Cell | None, ...]]
    failures: dict[str, str]
    metrics: dict[str, Any]
    differences: dict[str, dict[str, dict[str, Estimate]]]
    meta: dict[str, Any]

    @property
    def main_groups(self) -> tuple[str, ...]:
        """The lesions that the data set can tell apart, and ``all``."""
        known = {*self.data.groups, ALL}
        return tuple(group for group in MAIN_GROUPS if group in known)

    def describe_gaps(self) -> dict[str, str]:
        """Say, by group, in which folds it has no patch; groups without any at all included."""
        gaps = {}
        for group in self.main_groups:
            empty = [
                fold for fold, table in zip(self.folds, self.tables, strict=True) if not table.roles(group)[0].any()
            ]
            if len(empty) == len(self.folds):
                gaps[group] = f"{group}: there is no such patch"
            elif empty:
                where = ", ".join(f"fold {fold.number} of seed {fold.seed}" for fold in empty)
                gaps[group] = f"{group}: no such patch in {where}; the figures are means over the other folds"
        return gaps


def run_bench(
    manifest: Manifest,
    out: Path,
    config: BenchConfig,
    entrants: Sequence[Entrant],
    *,
    progress: bool = True,
    notices: Sequence[str] = (),
    banners: Sequence[str] = (),
) -> BenchResult:
    """Run every detector on every fold and write ``metrics.json`` and ``scores.parquet`` under ``out``.

    A detector that fails in a fold is reported and left out of the figures; the others go on. What is done is kept
    under ``out / "runs"``, and running again after an interruption goes on from there. Kept scores are known by the
    data, the configuration, the fold and the version of unary; after changing the code of a detector, use a new
    folder.

    Parameters
    ----------
    manifest
        Of a whole data set, normals and lesions.
    out
        Created if need be.
    config
        The comparison.
    entrants
        With distinct names.
    progress
        Show progress bars.
    notices, banners
        Of the reader, and what must not be overlooked about the data; kept with the results.

    Raises
    ------
    ManifestError, SplitError
        If there is too little data.
    TrainingError
        If not one detector could be run.
    """
    names = [entrant.name for entrant in entrants]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"the detectors of a bench need distinct names, and there must be one, got {names}")
    data = collect_bench_data(manifest, config.preparation, config.grid, progress=progress)
    folds = tuple(fold for seed in config.seeds for fold in draw_folds(data, count=config.folds, seed=seed))
    cells, failures = _run_cells(data, folds, entrants, out=out, progress=progress)
    finished = [name for name in names if name not in failures]
    if not finished:
        raise TrainingError(f"no detector could be run; the first: {next(iter(failures.values()))}")
    tables = tuple(_build_table(data, fold, cells, place) for place, fold in enumerate(folds))
    complete = [dataclasses.replace(table, scores={name: table.scores[name] for name in finished}) for table in tables]
    metrics = summarise(complete, rng=np.random.default_rng(0), resamples=config.resamples, rate_intervals=True)
    result = BenchResult(
        config, manifest, data, tuple(entrants), folds, tables, cells, failures, metrics, differences={}, meta={}
    )
    for line in result.describe_gaps().values():
        logger.warning("%s", line)
    result = dataclasses.replace(result, differences=_compare(complete, result, progress=progress))
    result = dataclasses.replace(result, meta={**_describe(result), "notices": list(notices), "banners": list(banners)})
    write_scores(out / "scores.parquet", tables)
    write_metrics(out / "metrics.json", metrics, meta=result.meta)
    return result


def _run_cells(
    data: BenchData, folds: Sequence[Fold], entrants: Sequence[Entrant], *, out: Path, progress: bool
) -> tuple[dict[str, tuple[Cell | None, ...]], dict[str, str]]:
    """Every detector's cells, and why some are missing."""
    cells: dict[str, list[Cell | None]] = {entrant.name: [] for entrant in entrants}
    failures: dict[str, str] = {}
    total = len(folds) * len(entrants)
    with tqdm(total=total, desc="bench", unit="run", delay=2, disable=None if progress else True) as bar:
        for fold in folds:
            for entrant in entrants:
                bar.set_postfix_str(f"{entrant.name}, seed {fold.seed}, fold {fold.number}")
                cell: Cell | None = None
                try:
                    cell = _run_cell(data, fold, entrant, out)
                except TrainingError as error:
                    told = f"{entrant.name}, seed {fold.seed}, fold {fold.number}: {error}"
                    failures.setdefault(entrant.name, told)
                    logger.warning("failed: %s", told)
                cells[entrant.name].append(cell)
                bar.update()
    return {name: tuple(of_name) for name, of_name in cells.items()}, failures


def _run_cell(data: BenchData, fold: Fold, entrant: Entrant, out: Path) -> Cell:
    """Fit and score, or read what an earlier call has kept."""
    name = f"{entrant.name}-{fold.seed}-{fold.number}-{_hash_cell(data, fold, entrant)}"
    kept = _read_cell(out / "runs" / f"{name}.npz", len(fold.test))
    if kept is not None:
        return kept
    checkpoint = out / "checkpoints" / name
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    scorer = entrant.fit(data, fold.train, fold.seed, checkpoint)
    fitted = time.perf_counter()
    scores = np.asarray(scorer.score(data, fold.test), np.float64)
    seconds = time.perf_counter() - fitted
    if scores.shape != fold.test.shape:
        raise ValueError(f"{entrant.name}: {len(fold.test)} patches were given, scores of shape {scores.shape} came")
    wrong = int(np.count_nonzero(~np.isfinite(scores)))
    if wrong:
        raise TrainingError(f"{wrong} of {len(scores)} scores are NaN or infinite; training has probably diverged")
    if np.ptp(scores) == 0:
        raise TrainingError(f"all {len(scores)} scores are equal: it tells nothing apart")
    images = len(np.unique(data.fine.image[fold.test]))
    cell = Cell(scores, fitted - start, seconds / images, int(scorer.parameters))
    with replacing(out / "runs" / f"{name}.npz") as partial:
        np.savez(
            partial,
            scores=cell.scores,
            fit_seconds=cell.fit_seconds,
            score_seconds_per_image=cell.score_seconds_per_image,
            parameters=cell.parameters,
        )
    return cell


def _hash_cell(data: BenchData, fold: Fold, entrant: Entrant) -> str:
    """A short name of everything that the scores depend on, the detector's code apart."""
    facts = [_FORMAT, metadata.version("unary"), data.data_hash, entrant.name, entrant.kind, fold.seed, fold.number]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for positions in (fold.train, fold.test):
        digest.update(np.asarray(positions, np.int64).tobytes() + b"|")
    return digest.hexdigest()[:16]


def _read_cell(path: Path, count: int) -> Cell | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            scores = stored["scores"]
            fit_seconds, score_seconds = float(stored["fit_seconds"]), float(stored["score_seconds_per_image"])
            parameters = int(stored["parameters"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s: not readable (%s); this run is done again", path, error)
        return None
    return Cell(scores, fit_seconds, score_seconds, parameters) if scores.shape == (count,) else None


def _build_table(data: BenchData, fold: Fold, cells: dict[str, tuple[Cell | None, ...]], place: int) -> ScoreTable:
    found = {name: of_name[place] for name, of_name in cells.items()}
    scores = {name: cell.scores for name, cell in found.items() if cell is not None}
    return build_table(
        data.fine, scores, fold.test, positive=data.positive, groups=data.groups, seed=place, split="patient"
    )


def _compare(
    tables: Sequence[ScoreTable], result: BenchResult, *, progress: bool
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Paired differences to the references, for the main groups; absent where patients are too few."""
    pairs = [
        (reference, name, group)
        for reference in REFERENCES
        if reference in result.metrics
        for name in result.metrics
        if name != reference
        for group in result.main_groups
        if group in result.metrics[name]
    ]
    found: dict[str, dict[str, dict[str, Estimate]]] = {}
    for reference, name, group in tqdm(pairs, desc="comparing", delay=2, disable=None if progress else True):
        with contextlib.suppress(FewPatientsError):  # the table says so already
            found.setdefault(reference, {}).setdefault(name, {})[group] = compare_detectors(
                tables,
                first=name,
                second=reference,
                rng=np.random.default_rng(0),
                group=group,
                resamples=result.config.resamples,
            )
    return found


def _describe(result: BenchResult) -> dict[str, Any]:
    """What a reader of ``metrics.json`` needs to judge and repeat the figures."""
    data, normal = result.data, result.data.normal
    patients = data.fine.column("patient_id")
    members = {ALL: data.positive, **data.groups}
    return {
        "experiment": "bench",
        "notice": "Research software. Not for diagnosis.",
        "command": shlex.join(["unary", *sys.argv[1:]]),
        "versions": describe_versions(),
        "data_hash": data.data_hash,
        "config": dataclasses.asdict(result.config),
        "counts": {
            group: {
                "patches": int(member.sum()),
                "images": len(np.unique(data.fine.image[member])),
                "patients": len(np.unique(patients[member])),
            }
            for group, member in {"normal": normal, **members}.items()
        },
        "grids": {
            name: {"size_px": of.patches.size_px, "pixel_bytes": of.patches.nbytes}
            for name, of in (("fine", data.fine), ("coarse", data.coarse))
        },
        "folds": [
            {
                "seed": fold.seed,
                "fold": fold.number,
                "train_patients": len(np.unique(patients[fold.train])),
                "train_patches": len(fold.train),
                "test_normal_patients": len(np.unique(patients[fold.test][normal[fold.test]])),
                "test_normal_patches": int(normal[fold.test].sum()),
                "test_positive_patients": len(np.unique(patients[fold.test][data.positive[fold.test]])),
                "test_positive_patches": int(data.positive[fold.test].sum()),
            }
            for fold in result.folds
        ],
        "detectors": {entrant.name: _describe_entrant(entrant, result) for entrant in result.entrants},
        "failures": dict(result.failures),
        "gaps": result.describe_gaps(),
        "differences": {
            reference: {
                name: {group: dataclasses.asdict(estimate) for group, estimate in groups.items()}
                for name, groups in by_name.items()
            }
            for reference, by_name in result.differences.items()
        },
        "skipped": list(data.fine.skipped),
    }


def _describe_entrant(entrant: Entrant, result: BenchResult) -> dict[str, Any]:
    done = [cell for cell in result.cells[entrant.name] if cell is not None]
    facts: dict[str, Any] = {"kind": entrant.kind, "summary": entrant.summary, "runs": len(done)}
    if done:
        facts["fit_seconds"] = float(np.mean([cell.fit_seconds for cell in done]))
        facts["score_seconds_per_image"] = float(np.mean([cell.score_seconds_per_image for cell in done]))
        facts["parameters"] = max(cell.parameters for cell in done)
    return facts
