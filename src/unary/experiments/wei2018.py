"""Section 5 of Wei et al. 2018 on an INbreast folder, from DICOM to report.

Negatives are patches of BI-RADS 1 images, positives the patches of BI-RADS 5 images that contain a lesion. The paper
does not say which patches of an image count. Read as all of them, most negatives are air; read as those of tissue, none
are. Both readings run, each with a tenth of the negatives held out twice: by patch, as the paper does, and by patient,
which is honest. The same held-out patches are scored by the paper's RMSE, by a filter that learns nothing and by
controls that know nothing of lesions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unary.datasets.splits import require_disjoint, split_by_patch, split_by_patient
from unary.detectors.laplacian import Laplacian, pool_patch_set
from unary.detectors.scoring import measure_controls, score_patches
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import History, TrainingConfig
from unary.errors import ManifestError
from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import NORMAL_LOOKING, ScoreTable, compare_all, summarise, write_metrics, write_scores
from unary.experiments.common import as_document, build_table, count_patches, describe_run
from unary.experiments.wei2018_air import GridCount, compare_parts, count_grids, count_positives, measure_tissue
from unary.patches.collection import Collection, collect_patches
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles.mammography import MAMMOGRAPHY
from unary.progress import show_progress
from unary.records import Manifest
from unary.training.context import FitContext

Split = Literal["patch", "patient"]
SPLITS: tuple[Split, ...] = ("patch", "patient")
PAPER_AUROC = 0.84
PAPER_IMAGES = (67, 49)
"""Of BI-RADS 1 and 5."""
WHOLE_IMAGE, TISSUE = "whole_image", "tissue"


@dataclass(frozen=True)
class Extraction:
    """One reading of "patches extracted from 67 BI-RADS 1 images": a name, and how patches are made."""

    name: str
    preparation: PreparationConfig
    grid: GridConfig


@dataclass(frozen=True)
class PaperConfig:
    """The experiment; the defaults are the paper's where it states them.

    ``preparation`` and ``grid`` are those of patches of tissue; those of the whole image have its intensities as stored
    and the same size and stride. ``held_out`` is the share of the negatives that is held out, in (0, 1): of the
    patches, or of the patients. Each of the ``seeds`` draws its own hold-out and its own initial weights.
    """

    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    grid: GridConfig = dataclasses.field(default_factory=GridConfig)
    preparation: PreparationConfig = dataclasses.field(default_factory=PreparationConfig)
    seeds: tuple[int, ...] = (0, 1, 2)
    held_out: float = 0.1
    resamples: int = 2000

    @property
    def extractions(self) -> tuple[Extraction, ...]:
        """Both readings."""
        whole = dataclasses.replace(self.preparation, mask="none", intensity="full_scale", window=None)
        return (
            Extraction(WHOLE_IMAGE, whole, dataclasses.replace(self.grid, min_tissue=0.0)),
            Extraction(TISSUE, self.preparation, self.grid),
        )


@dataclass(frozen=True, eq=False)
class SplitRun:
    """One training run: the test table and where its patches are, how training went, and the detector."""

    table: ScoreTable
    kept: NDArray[np.intp]
    history: History
    detector: Wei2018


@dataclass(frozen=True, eq=False)
class ExtractionResult:
    """What came of one reading.

    Attributes
    ----------
    collection
        Its patches.
    tissue
        Shape (n,), float64: the share of each patch that is tissue, by the rule of the profile.
    runs
        By split, one per seed.
    metrics
        ``{NAME: {SPLIT: {GROUP: {...}}}}``, as in `unary.evaluation.metrics`.
    advantage
        The AUROC of the paper's RMSE minus that of each other, by split, name and group, with paired intervals.
    parts
        The AUROC of all lesions against a part of the negatives, by split, name and part (`compare_parts`).
    """

    collection: Collection
    tissue: NDArray[np.float64]
    runs: dict[str, tuple[SplitRun, ...]]
    metrics: dict[str, Any]
    advantage: dict[str, dict[str, dict[str, Estimate]]]
    parts: dict[str, dict[str, dict[str, Estimate]]]


@dataclass(frozen=True, eq=False)
class PaperResult:
    """Everything that the report shows: the readings by name, and how many patches each way of counting gives."""

    readings: dict[str, ExtractionResult]
    grids: tuple[GridCount, ...]
    positives: tuple[GridCount, ...]
    meta: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures as ``metrics.json`` holds them: ``{NAME: {READING: {SPLIT: {GROUP: {...}}}}}``."""
        names = next(iter(self.readings.values())).metrics
        return {name: {reading: of.metrics[name] for reading, of in self.readings.items()} for name in names}


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
    negative = find_roles(collection)["negative"]
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


