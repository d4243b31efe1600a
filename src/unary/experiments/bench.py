"""One bench for all detectors: the same patches, folds over patients, and figures that come with intervals.

Each detector learns from normal patches of all folds but one and scores what is left. The areas of the folds are
averaged, each fold having its own model, and the patients of all folds are drawn together for the intervals. Of a data
set without any listed lesion, whole images are ranked in place of patches.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unary.detectors.protocol import Detector
from unary.errors import DetectorError, SplitError, TrainingError
from unary.evaluation.metrics import (
    ALL,
    Differences,
    ScoreTable,
    compare_all,
    summarise,
    write_metrics,
    write_scores,
)
from unary.experiments.bench_cells import Cell, run_cell
from unary.experiments.bench_data import IMAGE, BenchData, Fold, collect_bench_data, draw_folds
from unary.experiments.common import as_document, count_patches, describe_run
from unary.experiments.contenders import Contender, find_contenders
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import DEFAULT, Profile
from unary.progress import show_progress
from unary.records import Manifest

logger = logging.getLogger(__name__)

_REFERENCES = ("laplacian", "wei2018", "fusion")


@dataclass(frozen=True)
class BenchConfig:
    """The comparison. Each of the distinct seeds divides the patients anew and starts training anew.

    The profile says what normal images, lesion groups and the working spacing are. ``preparation`` and ``grid`` are
    those of the patches on the stored grid; without a preparation tissue is found in the profile's way.
    """

    profile: Profile = DEFAULT
    preparation: PreparationConfig | None = None
    grid: GridConfig = dataclasses.field(default_factory=GridConfig)
    folds: int = 3
    seeds: tuple[int, ...] = (0,)
    resamples: int = 2000

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise SplitError(f"a cross-validation needs at least 2 folds, got {self.folds}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct, and at least one, got {self.seeds}")

    def choose_preparation(self) -> PreparationConfig:
        """Return the preparation that is asked for, or the profile's."""
        return self.preparation or PreparationConfig(mask=self.profile.mask, metal=self.profile.metal)


@dataclass(frozen=True, eq=False)
class BenchResult:
    """Everything that the reports show.

    There is a table per seed and fold, in the order of ``folds``, of the detectors that have scores there; ``metrics``
    are as in `unary.evaluation.metrics`, of the detectors that finished every fold, with ``"image"`` as the only group
    where images are ranked; ``failures`` say why a detector is not among them.
    """

    config: BenchConfig
    manifest: Manifest
    data: BenchData
    contenders: tuple[Contender, ...]
    folds: tuple[Fold, ...]
    tables: tuple[ScoreTable, ...]
    failures: dict[str, str]
    metrics: dict[str, Any]
    differences: Differences
    meta: dict[str, Any]

    @property
    def main_groups(self) -> tuple[str, ...]:
        """The groups that the data set can tell apart, the one that holds all of them last."""
        return self.data.main_groups

    @property
    def best(self) -> str | None:
        """The detector with the highest AUROC over all, controls apart."""
        return choose_detector(self.contenders, self.metrics, self.main_groups[-1])

    @property
    def units(self) -> str:
        """What is ranked: patches, or images."""
        return "images" if self.data.by_image else "patches"


def run_bench(
    data: Manifest,
    detectors: Sequence[str | Detector | Contender],
    out: Path | str,
    config: BenchConfig = BenchConfig(),
    *,
    progress: bool = True,
    notices: Sequence[str] = (),
    banners: Sequence[str] = (),
) -> BenchResult:
    """Run every detector on every fold and write ``metrics.json`` and ``scores.parquet`` under ``out``.

    A detector that fails in a fold is reported and left out of the figures; the others go on. What is done is kept
    under ``out / "runs"``, and running again after an interruption goes on from there. Kept scores are known by the
    data, the detector and its configuration, the fold and the version of unary; after changing the code of a detector,
    use a new folder.

    Parameters
    ----------
    data
        A whole data set, normals and lesions; or negative and positive images without any listed lesion, which are then
        ranked by the score that a model gives an image.
    detectors
        Names, ``module:Class``, detectors that are not fitted, or rows (`unary.experiments.contenders.Contender`).
    out
        Created if need be.
    config
        Profile, patches, folds, seeds, and resamples of the intervals.
    notices, banners
        Of the reader, and what must not be overlooked about the data: kept with the results.

    Raises
    ------
    DetectorError
        If there is no such detector, or two rows have one name.
    ManifestError, SplitError
        If there is too little data.
    TrainingError
        If not one detector could be run.
    """
    contenders = find_contenders(detectors)
    found = collect_bench_data(data, config.choose_preparation(), config.grid, config.profile, progress=progress)
    folds = tuple(fold for seed in config.seeds for fold in draw_folds(found, count=config.folds, seed=seed))
    out = Path(out)
    cells, failures = _run_cells(found, folds, contenders, out=out, progress=progress)
    finished = [contender.name for contender in contenders if contender.name not in failures]
    if not finished:
        raise TrainingError(f"no detector could be run; the first: {next(iter(failures.values()))}")
    scores = [{name: of[place].scores for name, of in cells.items() if place in of} for place in range(len(folds))]
    tables = tuple(found.build_table(scores[place], fold, seed=place) for place, fold in enumerate(folds))
    complete = [dataclasses.replace(table, scores={name: table.scores[name] for name in finished}) for table in tables]
    metrics = summarise(
        complete, rng=np.random.default_rng(0), resamples=config.resamples, rate_intervals=True, progress=progress
    )
    if found.by_image:
        metrics = {name: {IMAGE: groups[IMAGE]} for name, groups in metrics.items() if IMAGE in groups}
    pairs = [
        (reference, name, group)
        for reference in _REFERENCES
        if reference in metrics
        for name in metrics
        if name != reference
        for group in found.main_groups
        if group in metrics[name]
    ]
    whole = found.main_groups[-1]
    best = choose_detector(contenders, metrics, whole)
    if best is not None:
        pairs += [(row.name, best, whole) for row in contenders if row.is_control and row.name in metrics]
    differences = compare_all(complete, pairs, resamples=config.resamples, progress=progress)
    result = BenchResult(config, data, found, contenders, folds, tables, failures, metrics, differences, meta={})
    result.meta.update(_describe(result, cells), notices=list(notices), banners=list(banners))
    for line in result.meta["gaps"].values():
        logger.warning("%s", line)
    write_scores(out / "scores.parquet", tables)
    write_metrics(out / "metrics.json", metrics, meta=result.meta)
    return result


