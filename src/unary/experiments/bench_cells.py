"""One detector in one fold of the bench: fitted, scored, and kept, so that an interrupted bench goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unary.detectors import name_of
from unary.detectors.laplacian import Laplacian
from unary.detectors.protocol import Detector
from unary.detectors.scoring import count_weights, score_patches
from unary.errors import CalibrationError, TrainingError
from unary.experiments.bench_data import BenchData, Fold
from unary.experiments.common import read_arrays, write_arrays
from unary.experiments.contenders import Contender
from unary.models.bundle import Model, Provenance
from unary.models.examination import examine_image
from unary.models.findings import FindingsConfig
from unary.models.fitting import measure_images
from unary.models.patients import note_patients
from unary.patches.collection import Collection, read_row
from unary.patches.grid import GridConfig
from unary.patches.preparation import PreparationConfig
from unary.profiles import Profile
from unary.progress import show_progress
from unary.records import Domain
from unary.training.context import FitContext

_FORMAT = 2


@dataclass(frozen=True, eq=False)
class Cell:
    """What one detector did in one fold.

    ``scores`` are of the patches at the fold's ``test``, or of its images (`BenchData.list_images`) where images are
    ranked; shape (n,), float64. ``parameters`` counts fitted numbers, such as weights.
    """

    scores: NDArray[np.float64]
    fit_seconds: float
    score_seconds_per_image: float
    parameters: int


def run_cell(data: BenchData, fold: Fold, contender: Contender, out: Path, *, progress: bool) -> Cell:
    """Fit and score, or read what an earlier call has kept under ``out``.

    Networks that several detectors share are trained once per fold and seed, by the first that needs them: checkpoints
    know themselves by what is trained, on which patches.

    Raises
    ------
    TrainingError, DetectorError
        If training fails, the detector cannot examine such images, or scores are not finite or all equal.
    """
    patches = data.find_collection(contender.detector.grid).patches
    images = data.list_images(fold)
    name = f"{contender.name}-{fold.seed}-{fold.number}-{_hash_cell(data, fold, contender)}"
    path = out / "runs" / f"{name}.npz"
    kept = read_arrays(path, *(field.name for field in dataclasses.fields(Cell)))
    if kept is not None and kept[0].shape == (len(images) if data.by_image else len(fold.test),):
        return Cell(kept[0], float(kept[1]), float(kept[2]), int(kept[3]))
    checkpoint = out / "checkpoints" / f"seed{fold.seed}-fold{fold.number}"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    detector = contender.detector.fit(
        patches.subset(fold.train), FitContext(fold.seed, checkpoint, progress=progress, title=contender.name)
    )
    fitted = time.perf_counter()
    if data.by_image:
        scores = _score_images(data, fold, detector, progress=progress)
    else:
        tested, title = patches.subset(fold.test), f"{contender.name} scoring" if progress else None
        scores = np.asarray(score_patches(detector, tested, title=title), np.float64)
    seconds = time.perf_counter() - fitted
    require_told_apart(scores)
    cell = Cell(scores, fitted - start, seconds / len(images), count_weights(detector))
    write_arrays(path, **vars(cell))
    return cell


def _score_images(data: BenchData, fold: Fold, detector: Detector, *, progress: bool) -> NDArray[np.float64]:
    """The score that a model of the detector gives each image, as `unary.score` does; shape (images,)."""
    part = data.find_collection(detector.grid)
    model = complete_model(
        detector, part, fold.train, profile=data.profile, layout=data.layouts[detector.grid], progress=progress
    )
    rows = [part.rows[number] for number in data.list_images(fold)]
    shown = show_progress(rows, title="scoring", unit="image", shown=progress, leave=False)
    scores = [examine_image(model, read_row(row)).image_score for row in shown]
    return np.asarray(scores, np.float64)  # None becomes NaN, which is refused


def complete_model(
    detector: Detector,
    part: Collection,
    train: NDArray[np.intp],
    *,
    profile: Profile,
    layout: tuple[PreparationConfig, GridConfig],
    progress: bool,
) -> Model:
    """Return the model, not to be saved, of a detector that was fitted on the patches ``train`` of a collection.

    Raises
    ------
    TrainingError
        If no training image has a scored pixel.
    """
    learned = [part.rows[number] for number in np.unique(part.image[train])]
    patients = note_patients([row.patient_id for row in learned], None)
    unsaved = Provenance(patients, part.data_hash, len(learned), len(train), 0, 0, seed=0, versions={})
    findings = FindingsConfig(profile.lengths.merge_mm, profile.lengths.merge_px)
    name = name_of(detector)
    model = Model(name, detector, profile, *layout, math.nan, findings, None, Domain(), Laplacian(), unsaved)
    try:
        return measure_images(model, learned, progress=progress)
    except CalibrationError as error:
        raise TrainingError(str(error)) from error


def require_told_apart(scores: NDArray[np.float64]) -> None:
    """Refuse by a `TrainingError` scores that are not finite, or all equal."""
    if wrong := int(np.count_nonzero(~np.isfinite(scores))):
        raise TrainingError(f"{wrong} of {len(scores)} scores are NaN or infinite; training has probably diverged")
    if np.ptp(scores) == 0:
        raise TrainingError(f"all {len(scores)} scores are equal: it tells nothing apart")


def _hash_cell(data: BenchData, fold: Fold, contender: Contender) -> str:
    """A short name of everything that the scores depend on, the detector's code apart."""
    facts = [_FORMAT, metadata.version("unary"), data.data_hash, data.by_image, contender.name, fold.seed, fold.number]
    facts += [name_of(contender.detector), dataclasses.asdict(contender.detector.config)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode())
    for positions in (fold.train, fold.test):
        digest.update(np.asarray(positions, np.int64).tobytes() + b"|")
    return digest.hexdigest()[:16]
