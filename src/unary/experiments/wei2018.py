"""Section 5 of Wei et al. 2018 on an INbreast folder, from DICOM to report.

Negatives are patches of BI-RADS 1 images, positives the patches of BI-RADS 5 images that contain a lesion. A tenth of
the negatives is held out twice: by patch, as the paper does, and by patient, which is honest. The same held-out
patches are scored by the paper's RMSE, by a filter that learns nothing and by controls that know nothing of lesions.
"""

from __future__ import annotations

import dataclasses
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
from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import NORMAL_LOOKING, ScoreTable, compare_all, summarise, write_metrics, write_scores
from unary.experiments.common import as_document, build_table, count_patches, describe_run
from unary.patches.collection import Collection, collect_patches
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles.mammography import MAMMOGRAPHY
from unary.records import Manifest
from unary.training.context import FitContext

Split = Literal["patch", "patient"]
SPLITS: tuple[Split, ...] = ("patch", "patient")
PAPER_AUROC = 0.84
PAPER_IMAGES = (67, 49)
"""Of BI-RADS 1 and 5."""


@dataclass(frozen=True)
class PaperConfig:
    """The experiment; the defaults are the paper's where it states them.

    ``held_out`` is the share of the negatives that is held out, in (0, 1): of the patches, or of the patients.
    Each of the ``seeds`` draws its own hold-out and its own initial weights.
    """

    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    grid: GridConfig = dataclasses.field(default_factory=GridConfig)
    preparation: PreparationConfig = dataclasses.field(default_factory=PreparationConfig)
    seeds: tuple[int, ...] = (0, 1, 2)
    held_out: float = 0.1
    resamples: int = 2000


@dataclass(frozen=True, eq=False)
class SplitRun:
    """One training run: the test table and where its patches are, how training went, and the detector."""

    table: ScoreTable
    kept: NDArray[np.intp]
    history: History
    detector: Wei2018


@dataclass(frozen=True, eq=False)
class PaperResult:
    """Everything that the report shows.

    ``metrics`` is ``{NAME: {SPLIT: {GROUP: {...}}}}``; ``advantage`` the AUROC of the paper's RMSE minus that of each
    other, by split, name and group, with paired intervals.
    """

    collection: Collection
    runs: dict[str, tuple[SplitRun, ...]]
    metrics: dict[str, Any]
    advantage: dict[str, dict[str, dict[str, Estimate]]]
    meta: dict[str, Any]


