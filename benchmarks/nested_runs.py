"""One fold of ``nested.py``: all parts fitted once, every variant made of them, every test image judged and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from froc_runs import Fold
from nested_variants import PARTS, VARIANTS, Variant
from numpy.typing import NDArray

from unary.datasets.splits import split_by_patient
from unary.detectors.fusion import Fusion, FusionConfig
from unary.errors import DetectorError
from unary.evaluation.evaluated_image import MOST_CANDIDATES, is_normal
from unary.evaluation.matching import Match, Target, group_targets, match_findings
from unary.files import replacing
from unary.models.bundle import MODEL_FILE, Model, read_model, write_model
from unary.models.examination import ScoredImage, build_detection, map_prepared
from unary.models.findings import find_candidates
from unary.models.fitting import FitConfig, find_peaks, fit
from unary.patches.collection import label_patches, read_row
from unary.patches.grid import Origins
from unary.patches.preparation import PreparedImage, prepare_image
from unary.records import Lesion, Manifest, ManifestRow

FORMAT = 2
HELD_OUT = 0.3  # of the patients, as `unary fit` keeps for operating points
LEVEL_IMAGES = 24


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What a variant says of one image, and what is known of its patches; ``match`` as in `EvaluatedImage`."""

    row: ManifestRow
    normal: bool
    match: Match
    image_score: float
    patch_scores: NDArray[np.float64]
    touches: NDArray[np.bool_]
    contains: dict[str, NDArray[np.bool_]]


Runs = dict[tuple[int, int, str], list[ImageResult]]
"""Images by seed, fold of normal patients, and variant."""


@dataclass(frozen=True, eq=False)
class PartAnswers:
    """What all parts say of one image, in surprisals by name; maps and scores as in `ScoredImage`."""

    prepared: PreparedImage
    origins: Origins
    scores: dict[str, NDArray[np.float64]]
    maps: dict[str, NDArray[np.float32]]


def run_fold(
    manifest: Manifest, fold: Fold, seed: int, number: int, out: Path, *, data_hash: str
) -> dict[str, list[ImageResult]]:
    """Return what each variant says of the test images of a fold, or read what was kept of it under ``out``.

    Runs are known by data, variants and the version of unary; after changing the code of a detector, use a new folder.
    """
    variants = [dataclasses.asdict(variant) for variant in VARIANTS]
    folder = find_model_folder(out, fold, seed, number, data_hash=data_hash)
    key = hashlib.sha256(json.dumps([FORMAT, variants], sort_keys=True).encode()).hexdigest()[:12]
    kept = out / "runs" / f"{folder.name}-{key}.json"
    if not kept.exists():
        model = _fit_or_read(manifest, fold, seed, folder)
        document = _judge(model, manifest, fold, seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as partial:
            partial.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    rows = {row.image_id: row for row in manifest.rows}
    document = json.loads(kept.read_text(encoding="utf-8"))
    return {name: [_read_image(entry, rows[entry["image_id"]]) for entry in found] for name, found in document.items()}


def find_model_folder(out: Path, fold: Fold, seed: int, number: int, *, data_hash: str) -> Path:
    """Return where the model of a fold is kept: known by data, patients, parts and the version of unary."""
    facts = [data_hash, [row.image_id for row in fold.fit], PARTS, metadata.version("unary")]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return out / "models" / f"seed{seed}-fold{number}-{key}"


def _fit_or_read(manifest: Manifest, fold: Fold, seed: int, folder: Path) -> Model:
    if not (folder / MODEL_FILE).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        detector = Fusion(FusionConfig(parts=tuple((name, 1.0) for name in PARTS)))
        config = FitConfig(held_out=HELD_OUT, seed=seed)
        checkpoint = folder.with_suffix(".checkpoint")
        model = fit(manifest.select(fold.fit), config, detector=detector, checkpoint=checkpoint, progress=False)
        write_model(model, folder)
        for file in checkpoint.parent.glob(f"{checkpoint.name}*"):
            file.unlink()
    return read_model(folder)


def _judge(model: Model, manifest: Manifest, fold: Fold, seed: int) -> dict[str, list[dict[str, Any]]]:
    patients = np.asarray([row.patient_id for row in fold.fit])
    held = split_by_patient(patients, HELD_OUT, np.random.default_rng(seed))
    learned = [row for row, out in zip(fold.fit, held, strict=True) if not out]
    levels = _find_levels(model, learned)
    lesions: dict[str, list[Lesion]] = {}
    for lesion in manifest.lesions:
        lesions.setdefault(lesion.image_id, []).append(lesion)
    document: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in VARIANTS}
    for row in fold.test:
        own = lesions.get(row.image_id, ())
        answers = examine_parts(model, row)
        prepared, reading = answers.prepared, model.profile.reading
        labels = label_patches(row, own, prepared, answers.origins, model.grid.size_px, reading)
        spacing = prepared.stored_spacing_mm
        targets = group_targets(own, prepared.stored_shape, reading=reading, spacing_mm=spacing)
        known = {
            "image_id": row.image_id,
            "normal": is_normal(row, own, reading),
            "targets": [
                {**dataclasses.asdict(target), "parts": None, "outline": target.outline.tolist()} for target in targets
            ],
            "touches": labels.touches.tolist(),
            "contains": {name: held.tolist() for name, held in labels.contains.items()},
        }
        for variant in VARIANTS:
            said = _judge_image(model, variant, levels[variant.name], targets, answers)
            document[variant.name].append({**known, **said})
    return document


