"""What does a model find of lesions of stated size and contrast, put into a hospital's own normal images?

Each image is examined as it is, for its false alarms, and once with every lesion that is asked for, one at a time, at a
place that depends on the seed and the image alone (`unary.datasets.simulated`). A lesion is found at an operating point
if a finding that `unary detect` would report there hits it (`unary.evaluation.matching`). What the findings of the
untouched image hit at the same place is what chance finds.

Images are examined side by side; each that is done is kept, so that an interrupted run goes on; one that cannot be used
is named and left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unary.datasets.simulated.insertion import SimulatedLesion, insert_lesion
from unary.datasets.simulated.plans import LesionPlan
from unary.datasets.simulated.tissue import TissueMeasures, measure_tissue
from unary.errors import DetectorError, ImageError, UnaryError, explain_unexpected
from unary.evaluation.lesion_query import build_outcome
from unary.evaluation.matching import group_targets, match_findings
from unary.files import hash_file, read_ahead
from unary.models.bundle import Model
from unary.models.calibration import MOST_FINDINGS
from unary.models.examination import ScoredImage, build_detection, examine_image
from unary.patches.collection import name_row, read_row
from unary.patches.preparation import enlarge
from unary.progress import show_progress
from unary.records import Image, ManifestRow, count_words
from unary.training.threads import map_in_threads

logger = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(frozen=True)
class Insertion:
    """One lesion in one image.

    Attributes
    ----------
    plan
        Position among the plans.
    centre
        (row, col) in stored pixels; None where there was no place for it.
    score
        Of the best finding that hit it, of those that are ever reported; None where none did.
    by_chance
        The same of the findings in the untouched image.
    added
        The highest value that was added to a pixel, in the image's own values.
    """

    plan: int
    centre: tuple[float, float] | None
    score: float | None = None
    by_chance: float | None = None
    added: float | None = None


@dataclass(frozen=True)
class Answer:
    """What a model said of one normal image, as it is and with each lesion.

    Attributes
    ----------
    sha256
        Of the file's bytes; empty for an image in memory.
    score
        Of the image as it is; None where nothing of it could be scored.
    findings
        Scores of those that can be reported of the image as it is, falling.
    out_of_domain
        How the image differs from those that the model has learned from.
    seconds
        That all of it took, on one thread.
    """

    image_id: str
    sha256: str
    score: float | None
    findings: tuple[float, ...]
    insertions: tuple[Insertion, ...]
    out_of_domain: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Answers:
    """What was said of all images that could be used; ``failed`` has a reason and a sentence for each other one.

    ``kept`` counts those that an earlier run had answered.
    """

    rows: tuple[ManifestRow, ...]
    answers: tuple[Answer, ...]
    failed: tuple[tuple[str, str, str], ...]
    kept: int = 0


def choose_rows(rows: Sequence[ManifestRow], most: int | None) -> list[ManifestRow]:
    """Return at most so many rows, evenly spread."""
    if most is None or most >= len(rows):
        return list(rows)
    return [rows[place] for place in np.linspace(0, len(rows) - 1, most).round().astype(int)]


def ask_model(
    model: Model,
    rows: Sequence[ManifestRow],
    plans: Sequence[LesionPlan],
    *,
    seed: int,
    kept: Path,
    made_from: Mapping[str, Any],
    progress: bool = True,
) -> Answers:
    """Examine normal images, as they are and with lesions.

    Parameters
    ----------
    rows
        Of images that the caller vouches for as normal.
    kept
        A folder for what is done, a file of lines for everything that answers depend on; the caller holds it.
    made_from
        What answers depend on beside images, plans and seed: the model and unary's version.

    Raises
    ------
    DetectorError
        If the model cannot examine images at all.
    """
    known = {"format": _FORMAT, "seed": seed, "plans": [dataclasses.asdict(plan) for plan in plans], **made_from}
    key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    path = kept / f"answers-{key}.jsonl"
    done = {(answer.image_id, answer.sha256): answer for answer in _read_answers(path)}
    found: dict[str, Answer] = {}
    failed: list[tuple[str, str, str]] = []
    todo: list[ManifestRow] = []
    for row in rows:
        earlier = done.get((row.image_id, _hash_row(row)))
        if earlier is None:
            todo.append(row)
        else:
            found[row.image_id] = earlier
    earlier_count = len(found)
    work = _Work(model, tuple(plans), seed)
    images = zip(todo, read_ahead(_try_reading, todo, ahead=1), strict=True)
    bar = show_progress(
        map_in_threads(work.answer, images),
        title="commissioning",
        unit="image",
        total=len(rows),
        initial=earlier_count,
        shown=progress,
    )
    with path.open("a", encoding="utf-8") as file:
        for row, answer in zip(todo, bar, strict=True):
            if isinstance(answer, ImageError):
                name = name_row(row)
                failed.append((row.image_id, answer.reason or "NOT_USABLE", str(answer).removeprefix(f"{name}: ")))
                logger.warning("skipped: %s", answer)
                continue
            file.write(json.dumps(dataclasses.asdict(answer), allow_nan=False) + "\n")
            file.flush()
            found[row.image_id] = answer
    used = tuple(row for row in rows if row.image_id in found)
    return Answers(used, tuple(found[row.image_id] for row in used), tuple(failed), earlier_count)


def measure_image(model: Model, image: Image) -> tuple[ScoredImage, TissueMeasures]:
    """Examine an image as it is, and measure what insertions depend on.

    Raises
    ------
    ImageError
        If it cannot be examined, or its pixel spacing is unknown.
    """
    if image.spacing_mm is None:
        raise ImageError(
            f"{image.name}: lesions have sizes in mm, and neither the image nor the manifest (spacing_mm) states the "
            "pixel spacing",
            reason="NO_SPACING",
        )
    clean = examine_image(model, image)
    mask = enlarge(clean.prepared.mask, clean.prepared)
    return clean, measure_tissue(image.pixels, mask, float(np.mean(image.spacing_mm)))


def insert_row(
    row: ManifestRow, image: Image, tissue: TissueMeasures, plan: LesionPlan, *, place: int, seed: int
) -> SimulatedLesion:
    """Return an image with the lesion that `ask_model` puts into it: the plan at this place among the plans.

    Raises
    ------
    ImageError
        If there is no room for it.
    """
    number = int(hashlib.sha256(row.image_id.encode()).hexdigest()[:8], 16)
    rng = np.random.default_rng([seed, number, place])
    return insert_lesion(image.pixels, tissue, plan, rng, value_range=image.value_range, image_id=row.image_id)


@dataclass(frozen=True)
class _Work:
    """What is done with every image."""

    model: Model
    plans: tuple[LesionPlan, ...]
    seed: int

    def answer(self, item: tuple[ManifestRow, Image | ImageError]) -> Answer | ImageError:
        """Examine one image; what goes wrong with it is returned."""
        row, image = item
        if isinstance(image, ImageError):
            return image
        begun = time.perf_counter()
        try:
            clean, tissue = measure_image(self.model, image)
            insertions = tuple(self._insert(row, image, clean, tissue, place) for place in range(len(self.plans)))
            detection = build_detection(clean, self.model, None, most=MOST_FINDINGS)
        except DetectorError:  # no image's fault
            raise
        except Exception as error:  # of a library, on this image
            return explain_unexpected(error, name_row(row)).with_traceback(None)
        findings = sorted((finding.score for finding in detection.findings), reverse=True)
        seconds = round(time.perf_counter() - begun, 3)
        return Answer(
            row.image_id, _hash_row(row), clean.image_score, tuple(findings), insertions, clean.out_of_domain, seconds
        )

    def _insert(
        self, row: ManifestRow, image: Image, clean: ScoredImage, tissue: TissueMeasures, place: int
    ) -> Insertion:
        try:
            lesion = insert_row(row, image, tissue, self.plans[place], place=place, seed=self.seed)
        except ImageError:
            return Insertion(place, None)
        scored = examine_image(self.model, dataclasses.replace(image, pixels=lesion.pixels))
        changed = lesion.changed
        added = (lesion.pixels[changed].astype(np.float64) - image.pixels[changed]).max(initial=0.0)
        return Insertion(
            place,
            lesion.centre,
            _find_hit(self.model, row, scored, lesion),
            _find_hit(self.model, row, clean, lesion),
            float(added),
        )


def _find_hit(model: Model, row: ManifestRow, scored: ScoredImage, lesion: SimulatedLesion) -> float | None:
    """The score of the best finding on a lesion, of those that would be reported."""
    prepared, reading = scored.prepared, model.profile.reading
    detection = build_detection(scored, model, None, most=MOST_FINDINGS)
    spacing = prepared.stored_spacing_mm
    targets = group_targets(lesion.lesions, prepared.stored_shape, reading=reading, spacing_mm=spacing)
    tissue_px = round(float(prepared.mask.sum()) * prepared.scale[0] * prepared.scale[1])
    match = match_findings(detection, targets, spacing_mm=spacing, tissue_px=tissue_px)
    outcome = build_outcome(match, patient=row.patient_id, normal=False, complete=True)
    return max((score for score in outcome.target_scores if score is not None), default=None)


def _try_reading(row: ManifestRow) -> Image | ImageError:
    try:
        return read_row(row)
    except Exception as error:  # of a library, on this image
        return explain_unexpected(error, name_row(row)).with_traceback(None)


def _hash_row(row: ManifestRow) -> str:
    """The hash of a file, by which a changed one is known; empty where there is none to read."""
    try:
        return "" if row.path is None else hash_file(row.path)
    except OSError:
        return ""


def _read_answers(path: Path) -> list[Answer]:
    """What is kept, but for a last line that an interruption has cut off, which is taken away."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(whole), encoding="utf-8")
    try:
        return [_read_answer(json.loads(line)) for line in whole]
    except (ValueError, TypeError, KeyError) as error:
        raise UnaryError(
            f"{path}: damaged in the middle; remove it, and what it holds of {count_words(len(whole), 'image')} is "
            "done again"
        ) from error


def _read_answer(entry: dict[str, Any]) -> Answer:
    insertions = tuple(
        Insertion(**{**each, "centre": None if each["centre"] is None else tuple(each["centre"])})
        for each in entry.pop("insertions")
    )
    return Answer(
        **{**entry, "findings": tuple(entry["findings"]), "out_of_domain": tuple(entry["out_of_domain"])},
        insertions=insertions,
    )