def select_images(manifest: Manifest) -> Manifest:
    """Keep the images that the paper uses: BI-RADS 1 as negatives, BI-RADS 5 as positives.

    That either is missing is a ManifestError.
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
    negative = _find_roles(collection)["negative"]
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


def _find_roles(collection: Collection) -> dict[str, NDArray[np.bool_]]:
    """The negatives, the positives, and the control: normal-looking patches of BI-RADS 5 images."""
    normal, suspicious = (collection.column("assessment") == birads for birads in ("1", "5"))
    return {
        "negative": normal & ~collection.touches,
        "positive": suspicious & collection.lesional,
        "control": suspicious & collection.normal_looking,
    }


def _run_split(
    collection: Collection, split: Split, config: PaperConfig, *, seed: int, out: Path, progress: bool
) -> SplitRun:
    """Train and score once. A finished or interrupted training is taken up from its checkpoint under ``out``."""
    held = hold_out(collection, split, share=config.held_out, seed=seed)
    negative, positive, control = _find_roles(collection).values()
    fitted = negative & ~held
    if split == "patient":
        patients = collection.column("patient_id")
        require_disjoint(patients[fitted], patients[held | positive | control], sides=("training", "test"))
    normal = collection.patches.subset(np.flatnonzero(fitted))
    checkpoint, title = out / "checkpoints" / f"{split}-{seed}", f"{split} split, seed {seed},"
    context = FitContext(seed, checkpoint, progress=progress, title=title)
    detector = Wei2018(Wei2018Config(training=config.training)).fit(normal, context)
    kept = np.flatnonzero(held | positive | control)
    tested = collection.patches.subset(kept)
    laplacian = Laplacian().fit(normal, context)
    scores = {
        name: score_patches(each, tested, title=f"{title} scoring by {name}" if progress else None)
        for name, each in (("wei2018", detector), ("laplacian", laplacian))
    } | {
        **measure_controls(tested),
    }
    groups = {name: member & positive for name, member in collection.contains.items()} | {NORMAL_LOOKING: control}
    table = build_table(collection, scores, kept, positive=positive, groups=groups, seed=seed, split=split)
    assert detector.history is not None
    return SplitRun(table, kept, detector.history, detector)


def run_wei2018(
    manifest: Manifest, out: Path, config: PaperConfig, *, progress: bool = True, notices: Sequence[str] = ()
) -> PaperResult:
    """Run the experiment and write ``metrics.json`` and ``scores.parquet`` under ``out``.

    The paper's images are picked from a manifest of the whole data set; ``notices`` of its reader are kept with the
    results. Running again after an interruption goes on from the checkpoints under ``out``.

    Raises
    ------
    ManifestError, SplitError, TrainingError
        If there is too little data, or training fails.
    """
    collection = collect_patches(
        select_images(manifest), config.preparation, config.grid, MAMMOGRAPHY.reading, progress=progress
    )
    if not _find_roles(collection)["positive"].any():
        raise ManifestError(
            f"no patch of {config.grid.size_px} px of a BI-RADS 5 image contains a lesion; are the lesion files "
            "(AllXML) there, and patches not too large for the images (--size-px)?"
        )
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    runs: dict[str, tuple[SplitRun, ...]] = {}
    metrics: dict[str, Any] = {}
    advantage: dict[str, dict[str, dict[str, Estimate]]] = {}
    for split in SPLITS:
        runs[split] = tuple(
            _run_split(collection, split, config, seed=seed, out=out, progress=progress) for seed in config.seeds
        )
        tables = [run.table for run in runs[split]]
        summary = summarise(tables, rng=np.random.default_rng(0), resamples=config.resamples, progress=progress)
        for name, groups in summary.items():
            metrics.setdefault(name, {})[split] = groups
        asked = [
            (name, "wei2018", group)
            for name in summary
            for group in summary["wei2018"]
            if name != "wei2018" and group != NORMAL_LOOKING
        ]
        found = compare_all(tables, asked, resamples=config.resamples, progress=progress)
        advantage[split] = {name: of.get("wei2018", {}) for name, of in found.items()}
    result = PaperResult(collection, runs, metrics, advantage, meta={})
    result.meta.update(_describe(result), config=dataclasses.asdict(config), notices=list(notices))
    write_scores(out / "scores.parquet", [run.table for split in SPLITS for run in runs[split]])
    write_metrics(out / "metrics.json", metrics, meta=result.meta)
    return result


def _describe(result: PaperResult) -> dict[str, Any]:
    """What a reader of ``metrics.json`` needs to judge and repeat the figures."""
    collection = result.collection
    roles = _find_roles(collection)
    counts = {role: count_patches(collection, roles[role]) for role in ("negative", "positive")}
    counted = {f"{role}_{what}": counts[role][what] for what in counts["negative"] for role in counts}
    return {
        **describe_run("wei2018"),
        "data_hash": collection.data_hash,
        "counts": {**counted, "pixel_bytes": collection.patches.nbytes},
        "stability": {
            split: [_describe_training(run.table.seed, run.history) for run in of_split]
            for split, of_split in result.runs.items()
        },
        "wei2018_minus": as_document(result.advantage),
        "skipped": list(collection.skipped),
    }


def _describe_training(seed: int, history: History) -> dict[str, Any]:
    losses = {"first_loss": history.losses[0], "last_loss": history.losses[-1]}
    return {"seed": seed, **losses, "unexplained": history.unexplained, "dead_units": history.dead_units[-1]}