def examine_parts(model: Model, row: ManifestRow) -> PartAnswers:
    """Let each part of a fitted fusion examine an image by itself."""
    if not isinstance(model.detector, Fusion) or model.detector.parts is None:
        raise DetectorError("the parts of a fitted fusion are needed")
    prepared = prepare_image(read_row(row), model.preparation)
    scores, maps, origins = {}, {}, np.zeros((0, 2), np.int32)
    for part in model.detector.parts:
        origins, found = map_prepared(part.detector, prepared, model.grid, model.profile.lengths)
        scores[part.name] = part.surprisal(found.scores)
        maps[part.name] = part.surprisal(found.require_map()).astype(np.float32)
    return PartAnswers(prepared, origins, scores, maps)


def _find_levels(model: Model, rows: Sequence[ManifestRow]) -> dict[str, float]:
    """The level at which each variant's findings are drawn, as `unary.fit` sets it."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(LEVEL_IMAGES, len(rows))).round().astype(int))
    answers = [examine_parts(model, rows[place]) for place in places]
    return {
        variant.name: find_peaks(np.asarray(variant.combine(one.maps), np.float32) for one in answers)[-1]
        for variant in VARIANTS
    }


def _judge_image(
    model: Model, variant: Variant, level: float, targets: Sequence[Target], answers: PartAnswers
) -> dict[str, Any]:
    prepared, findings = answers.prepared, dataclasses.replace(model.findings, strongest=variant.strongest)
    total = np.asarray(variant.combine(answers.maps), np.float32)
    scores = np.asarray(variant.combine(answers.scores), np.float64)
    candidates = find_candidates(total, level, findings, spacing_mm=prepared.spacing_mm)
    scored = ScoredImage(prepared, answers.origins, scores, total, candidates)
    detection = build_detection(scored, dataclasses.replace(model, calibration=None), None, most=MOST_CANDIDATES)
    tissue_px = round(float(prepared.mask.sum()) * prepared.scale[0] * prepared.scale[1])
    match = match_findings(detection, targets, spacing_mm=prepared.stored_spacing_mm, tissue_px=tissue_px)
    return {
        "image_score": scored.image_score,
        "hits": match.hits,
        "findings": match.scores,
        "patches": scores.tolist(),
    }


def _read_image(entry: dict[str, Any], row: ManifestRow) -> ImageResult:
    targets = tuple(
        Target(
            **{
                **target,
                "lesions": tuple(target["lesions"]),
                "outline": np.asarray(target["outline"]),
                "parts": (),
            }
        )
        for target in entry["targets"]
    )
    hits = tuple(tuple(ranks) for ranks in entry["hits"])
    match = Match(targets, hits, {int(rank): score for rank, score in entry["findings"].items()})
    contains = {name: np.asarray(held, bool) for name, held in entry["contains"].items()}
    patches, touches = np.asarray(entry["patches"], np.float64), np.asarray(entry["touches"], bool)
    return ImageResult(row, entry["normal"], match, entry["image_score"], patches, touches, contains)
