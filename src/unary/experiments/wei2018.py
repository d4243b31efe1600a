"""Section 5 of Wei et al. 2018 on an INbreast folder, from DICOM to report.

Negatives are patches of BI-RADS 1 images, positives the patches of BI-RADS 5 images that contain a lesion. A tenth of
the negatives is held out twice: by patch, as the paper does, and by patient, which is honest. The same held-out
patches are scored by the paper's RMSE, by a filter that learns nothing and by controls that know nothing of lesions.
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
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unary.datasets.splits import require_disjoint, split_by_patch, split_by_patient
from unary.detectors.laplacian import Laplacian
from unary.detectors.scoring import measure_controls, score_patches
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import History, TrainingConfig
from unary.errors import ManifestError
from unary.evaluation.intervals import Estimate, FewPatientsError
from unary.evaluation.metrics import (
    NORMAL_LOOKING,
    ScoreTable,
    compare_detectors,
    summarise,
    write_metrics,
    write_scores,
)
from unary.experiments.bench_data import build_table
from unary.models.bundle import describe_versions
from unary.patches.collection import Collection, collect_patches
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles.mammography import MAMMOGRAPHY
from unary.records import NOTICE, Manifest
from unary.training.context import FitContext

logger = logging.getLogger(__name__)

Split = Literal["patch", "patient"]
SPLITS: tuple[Split, ...] = ("patch", "patient")
PAPER_AUROC = 0.84


@dataclass(frozen=True)
class PaperConfig:
    """The experiment; the defaults are the paper's where it states them.

    ``held_out`` is the share of the negatives that is held out, in (0, 1): of the patches, or of the patients.
    ``seeds`` number the runs; each seed draws its own hold-out and its own initial weights.
    """

    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    grid: GridConfig = dataclasses.field(default_factory=GridConfig)
    preparation: PreparationConfig = dataclasses.field(default_factory=PreparationConfig)
    seeds: tuple[int, ...] = (0, 1, 2)
    held_out: float = 0.1
    resamples: int = 2000


@dataclass(frozen=True, eq=False)
class SplitRun:
    """One training run: the test table, how training went, and the detector for the pictures."""

    table: ScoreTable
    history: History
    detector: Wei2018


@dataclass(frozen=True, eq=False)
class PaperResult:
    """Everything that the report shows.

    ``metrics`` is ``{NAME: {SPLIT: {GROUP: {...}}}}``; ``advantage`` the AUROC of the paper's RMSE minus that of
    ``laplacian``, by split and group, with paired intervals.
    """

    config: PaperConfig
    collection: Collection
    runs: dict[str, tuple[SplitRun, ...]]
    metrics: dict[str, Any]
    advantage: dict[str, dict[str, Estimate]]
    meta: dict[str, Any]


def select_images(manifest: Manifest) -> Manifest:
    """Keep the images that the paper uses: BI-RADS 1 as negatives, BI-RADS 5 as positives.

    Raises
    ------
    ManifestError
        If either is missing.
    """
    chosen = manifest.select(tuple(row for row in manifest.rows if row.assessment in ("1", "5")))
    for birads, role in (("1", "negatives"), ("5", "positives")):
        if not any(row.assessment == birads for row in chosen.rows):
            raise ManifestError(
                f"no image of BI-RADS {birads}: the experiment has no {role}; is it an INbreast folder?"
            )
    return chosen


def hold_out(collection: Collection, split: Split, *, share: float, seed: int) -> NDArray[np.bool_]:
    """Return which negatives are held out, shape (n,); never True for a patch of a BI-RADS 5 image.

    By patient, the negatives of a patient who also has a BI-RADS 5 image are always held out, so that no positive is
    scored by a model that has seen its patient.
    """
    negative = _negatives(collection)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    held = np.zeros(len(collection), bool)
    if split == "patch":
        held[np.flatnonzero(negative)[split_by_patch(int(negative.sum()), share, rng)]] = True
        return held
    patients = collection.column("patient_id")
    also_positive = np.isin(patients, np.unique(patients[collection.column("assessment") == "5"]))
    drawn = np.flatnonzero(negative & ~also_positive)
    held[drawn[split_by_patient(patients[drawn], share, rng)]] = True
    return held | (negative & also_positive)


def _negatives(collection: Collection) -> NDArray[np.bool_]:
    negative: NDArray[np.bool_] = (collection.column("assessment") == "1") & ~collection.touches
    return negative


def run_split(
    collection: Collection, split: Split, config: PaperConfig, *, seed: int, out: Path, progress: bool
) -> SplitRun:
    """Train and score once. A finished or interrupted training is taken up from its checkpoint under ``out``."""
    held = hold_out(collection, split, share=config.held_out, seed=seed)
    fitted = _negatives(collection) & ~held
    positive = collection.lesional & (collection.column("assessment") == "5")
    control = collection.normal_looking & (collection.column("assessment") == "5")
    if split == "patient":
        patients = collection.column("patient_id")
        require_disjoint(patients[fitted], patients[held | positive | control], sides=("training", "test"))
    normal = collection.patches.subset(np.flatnonzero(fitted))
    context = FitContext(
        seed, out / "checkpoints" / f"{split}-{seed}", progress=progress, title=f"{split} split, seed {seed},"
    )
    detector = Wei2018(Wei2018Config(training=config.training)).fit(normal, context)
    kept = np.flatnonzero(held | positive | control)
    tested = collection.patches.subset(kept)
    scores = {
        "wei2018": score_patches(detector, tested),
        "laplacian": score_patches(Laplacian().fit(normal, context), tested),
        **measure_controls(tested),
    }
    groups = {name: member & positive for name, member in collection.contains.items()} | {NORMAL_LOOKING: control}
    table = build_table(collection, scores, kept, positive=positive, groups=groups, seed=seed, split=split)
    assert detector.history is not None
    return SplitRun(table, detector.history, detector)


def run_wei2018(
    manifest: Manifest, out: Path, config: PaperConfig, *, progress: bool = True, notices: Sequence[str] = ()
) -> PaperResult:
    """Run the experiment and write ``metrics.json`` and ``scores.parquet`` under ``out``.

    Parameters
    ----------
    manifest
        Of a whole data set; the paper's images are picked from it.
    out
        Created if need be. Running again after an interruption goes on from the checkpoints there.
    config
        The experiment.
    notices
        Of the reader, to be kept with the results.

    Raises
    ------
    ManifestError, SplitError, TrainingError
        If there is too little data, or training fails.
    """
    collection = collect_patches(
        select_images(manifest), config.preparation, config.grid, MAMMOGRAPHY.reading, progress=progress
    )
    positive = collection.lesional & (collection.column("assessment") == "5")
    if not positive.any():
        raise ManifestError("no patch of a BI-RADS 5 image contains a lesion; are the lesion files (AllXML) there?")
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    runs: dict[str, tuple[SplitRun, ...]] = {}
    metrics: dict[str, Any] = {}
    advantage: dict[str, dict[str, Estimate]] = {}
    for split in SPLITS:
        runs[split] = tuple(
            run_split(collection, split, config, seed=seed, out=out, progress=progress) for seed in config.seeds
        )
        tables = [run.table for run in runs[split]]
        summary = summarise(tables, rng=np.random.default_rng(0), resamples=config.resamples)
        for name, groups in summary.items():
            metrics.setdefault(name, {})[split] = groups
        advantage[split] = {}
        for group in (name for name in summary["wei2018"] if name != NORMAL_LOOKING):
            with contextlib.suppress(FewPatientsError):  # the table says so already
                advantage[split][group] = compare_detectors(
                    tables,
                    first="wei2018",
                    second="laplacian",
                    rng=np.random.default_rng(0),
                    group=group,
                    resamples=config.resamples,
                )
    meta = _describe(collection, config, runs, advantage, notices)
    write_scores(out / "scores.parquet", [run.table for split in SPLITS for run in runs[split]])
    write_metrics(out / "metrics.json", metrics, meta=meta)
    return PaperResult(config, collection, runs, metrics, advantage, meta)


def _describe(
    collection: Collection,
    config: PaperConfig,
    runs: dict[str, tuple[SplitRun, ...]],
    advantage: dict[str, dict[str, Estimate]],
    notices: Sequence[str],
) -> dict[str, Any]:
    """What a reader of ``metrics.json`` needs to judge and repeat the figures."""
    birads = collection.column("assessment")
    patients = collection.column("patient_id")
    negative, positive = _negatives(collection), collection.lesional & (birads == "5")
    return {
        "experiment": "wei2018",
        "notice": NOTICE,
        "command": shlex.join(["unary", *sys.argv[1:]]),
        "versions": describe_versions(),
        "data_hash": collection.data_hash,
        "config": dataclasses.asdict(config),
        "counts": {
            "negative_patches": int(negative.sum()),
            "positive_patches": int(positive.sum()),
            "negative_images": len(np.unique(collection.image[negative])),
            "positive_images": len(np.unique(collection.image[positive])),
            "negative_patients": len(np.unique(patients[negative])),
            "positive_patients": len(np.unique(patients[positive])),
            "pixel_bytes": collection.patches.nbytes,
        },
        "stability": {
            split: [
                {
                    "seed": run.table.seed,
                    "first_loss": run.history.losses[0],
                    "last_loss": run.history.losses[-1],
                    "unexplained": run.history.unexplained,
                    "dead_units": run.history.dead_units[-1],
                }
                for run in of_split
            ]
            for split, of_split in runs.items()
        },
        "wei2018_minus_laplacian": {
            split: {group: dataclasses.asdict(estimate) for group, estimate in groups.items()}
            for split, groups in advantage.items()
        },
        "skipped": list(collection.skipped),
        "notices": list(notices),
    }