def find_roles(collection: Collection) -> dict[str, NDArray[np.bool_]]:
    """The negatives, the positives, and the control: normal-looking patches of BI-RADS 5 images."""
    normal, suspicious = (collection.column("assessment") == birads for birads in ("1", "5"))
    return {
        "negative": normal & ~collection.touches,
        "positive": suspicious & collection.lesional,
        "control": suspicious & collection.normal_looking,
    }


@dataclass(frozen=True, eq=False)
class _Measured:
    """The patches of one reading, and what is measured of all of them once, for any run."""

    extraction: Extraction
    collection: Collection
    pooled: NDArray[np.float64]
    controls: dict[str, NDArray[np.float64]]


def _measure(manifest: Manifest, extraction: Extraction, *, progress: bool) -> _Measured:
    collection = collect_patches(
        manifest, extraction.preparation, extraction.grid, MAMMOGRAPHY.reading, progress=progress
    )
    if not find_roles(collection)["positive"].any():
        raise ManifestError(
            f"no patch of {extraction.grid.size_px} px of a BI-RADS 5 image contains a lesion; are the lesion files "
            "(AllXML) there, and patches not too large for the images (--size-px)?"
        )
    title = f"laplacian, {extraction.name}" if progress else None
    pooled = pool_patch_set(collection.patches, title=title)
    return _Measured(extraction, collection, pooled, measure_controls(collection.patches))


def _run_split(
    measured: _Measured, split: Split, config: PaperConfig, *, seed: int, out: Path, progress: bool
) -> SplitRun:
    """Train and score once. A finished or interrupted training is taken up from its checkpoint under ``out``."""
    collection, reading = measured.collection, measured.extraction.name
    held = hold_out(collection, split, share=config.held_out, seed=seed)
    negative, positive, control = find_roles(collection).values()
    fitted = np.flatnonzero(negative & ~held)
    if split == "patient":
        patients = collection.column("patient_id")
        require_disjoint(patients[fitted], patients[held | positive | control], sides=("training", "test"))
    title = f"{reading}, split by {split}, seed {seed},"
    context = FitContext(seed, out / "checkpoints" / f"{reading}-{split}-{seed}", progress=progress, title=title)
    detector = Wei2018(Wei2018Config(training=config.training)).fit(collection.patches.subset(fitted), context)
    kept = np.flatnonzero(held | positive | control)
    tested = collection.patches.subset(kept)
    laplacian = Laplacian().fit_pooled(measured.pooled[fitted], size_px=tested.size_px)
    scores = {
        "wei2018": score_patches(detector, tested, title=f"{title} scoring" if progress else None),
        "laplacian": laplacian.score_pooled(measured.pooled[kept]),
        **{name: values[kept] for name, values in measured.controls.items()},
    }
    groups = {name: member & positive for name, member in collection.contains.items()} | {NORMAL_LOOKING: control}
    table = build_table(collection, scores, kept, positive=positive, groups=groups, seed=seed, split=split)
    assert detector.history is not None
    return SplitRun(table, kept, detector.history, detector)