def choose_detector(contenders: Sequence[Contender], metrics: dict[str, Any], group: str) -> str | None:
    """Return the detector, controls apart, with the highest AUROC of a group; None if there are only controls."""
    rivals = [row.name for row in contenders if row.name in metrics and not row.is_control]
    return max(rivals, key=lambda name: float(metrics[name][group]["auroc"]), default=None)


def _run_cells(
    data: BenchData, folds: Sequence[Fold], contenders: Sequence[Contender], *, out: Path, progress: bool
) -> tuple[dict[str, dict[int, Cell]], dict[str, str]]:
    """Every detector's cells by the place of their fold, and why some are missing."""
    cells: dict[str, dict[int, Cell]] = {contender.name: {} for contender in contenders}
    failures: dict[str, str] = {}
    runs = [(place, contender) for place in range(len(folds)) for contender in contenders]
    with show_progress(runs, title="bench", unit="run", shown=progress) as bar:
        for place, contender in bar:
            where = f"{contender.name}, seed {folds[place].seed}, fold {folds[place].number}"
            bar.set_postfix_str(where)
            try:
                cells[contender.name][place] = run_cell(data, folds[place], contender, out, progress=progress)
            except (TrainingError, DetectorError) as error:
                failures.setdefault(contender.name, f"{where}: {error}")
                logger.warning("failed: %s: %s", where, error)
    return cells, failures


def _find_gaps(result: BenchResult) -> dict[str, str]:
    """By group, in which folds it has nothing to find; groups without any at all included."""
    gaps, unit = {}, "image" if result.data.by_image else "patch"
    for group in result.main_groups:
        pairs = zip(result.folds, result.tables, strict=True)
        empty = [fold for fold, table in pairs if not table.roles(group)[0].any()]
        if len(empty) == len(result.folds):
            gaps[group] = f"{group}: there is no such {unit}"
        elif empty:
            where = ", ".join(f"fold {fold.number} of seed {fold.seed}" for fold in empty)
            gaps[group] = f"{group}: no such {unit} in {where}; the figures are means over the other folds"
    return gaps


def _describe(result: BenchResult, cells: dict[str, dict[int, Cell]]) -> dict[str, Any]:
    """What a reader of ``metrics.json`` needs to judge and repeat the figures."""
    data, config = result.data, result.config
    members = data.groups if data.by_image else {ALL: data.positive, **data.groups}
    given = {"profile": config.profile.name, "preparation": dataclasses.asdict(config.choose_preparation())}
    return {
        **describe_run("bench"),
        "data_hash": data.data_hash,
        "config": {**dataclasses.asdict(config), **given},
        "counts": {
            group: count_patches(data.fine, member) for group, member in {"normal": data.normal, **members}.items()
        },
        "grids": {
            name: {"size_px": of.patches.size_px, "pixel_bytes": of.patches.nbytes}
            for name, of in (("fine", data.fine), ("coarse", data.coarse))
        },
        "folds": [_describe_fold(data, fold) for fold in result.folds],
        "detectors": {row.name: _describe_contender(row, list(cells[row.name].values())) for row in result.contenders},
        "failures": dict(result.failures),
        "gaps": _find_gaps(result),
        "differences": as_document(result.differences),
        "skipped": list(data.fine.skipped),
    }


def _describe_fold(data: BenchData, fold: Fold) -> dict[str, int]:
    normal, positive = (fold.test[member[fold.test]] for member in (data.normal, data.positive))
    told = {"seed": fold.seed, "fold": fold.number}
    for role, which in (("train", fold.train), ("test_normal", normal), ("test_positive", positive)):
        counts = count_patches(data.fine, which)
        told |= {f"{role}_{what}": counts[what] for what in ("patients", "patches")}
    return told


def _describe_contender(contender: Contender, done: Sequence[Cell]) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": contender.kind, "summary": contender.describe(), "runs": len(done)}
    if done:
        facts["fit_seconds"] = float(np.mean([cell.fit_seconds for cell in done]))
        facts["score_seconds_per_image"] = float(np.mean([cell.score_seconds_per_image for cell in done]))
        facts["parameters"] = max(cell.parameters for cell in done)
    return facts
