"""Folds over patients, and one detector fitted and evaluated in one of them; what is done is kept as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from unary.datasets.splits import require_disjoint, split_by_patient
from unary.detectors import find_detector_class
from unary.detectors.wei2018.detector import Wei2018, Wei2018Config
from unary.detectors.wei2018.learning import TrainingConfig
from unary.errors import SplitError
from unary.evaluation.evaluate import evaluate
from unary.evaluation.evaluated_image import EvaluatedImage, evaluate_image, is_normal
from unary.evaluation.intervals import as_pair
from unary.evaluation.matching import Match, Target
from unary.evaluation.pixelwise import summarise_pixels
from unary.experiments.bench_data import assign_folds
from unary.files import hash_file, replacing
from unary.models.bundle import MODEL_FILE, Model, read_model, write_model
from unary.models.calibration import MOST_FINDINGS, NormalScores, calibrate
from unary.models.examination import examine_image
from unary.models.fitting import FitConfig, fit
from unary.patches.collection import read_row
from unary.profiles import DEFAULT
from unary.records import Finding, Manifest, ManifestRow, OperatingPoint

FORMAT = 3


@dataclass(frozen=True)
class Plan:
    """One run: which detector, which division of the patients, which of its folds."""

    detector: str
    seed: int
    fold: int
    folds: int
    epochs: int
    held_out: float

    @property
    def name(self) -> str:
        """Usable as a file name."""
        return f"{self.detector}-seed{self.seed}-fold{self.fold}"


@dataclass(frozen=True)
class Fold:
    """Normal images to fit and calibrate on, and images of other patients to evaluate."""

    fit: tuple[ManifestRow, ...]
    test: tuple[ManifestRow, ...]


@dataclass(frozen=True, eq=False)
class RunResult:
    """What one run gave; ``pixels`` by kind of lesion, of completely annotated images.

    ``points`` are set anew, whenever a run is read, from what was found in the normal images that were held out of the
    fit for it: they are those of the code that reads.
    """

    plan: Plan
    images: tuple[EvaluatedImage, ...]
    points: tuple[OperatingPoint, ...]
    pixels: dict[str, dict[str, Any]]
    facts: dict[str, Any]


def draw_image_folds(manifest: Manifest, *, count: int, seed: int) -> tuple[Fold, ...]:
    """Divide the patients with normal images into folds of about as many images.

    Each fold's test set holds the normal images of its patients, and the other images of every patient of whom nothing
    was learned.
    """
    lesional = {lesion.image_id for lesion in manifest.lesions}
    normal = [row for row in manifest.rows if row.image_id not in lesional and is_normal(row, (), DEFAULT.reading)]
    chosen = {row.image_id for row in normal}
    others = [row for row in manifest.rows if row.image_id not in chosen]
    fold_of = assign_folds(np.asarray([row.patient_id for row in normal]), count=count, seed=seed)
    folds = []
    for number in range(count):
        learned = tuple(row for row in normal if fold_of[row.patient_id] != number)
        seen = {row.patient_id for row in learned}
        held = tuple(row for row in normal if fold_of[row.patient_id] == number)
        test = held + tuple(row for row in others if row.patient_id not in seen)
        patients = [np.asarray([row.patient_id for row in rows]) for rows in (learned, test)]
        require_disjoint(patients[0], patients[1], sides=("fitting", "test"))
        folds.append(Fold(learned, test))
    return tuple(folds)


def hash_manifest(manifest: Manifest) -> str:
    """Return a SHA-256 over the files' bytes, and over all that is known of images and lesions."""
    digest = hashlib.sha256(repr([dataclasses.replace(lesion, mask_path=None) for lesion in manifest.lesions]).encode())
    for row in manifest.rows:
        known = [
            row.image_id,
            row.patient_id,
            row.label,
            row.assessment,
            row.complete,
            row.spacing_mm,
            hash_file(row.path),
        ]
        digest.update(json.dumps(known).encode())
    return digest.hexdigest()


def run_plan(manifest: Manifest, fold: Fold, plan: Plan, out: Path, *, data_hash: str) -> RunResult:
    """Fit on a fold and evaluate its test images, or read what was kept of it.

    Parameters
    ----------
    manifest
        Of all images.
    fold
        Of the plan.
    plan
        What to run.
    out
        Keeps ``runs/`` and ``models/``. Runs are known by plan, data, and the version of unary; after changing the code
        of a detector, use a new folder.
    data_hash
        Of the manifest.
    """
    known = {"format": FORMAT, "plan": dataclasses.asdict(plan), "data": data_hash, "unary": metadata.version("unary")}
    key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    kept = out / "runs" / f"{plan.name}-{key[:12]}.json"
    if not kept.exists():
        started = time.monotonic()
        model = _fit_or_read(manifest, fold, plan, out / "models" / kept.stem)
        fitted = time.monotonic()
        document = _evaluate(model, manifest, fold, hold_out(fold, plan))
        seconds = {"fit": fitted - started, "detect": time.monotonic() - fitted}
        document |= {**known, "fit_patients": len({row.patient_id for row in fold.fit}), "seconds": seconds}
        with replacing(kept) as partial:
            partial.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    return _read_run(kept, manifest, plan)


