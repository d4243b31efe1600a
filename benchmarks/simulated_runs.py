"""One detector fitted on the normal images of some patients and asked for simulated lesions in those of others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from froc_runs import draw_image_folds
from numpy.typing import NDArray

from unary.datasets.simulated.insertion import SimulatedLesion, simulate_lesion
from unary.datasets.simulated.plans import LESION_CLASSES, LesionClass
from unary.datasets.simulated.tissue import TissueMeasures, measure_tissue
from unary.datasets.splits import require_disjoint
from unary.errors import ImageError
from unary.evaluation.evaluated_image import is_normal
from unary.evaluation.froc import ImageOutcome
from unary.evaluation.lesion_query import build_outcome
from unary.evaluation.matching import Match, group_targets, match_findings
from unary.experiments.contenders import find_contenders
from unary.models.bundle import MODEL_FILE, Model, read_model, write_model
from unary.models.examination import ScoredImage, build_detection, examine_image
from unary.models.fitting import FitConfig, fit
from unary.patches.collection import label_patches, read_row
from unary.patches.preparation import enlarge, prepare_image
from unary.profiles import DEFAULT
from unary.progress import show_progress
from unary.records import Image, Lesion, Manifest, ManifestRow

FORMAT = 1
MOST_CANDIDATES = 50


@dataclass(frozen=True)
class Plan:
    """Which detector, which division of the normal patients, what is put into the held-out images.

    ``most_images`` are of a fold, evenly spread; None for all.
    """

    detector: str
    seed: int
    fold: int
    folds: int
    classes: tuple[LesionClass, ...]
    per_image: int
    most_images: int | None = None

    @property
    def name(self) -> str:
        """Usable as a file name."""
        return f"{self.detector.replace(':', '.')}-seed{self.seed}-fold{self.fold}"


@dataclass(frozen=True, eq=False)
class Answer:
    """What a detector said of one held-out image with lesions of one class, or of the image as it is (``kind`` None).

    Attributes
    ----------
    outcome
        Of the image with its lesions; of the image as it is, its false findings.
    untouched
        The same lesions against the findings in the image as it is: what chance hits.
    patch_scores
        Of patches that contain a lesion; of the image as it is, of all its patches.
    plans
        What was inserted, in the order of the outcome's targets.
    """

    kind: LesionClass | None
    outcome: ImageOutcome
    untouched: ImageOutcome | None
    patch_scores: NDArray[np.float64]
    plans: tuple[dict[str, Any], ...]


def run_plan(manifest: Manifest, plan: Plan, out: Path, *, data_hash: str) -> list[Answer]:
    """Fit, insert and examine, or read what was kept; every image done is kept, so that a run can be interrupted.

    ``out`` keeps ``models/`` and ``answers/``, known by plan and data; after changing the code of a detector or of the
    simulation, use a new folder.
    """
    fold = draw_image_folds(manifest, count=plan.folds, seed=plan.seed)[plan.fold]
    known = {"format": FORMAT, "plan": dataclasses.asdict(plan), "data": data_hash}
    key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    kept = out / "answers" / f"{plan.name}-{key}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    done = _read_lines(kept)
    lesional = {lesion.image_id for lesion in manifest.lesions}
    normal = [row for row in fold.test if row.image_id not in lesional and is_normal(row, (), DEFAULT.reading)]
    if plan.most_images is not None:
        normal = normal[:: max(1, math.ceil(len(normal) / plan.most_images))]
    finished = {line["image_id"] for line in done}
    rows = [row for row in normal if row.image_id not in finished]
    if rows:
        require_disjoint(
            *(np.asarray([row.patient_id for row in side]) for side in (fold.fit, rows)), sides=("fitting", "test")
        )
        folder = out / "models" / f"{plan.name}-of{plan.folds}-{data_hash[:12]}"
        model = _fit_or_read(manifest.select(fold.fit), plan, folder)
        with kept.open("a", encoding="utf-8") as file:
            for row in show_progress(rows, title=plan.name, unit="image"):
                answers = [_write_answer(answer) for answer in _examine_row(model, row, plan)]
                file.write(json.dumps({"image_id": row.image_id, "answers": answers}, allow_nan=False) + "\n")
                file.flush()
        done = _read_lines(kept)
    patients = {row.image_id: row.patient_id for row in manifest.rows}
    return [_read_answer(each, patients[line["image_id"]]) for line in done for each in line["answers"]]


def _read_lines(kept: Path) -> list[dict[str, Any]]:
    """What is kept, but for a last line that an interruption has cut off, which is taken away."""
    if not kept.exists():
        return []
    whole = [line for line in kept.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    kept.write_text("".join(whole), encoding="utf-8")
    return [json.loads(line) for line in whole]


def _fit_or_read(normals: Manifest, plan: Plan, folder: Path) -> Model:
    if not (folder / MODEL_FILE).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        (contender,) = find_contenders([plan.detector])
        config = FitConfig(held_out=0, seed=plan.seed)
        write_model(fit(normals, config, detector=contender.detector), folder)
    return read_model(folder)


def insert_lesions(
    image: Image, tissue: TissueMeasures, kind: LesionClass, count: int, *, seed: Sequence[int], image_id: str
) -> tuple[Image, list[SimulatedLesion]]:
    """Return a stored image with up to so many lesions of a class, as there is room, the same for the same seed."""
    rng = np.random.default_rng([*seed, LESION_CLASSES.index(kind)])
    found: list[SimulatedLesion] = []
    for _ in range(count):
        pixels = found[-1].pixels if found else image.pixels
        centres = [lesion.centre for lesion in found]
        try:
            found.append(
                simulate_lesion(
                    pixels, tissue, kind, rng, value_range=image.value_range, away_from=centres, image_id=image_id
                )
            )
        except ImageError:
            break
    return (dataclasses.replace(image, pixels=found[-1].pixels) if found else image), found


def _examine_row(model: Model, row: ManifestRow, plan: Plan) -> Iterator[Answer]:
    image = read_row(row)
    if image.spacing_mm is None:
        raise ImageError(f"{image.name}: lesions have sizes in mm, and the image does not state its pixel spacing")
    prepared = prepare_image(image, model.preparation)
    tissue = measure_tissue(image.pixels, enlarge(prepared.mask, prepared), float(np.mean(image.spacing_mm)))
    clean = examine_image(model, image)
    yield Answer(None, _judge(model, row, clean, (), normal=True), None, clean.scores, ())
    number = int(hashlib.sha256(row.image_id.encode()).hexdigest()[:8], 16)
    for kind in plan.classes:
        changed, found = insert_lesions(
            image, tissue, kind, plan.per_image, seed=(plan.seed, number), image_id=row.image_id
        )
        if not found:
            continue
        scored = examine_image(model, changed)
        plans = []
        outcomes: list[list[ImageOutcome]] = [[], []]
        scores = []
        for lesion in found:  # each alone, so that its target is known
            for side, findings in enumerate((scored, clean)):
                outcomes[side].append(_judge(model, row, findings, lesion.lesions, normal=False))
            plans.append(dataclasses.asdict(lesion.plan))
            specks = [each for each in lesion.lesions if each.name != "Cluster"]
            labels = label_patches(
                row, specks, scored.prepared, scored.origins, model.grid.size_px, model.profile.reading
            )
            scores.append(scored.scores[np.logical_or.reduce(list(labels.contains.values()))])
        yield Answer(kind, _join(outcomes[0]), _join(outcomes[1]), np.concatenate(scores), tuple(plans))


def _join(outcomes: Sequence[ImageOutcome]) -> ImageOutcome:
    """Outcome of several lesions, the best target of each, in one image, whose false findings do not count."""
    best = [max((score for score in each.target_scores if score is not None), default=None) for each in outcomes]
    return dataclasses.replace(outcomes[0], false_scores=(), target_scores=tuple(best))


def _judge(
    model: Model, row: ManifestRow, scored: ScoredImage, lesions: Sequence[Lesion], *, normal: bool
) -> ImageOutcome:
    prepared = scored.prepared
    detection = build_detection(scored, model, None, most=MOST_CANDIDATES)
    spacing = prepared.stored_spacing_mm
    targets = group_targets(lesions, prepared.stored_shape, reading=model.profile.reading, spacing_mm=spacing)
    tissue_px = round(float(prepared.mask.sum()) * prepared.scale[0] * prepared.scale[1])
    match: Match = match_findings(detection, targets, spacing_mm=spacing, tissue_px=tissue_px)
    return build_outcome(match, patient=row.patient_id, normal=normal, complete=True)


def _write_answer(answer: Answer) -> dict[str, Any]:
    def write(outcome: ImageOutcome | None) -> dict[str, Any] | None:
        return None if outcome is None else {"false": outcome.false_scores, "targets": outcome.target_scores}

    return {
        "kind": answer.kind,
        "outcome": write(answer.outcome),
        "untouched": write(answer.untouched),
        "patch_scores": answer.patch_scores.tolist(),
        "plans": answer.plans,
    }


def _read_answer(entry: dict[str, Any], patient: str) -> Answer:
    normal = entry["kind"] is None

    def read(outcome: dict[str, Any] | None) -> ImageOutcome | None:
        if outcome is None:
            return None
        return ImageOutcome(patient, normal, True, tuple(outcome["false"]), tuple(outcome["targets"]))

    first = read(entry["outcome"])
    assert first is not None
    scores = np.asarray(entry["patch_scores"], np.float64)
    return Answer(entry["kind"], first, read(entry["untouched"]), scores, tuple(entry["plans"]))
