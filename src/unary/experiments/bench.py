"""One bench for all detectors: the same patches, folds over patients, and figures that come with intervals.

Each detector learns from normal patches of all folds but one and scores what is left. The areas of the folds are
averaged, each fold having its own model, and the patients of all folds are drawn together for the intervals. Of a data
set without any listed lesion, whole images are ranked in place of patches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from unary.detectors.protocol import Detector
from unary.errors import DetectorError, SplitError, TrainingError
from unary.evaluation.intervals import Estimate, FewPatientsError
from unary.evaluation.metrics import (
    ALL,
    ScoreTable,
    compare_detectors,
    summarise,
    write_metrics,
    write_scores,
)
from unary.experiments.bench_cells import Cell, run_cell
from unary.experiments.bench_data import IMAGE, BenchData, Fold, build_table, collect_bench_data, draw_folds
from unary.experiments.contenders import Contender, find_contenders
from unary.models.bundle import describe_versions
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import DEFAULT, Profile
from unary.records import NOTICE, Manifest

logger = logging.getLogger(__name__)

_REFERENCES = ("laplacian", "wei2018", "fusion")


@dataclass(frozen=True)
class BenchConfig:
    """The comparison. Each seed divides the patients anew and starts training anew.

    Attributes
    ----------
    profile
        Says what normal images, lesion groups and the working spacing are.
    preparation
        Of the patches on the stored grid; None for the profile's way to find tissue, and defaults.
    grid
        Where those patches lie; the paper's by default.
    folds
        How many, at least 2.
    seeds
        Distinct.
    resamples
        Of patients, for the intervals.
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
        return self.preparation or PreparationConfig(mask=self.profile.mask)


@dataclass(frozen=True, eq=False)
class BenchResult:
    """Everything that the reports show.

    Attributes
    ----------
    config, manifest, data, contenders
        What was compared, and on what.
    folds, tables
        One per seed and fold, in the same order; a table holds the detectors that have scores there.
    cells
        By detector, one per fold; None where it failed.
    failures
        By detector, why it is not in ``metrics``.
    metrics
        ``{NAME: {GROUP: {...}}}`` as in `unary.evaluation.metrics`, of the detectors that finished every fold. GROUP is
        ``"image"`` alone where images are ranked.
    differences
        ``{REFERENCE: {NAME: {GROUP: estimate}}}``: AUROC of NAME minus that of REFERENCE, paired.
    meta
        What a reader needs to judge and repeat the figures.
    """

    config: BenchConfig
    manifest: Manifest
    data: BenchData
    contenders: tuple[Contender, ...]
    folds: tuple[Fold, ...]
    tables: tuple[ScoreTable, ...]
    cells: dict[str, tuple[Cell | None, ...]]
    failures: dict[str, str]
    metrics: dict[str, Any]
    differences: dict[str, dict[str, dict[str, Estimate]]]
    meta: dict[str, Any]

    @property
    def main_groups(self) -> tuple[str, ...]:
        """The groups that the data set can tell apart, the one that holds all of them last."""
        return self.data.main_groups

    @property
    def unit(self) -> str:
        """What is ranked: a patch, or an image."""
        return "image" if self.data.by_image else "patch"

    @property
    def units(self) -> str:
        """The same in the plural."""
        return "images" if self.data.by_image else "patches"

    def describe_gaps(self) -> dict[str, str]:
        """Say, by group, in which folds it has nothing to find; groups without any at all included."""
        gaps = {}
        for group in self.main_groups:
            empty = [
                fold for fold, table in zip(self.folds, self.tables, strict=True) if not table.roles(group)[0].any()
            ]
            if len(empty) == len(self.folds):
                gaps[group] = f"{group}: there is no such {self.unit}"
            elif empty:
                where = ", ".join(f"fold {fold.number} of seed {fold.seed}" for fold in empty)
                gaps[group] = f"{group}: no such {self.unit} in {where}; the figures are means over the other folds"
        return gaps