def _fit_or_read(manifest: Manifest, fold: Fold, plan: Plan, folder: Path) -> Model:
    if (folder / MODEL_FILE).exists():
        return read_model(folder)
    kind = find_detector_class(plan.detector)
    detector = kind(Wei2018Config(training=TrainingConfig(epochs=plan.epochs))) if kind is Wei2018 else kind()
    config = FitConfig(held_out=plan.held_out, seed=plan.seed)
    checkpoint = folder.with_suffix(".checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    model = fit(manifest.select(fold.fit), config, detector=detector, checkpoint=checkpoint, progress=False)
    write_model(model, folder)
    for file in checkpoint.parent.glob(f"{checkpoint.name}*"):
        file.unlink()
    return read_model(folder)  # the same whether the run was interrupted here or not


def hold_out(fold: Fold, plan: Plan) -> tuple[ManifestRow, ...]:
    """Return the normal images that `unary.fit` holds out to set operating points."""
    patients = np.asarray([row.patient_id for row in fold.fit])
    held = split_by_patient(patients, plan.held_out, np.random.default_rng(plan.seed))
    return tuple(row for row, out in zip(fold.fit, held, strict=True) if out)


def _evaluate(model: Model, manifest: Manifest, fold: Fold, held: Sequence[ManifestRow]) -> dict[str, Any]:
    if model.calibration is None:
        raise SplitError("there are too few patients with normal images to hold any out for operating points")
    normals = [evaluate_image(model, row, (), examine_image(model, read_row(row)))[0] for row in held]
    evaluation = evaluate(model, manifest.select(fold.test), progress=False)
    scores = sorted(image.image_score for image in normals if image.image_score is not None)
    if len(scores) != len(model.calibration.scores) or not np.allclose(scores, model.calibration.scores, rtol=1e-5):
        raise SplitError("the model was calibrated on other images than those that are held out here")
    pixels = {}
    for name, samples in evaluation.pixels.items():
        complete = [sample for sample in samples if not sample.positive.all()]  # partial ones hold lesion pixels alone
        if any(sample.positive.any() for sample in complete):
            found = summarise_pixels(complete, rng=np.random.default_rng(0))
            pixels[name] = {
                **as_pair("auroc", found.auroc),
                **as_pair("average_precision", found.average_precision),
                "share": found.positives / (found.positives + found.negatives),
            }
    return {
        "pixels": pixels,
        "skipped": list(evaluation.skipped),
        "held_out": [_write_image(image) for image in normals],
        "images": [_write_image(image) for image in evaluation.evaluated],
    }


def _write_image(image: EvaluatedImage) -> dict[str, Any]:
    return {
        "image_id": image.row.image_id,
        "normal": image.normal,
        "score": image.image_score,
        "p_value": image.image_p_value,
        "out_of_domain": image.out_of_domain,
        "findings": [dataclasses.asdict(finding) for finding in image.findings],
        "targets": [
            {
                "group": target.group,
                "lesions": target.lesions,
                "outline": target.outline.tolist(),
                "area_mm2": target.area_mm2,
                "cluster": target.cluster,
                "single": target.single,
            }
            for target in image.match.targets
        ],
        "hits": image.match.hits,
    }


def _read_run(path: Path, manifest: Manifest, plan: Plan) -> RunResult:
    document = json.loads(path.read_text(encoding="utf-8"))
    rows = {row.image_id: row for row in manifest.rows}
    images = tuple(_read_image(entry, rows[entry["image_id"]]) for entry in document["images"])
    held = [_read_image(entry, rows[entry["image_id"]]) for entry in document["held_out"]]
    points = calibrate([_as_normal(image) for image in held if image.image_score is not None]).operating_points
    facts = {name: document[name] for name in ("fit_patients", "seconds", "skipped")}
    return RunResult(plan, images, points, document["pixels"], facts)


def _as_normal(image: EvaluatedImage) -> NormalScores:
    scores = sorted((finding.score for finding in image.findings), reverse=True)[:MOST_FINDINGS]
    return NormalScores(image.row.patient_id, tuple(scores), float(image.image_score or 0.0))


def _read_image(entry: dict[str, Any], row: ManifestRow) -> EvaluatedImage:
    findings = tuple(
        Finding(
            **{
                **finding,
                "box": tuple(finding["box"]),
                "outline": tuple(tuple(point) for point in finding["outline"]),
                "peak": tuple(finding["peak"]),
            }
        )
        for finding in entry["findings"]
    )
    targets = tuple(
        Target(**{**target, "lesions": tuple(target["lesions"]), "outline": np.asarray(target["outline"])}, parts=())
        for target in entry["targets"]
    )
    match = Match(targets, tuple(tuple(ranks) for ranks in entry["hits"]), {f.rank: f.score for f in findings})
    domain = tuple(entry["out_of_domain"])
    return EvaluatedImage(row, entry["normal"], findings, match, entry["score"], entry["p_value"], domain)