def run_wei2018(
    manifest: Manifest, out: Path, config: PaperConfig, *, progress: bool = True, notices: Sequence[str] = ()
) -> PaperResult:
    """Run the experiment and write ``metrics.json`` and ``scores_<reading>.parquet`` under ``out``.

    The paper's images are picked from a manifest of the whole data set; ``notices`` of its reader are kept with the
    results. Running again after an interruption goes on from the checkpoints under ``out``.

    Raises
    ------
    ManifestError, SplitError, TrainingError
        If there is too little data, or training fails.
    """
    chosen = select_images(manifest)
    measured = [_measure(chosen, extraction, progress=progress) for extraction in config.extractions]
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    runs: dict[tuple[str, Split], list[SplitRun]] = {}
    plan = list(itertools.product(config.seeds, SPLITS, measured))
    for seed, split, one in show_progress(plan, title="all trainings", unit="training", shown=progress):
        run = _run_split(one, split, config, seed=seed, out=out, progress=progress)
        runs.setdefault((one.extraction.name, split), []).append(run)
    readings = {
        one.extraction.name: _summarise_reading(
            one,
            {split: tuple(runs[one.extraction.name, split]) for split in SPLITS},
            resamples=config.resamples,
            progress=progress,
        )
        for one in measured
    }
    whole = readings[WHOLE_IMAGE].collection
    result = PaperResult(
        readings,
        count_grids(whole.patches.subset(find_roles(whole)["negative"]), stride_px=config.grid.stride_px),
        count_positives(chosen, {name: of.collection for name, of in readings.items()}),
        meta={},
    )
    result.meta.update(_describe(result), config=dataclasses.asdict(config), notices=list(notices))
    for name, of in readings.items():
        write_scores(out / f"scores_{name}.parquet", [run.table for split in SPLITS for run in of.runs[split]])
    write_metrics(out / "metrics.json", result.metrics, meta=result.meta)
    return result


def _summarise_reading(
    measured: _Measured, runs: dict[str, tuple[SplitRun, ...]], *, resamples: int, progress: bool
) -> ExtractionResult:
    metrics: dict[str, Any] = {}
    advantage: dict[str, dict[str, dict[str, Estimate]]] = {}
    parts: dict[str, dict[str, dict[str, Estimate]]] = {}
    collection = measured.collection
    tissue = measure_tissue(collection.patches, masked=measured.extraction.preparation.mask != "none")
    for split, of_split in runs.items():
        tables = [run.table for run in of_split]
        summary = summarise(tables, rng=np.random.default_rng(0), resamples=resamples, progress=progress)
        for name, groups in summary.items():
            metrics.setdefault(name, {})[split] = groups
        asked = [
            (name, "wei2018", group)
            for name in summary
            for group in summary["wei2018"]
            if name != "wei2018" and group != NORMAL_LOOKING
        ]
        found = compare_all(tables, asked, resamples=resamples, progress=progress)
        advantage[split] = {name: of.get("wei2018", {}) for name, of in found.items()}
        parts[split] = compare_parts(tables, [tissue[run.kept] for run in of_split], resamples=resamples)
    return ExtractionResult(collection, tissue, runs, metrics, advantage, parts)


def _describe(result: PaperResult) -> dict[str, Any]:
    """What a reader of ``metrics.json`` needs to judge and repeat the figures."""
    return {
        **describe_run("wei2018"),
        "readings": {name: _describe_reading(of) for name, of in result.readings.items()},
        "grids": [dataclasses.asdict(count) for count in result.grids],
        "positives": [dataclasses.asdict(count) for count in result.positives],
        "skipped": list(dict.fromkeys(line for of in result.readings.values() for line in of.collection.skipped)),
    }


def _describe_reading(found: ExtractionResult) -> dict[str, Any]:
    collection, roles = found.collection, find_roles(found.collection)
    counts = {role: count_patches(collection, roles[role]) for role in ("negative", "positive")}
    counted = {f"{role}_{what}": counts[role][what] for what in counts["negative"] for role in counts}
    return {
        "data_hash": collection.data_hash,
        "counts": {**counted, "pixel_bytes": collection.patches.nbytes},
        "stability": {
            split: [_describe_training(run.table.seed, run.history) for run in of_split]
            for split, of_split in found.runs.items()
        },
        "wei2018_minus": as_document(found.advantage),
        "negatives_by_part": as_document(found.parts),
    }


def _describe_training(seed: int, history: History) -> dict[str, Any]:
    losses = {"first_loss": history.losses[0], "last_loss": history.losses[-1]}
    return {"seed": seed, **losses, "unexplained": history.unexplained, "dead_units": history.dead_units[-1]}