def run_bench(
    data: Manifest,
    detectors: Sequence[str | Detector | Contender],
    out: Path,
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
        Rows, with distinct names: names in `unary.experiments.contenders.list_contenders`, ``module:Class``, detectors
        that need not be fitted, or rows with a name of their own.
    out
        Created if need be.
    config
        The comparison.
    progress
        Show progress bars.
    notices, banners
        Of the reader, and what must not be overlooked about the data; kept with the results.

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
    patches = collect_bench_data(data, config.choose_preparation(), config.grid, config.profile, progress=progress)
    folds = tuple(fold for seed in config.seeds for fold in draw_folds(patches, count=config.folds, seed=seed))
    cells, failures = _run_cells(patches, folds, contenders, out=out, progress=progress)
    finished = [contender.name for contender in contenders if contender.name not in failures]
    if not finished:
        raise TrainingError(f"no detector could be run; the first: {next(iter(failures.values()))}")
    tables = tuple(_build_table(patches, fold, cells, place) for place, fold in enumerate(folds))
    complete = [dataclasses.replace(table, scores={name: table.scores[name] for name in finished}) for table in tables]
    metrics = summarise(complete, rng=np.random.default_rng(0), resamples=config.resamples, rate_intervals=True)
    if patches.by_image:
        metrics = {name: {IMAGE: groups[IMAGE]} for name, groups in metrics.items() if IMAGE in groups}
    result = BenchResult(
        config, data, patches, contenders, folds, tables, cells, failures, metrics, differences={}, meta={}
    )
    for line in result.describe_gaps().values():
        logger.warning("%s", line)
    result = dataclasses.replace(result, differences=_compare(complete, result, progress=progress))
    result = dataclasses.replace(result, meta={**_describe(result), "notices": list(notices), "banners": list(banners)})
    write_scores(out / "scores.parquet", tables)
    write_metrics(out / "metrics.json", metrics, meta=result.meta)
    return result


def _run_cells(
    data: BenchData, folds: Sequence[Fold], contenders: Sequence[Contender], *, out: Path, progress: bool
) -> tuple[dict[str, tuple[Cell | None, ...]], dict[str, str]]:
    """Every detector's cells, and why some are missing."""
    cells: dict[str, list[Cell | None]] = {contender.name: [] for contender in contenders}
    failures: dict[str, str] = {}
    total = len(folds) * len(contenders)
    with tqdm(total=total, desc="bench", unit="run", delay=2, disable=None if progress else True) as bar:
        for fold in folds:
            for contender in contenders:
                bar.set_postfix_str(f"{contender.name}, seed {fold.seed}, fold {fold.number}")
                cell: Cell | None = None
                try:
                    cell = run_cell(data, fold, contender, out, progress=progress)
                except (TrainingError, DetectorError) as error:
                    told = f"{contender.name}, seed {fold.seed}, fold {fold.number}: {error}"
                    failures.setdefault(contender.name, told)
                    logger.warning("failed: %s", told)
                cells[contender.name].append(cell)
                bar.update()
    return {name: tuple(of_name) for name, of_name in cells.items()}, failures


def _build_table(data: BenchData, fold: Fold, cells: dict[str, tuple[Cell | None, ...]], place: int) -> ScoreTable:
    found = {name: of_name[place] for name, of_name in cells.items()}
    scores = {name: cell.scores for name, cell in found.items() if cell is not None}
    if data.by_image:
        return data.build_image_table(scores, fold, seed=place)
    return build_table(
        data.fine, scores, fold.test, positive=data.positive, groups=data.groups, seed=place, split="patient"
    )


def _compare(
    tables: Sequence[ScoreTable], result: BenchResult, *, progress: bool
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Paired differences to the references, for the main groups; absent where patients are too few."""
    pairs = [
        (reference, name, group)
        for reference in _REFERENCES
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
    members = data.groups if data.by_image else {ALL: data.positive, **data.groups}
    return {
        "experiment": "bench",
        "notice": NOTICE,
        "command": shlex.join(["unary", *sys.argv[1:]]),
        "versions": describe_versions(),
        "data_hash": data.data_hash,
        "config": _describe_config(result.config),
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
        "detectors": {contender.name: _describe_contender(contender, result) for contender in result.contenders},
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


def _describe_config(config: BenchConfig) -> dict[str, Any]:
    preparation = dataclasses.asdict(config.choose_preparation())
    return {**dataclasses.asdict(config), "profile": config.profile.name, "preparation": preparation}


def _describe_contender(contender: Contender, result: BenchResult) -> dict[str, Any]:
    done = [cell for cell in result.cells[contender.name] if cell is not None]
    facts: dict[str, Any] = {"kind": contender.kind, "summary": contender.describe(), "runs": len(done)}
    if done:
        facts["fit_seconds"] = float(np.mean([cell.fit_seconds for cell in done]))
        facts["score_seconds_per_image"] = float(np.mean([cell.score_seconds_per_image for cell in done]))
        facts["parameters"] = max(cell.parameters for cell in done)
    return facts
