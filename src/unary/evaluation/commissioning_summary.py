"""What a commissioning test has shown: sensitivities with intervals over patients, false alarms by the guarantee."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unary.datasets.simulated.plans import LesionPlan
from unary.errors import ManifestError
from unary.evaluation.clustered import estimate_share, weigh_alarms
from unary.evaluation.commissioning import Answers, Insertion
from unary.evaluation.intervals import Estimate, draw_patients, estimate
from unary.models.bundle import Model
from unary.models.calibrating import take_normals
from unary.models.calibration import Calibration
from unary.models.gate import Gate
from unary.models.requirements import judge_headers
from unary.records import Manifest, ManifestRow, OperatingPoint, count_words

logger = logging.getLogger(__name__)

LEVEL = 0.05
"""How often, at the most, a test that nothing is wrong with is called one with too many false alarms."""

_RESAMPLES = 2000
_SAME = 1e-9  # relative difference of two scores of one image

Verdict = Literal["kept", "exceeded", "nothing guaranteed", "not judged"]


@dataclass(frozen=True)
class Sensitivity:
    """How many lesions of one plan were found at one operating point.

    Attributes
    ----------
    lesions, patients
        That were inserted, and of how many patients the images are.
    no_room
        Images in which there was no place for one.
    share
        Found; with a 95 % interval over patients. None where none could be inserted.
    by_chance
        Share of the same places that a finding of the untouched image hits.
    added
        Median over images of the highest value that was added to a pixel, in the images' own values.
    """

    plan: LesionPlan
    point: str
    lesions: int
    patients: int
    no_room: int
    found: int
    share: Estimate | None
    by_chance: float | None
    added: float | None


@dataclass(frozen=True)
class FalseAlarms:
    """What one operating point reports of the normal images as they are.

    Attributes
    ----------
    share
        Of normal images that have a finding, the mean over patients of the share of their images, as it is guaranteed.
    alarmed
        How many images have a finding.
    findings
        Per normal image, the mean over patients; its interval is a bootstrap over patients.
    drawn
        Patients who alarm by one image of each, drawn by the seed.
    p_value
        How often so many or more would alarm, were these patients like those of the calibration; None where nothing is
        guaranteed.
    verdict
        At `LEVEL`, divided among the operating points that guarantee something.
    """

    point: OperatingPoint
    share: Estimate
    alarmed: int
    findings: Estimate
    drawn: int
    p_value: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Commissioning:
    """What a model did with normal images and with lesions inserted into them.

    Attributes
    ----------
    answers
        Of every image.
    patients
        How many there are of the images used.
    seen
        How many of them the model was fitted on or first calibrated with; None where that cannot be told.
    calibrated_on
        How many images score exactly as one of the model's present calibration does, and so are taken for it.
    """

    plans: tuple[LesionPlan, ...]
    answers: Answers
    patients: int
    sensitivities: tuple[Sensitivity, ...]
    false_alarms: tuple[FalseAlarms, ...]
    seen: int | None
    calibrated_on: int

    @property
    def independent(self) -> bool:
        """Whether nothing is known against these patients being new to the model."""
        return not self.seen and not self.calibrated_on

    @property
    def out_of_domain(self) -> int:
        """How many images differ from those that the model has learned from."""
        return sum(bool(answer.out_of_domain) for answer in self.answers.answers)


def list_normals(manifest: Manifest, model: Model) -> list[ManifestRow]:
    """Return the images of a manifest of normal ones, but for those with a benign lesion or incomplete annotation.

    Raises
    ------
    ManifestError
        If an image is not labelled negative, or none is left.
    """
    lesional = {
        lesion.image_id for lesion in take_normals(manifest, ManifestError, "lesions are inserted into").lesions
    }
    rows = [row for row in manifest.rows if row.complete and row.image_id not in lesional]
    if len(rows) < len(manifest.rows):
        logger.warning(
            "%s hold benign lesions, or are not completely annotated, and do not count as normal",
            count_words(len(manifest.rows) - len(rows), "image"),
        )
    if not rows:
        raise ManifestError("no image of the manifest is known to be normal")
    judge_headers(rows, Gate(model.profile, model.domain), progress=False)
    return rows


def summarise(
    model: Model, plans: Sequence[LesionPlan], answers: Answers, *, seed: int, seen: int | None
) -> Commissioning:
    """Return the figures of a commissioning test.

    ``seen`` is what `unary.models.patients.count_seen` says of the patients.

    Raises
    ------
    ManifestError
        If no image could be used, or none of them was scored.
    """
    calibration = model.calibration
    assert calibration is not None  # `require_calibration` has asked before
    scored = [number for number, answer in enumerate(answers.answers) if answer.score is not None]
    if not scored:
        reasons = "; ".join(f"{name}: {detail}" for name, _, detail in answers.failed[:3])
        raise ManifestError(f"none of the images could be used{': ' + reasons if reasons else ''}")
    points = tuple(point for point in calibration.operating_points if point.unit == "finding")
    known = _count_known(calibration, answers)
    guaranteed = sum(_is_bound(point, calibration) for point in points)
    alarms = tuple(
        _count_alarms(point, answers, calibration, seed=seed, judged=not (seen or known), tests=max(guaranteed, 1))
        for point in points
    )
    found = tuple(_count_found(plan, place, point, answers) for place, plan in enumerate(plans) for point in points)
    patients = len({row.patient_id for row in answers.rows})
    return Commissioning(tuple(plans), answers, patients, found, alarms, seen, known)


def describe_alarms(found: FalseAlarms) -> str:
    """Say what an operating point guarantees of normal images, what was measured, and whether that agrees."""
    point = found.point
    bound = point.false_alarm_rate
    interval = "" if found.share.interval is None else " (95 % interval {:.3g} to {:.3g})".format(*found.share.interval)
    measured = f"{found.share.value:.3g} of normal images{interval} had a finding"
    if bound is None or bound >= 1:
        return f"Operating point {point.name}: {measured}; nothing is guaranteed of it."
    said = (
        f"Operating point {point.name}: at most {bound:.3g} is guaranteed, from {point.patients} patients; {measured}."
    )
    if found.p_value is None or found.verdict == "not judged":
        return f"{said} This is not judged, since patients are known to the model."
    chance = f"by one image of each patient {found.drawn} alarmed, and so many or more would with probability"
    if found.verdict == "exceeded":
        return f"{said} MORE THAN GUARANTEED: {chance} {found.p_value:.2g} if the guarantee held here."
    return f"{said} Nothing speaks against the guarantee: {chance} {found.p_value:.2g} if it holds here."


def describe_readers_care(made: Commissioning) -> tuple[str, ...]:
    """Say how the figures are to be read where the images are known to the model, or it cannot be told."""
    patients = count_words(made.patients, "patient")
    lines = []
    if made.seen:
        lines.append(
            f"The model was fitted on {made.seen} of these {patients}, or held them out to set its first operating "
            "points. It knows their normal tissue: false alarms are fewer, and sensitivities higher, than for new "
            "patients. Take neither for what the hospital will see; nothing is judged."
        )
    elif made.seen is None:
        lines.append(
            f"Whether the model was fitted on any of these {patients} cannot be told here, without the key for "
            "patients of the site that fitted it. If it was, every figure is flattered."
        )
    if made.calibrated_on:
        images = count_words(len(made.answers.answers), "image")
        lines.append(
            f"{made.calibrated_on} of these {images} score exactly as images of the model's calibration do, and are "
            "taken for them. False alarms at thresholds that they have set themselves prove nothing, and are not "
            "judged; sensitivities can be read, at thresholds that fit these images a little too well."
        )
    return tuple(lines)


def _count_known(calibration: Calibration, answers: Answers) -> int:
    """How many images have a score of the calibration, to the last digits."""
    known = np.asarray(calibration.scores)
    scores = [answer.score for answer in answers.answers if answer.score is not None]
    return sum(bool(np.isclose(known, score, rtol=_SAME, atol=0).any()) for score in scores)


def _is_bound(point: OperatingPoint, calibration: Calibration) -> bool:
    return point.false_alarm_rate is not None and point.false_alarm_rate < 1 and calibration.overlap != "allowed"


def _count_alarms(
    point: OperatingPoint, answers: Answers, calibration: Calibration, *, seed: int, judged: bool, tests: int
) -> FalseAlarms:
    names, patient = np.unique([row.patient_id for row in answers.rows], return_inverse=True)
    count = np.asarray([sum(s > point.threshold for s in answer.findings) for answer in answers.answers])
    images = np.bincount(patient)
    alarmed = np.bincount(patient, count > 0) / images
    per_image = np.bincount(patient, count) / images
    ones = np.ones(len(names))
    share = estimate_share(alarmed, ones, observations=len(patient))

    def resample() -> NDArray[np.float64]:
        codes = np.arange(len(names))
        rng = np.random.default_rng(seed)
        draws = draw_patients(codes, np.ones(len(names), bool), resamples=_RESAMPLES, rng=rng).astype(float)
        return np.asarray(draws @ per_image / draws.sum(axis=1))[:, None]

    findings = estimate([float(per_image.mean())], resample)[0]
    rng = np.random.default_rng(seed)
    drawn = sum(bool(count[rng.choice(np.flatnonzero(patient == one))]) for one in range(len(names)))
    bound, p_value = point.false_alarm_rate, None
    verdict: Verdict = "nothing guaranteed"
    if bound is not None and _is_bound(point, calibration):
        p_value = weigh_alarms(drawn, len(names), bound, point.patients)
        verdict = "not judged" if not judged else "exceeded" if p_value <= LEVEL / tests else "kept"
    return FalseAlarms(point, share, int((count > 0).sum()), findings, drawn, p_value, verdict)


def _count_found(plan: LesionPlan, place: int, point: OperatingPoint, answers: Answers) -> Sensitivity:
    own: list[tuple[str, Insertion]] = [
        (row.patient_id, answer.insertions[place]) for row, answer in zip(answers.rows, answers.answers, strict=True)
    ]
    placed = [(patient, each) for patient, each in own if each.centre is not None]
    no_room = len(own) - len(placed)
    if not placed:
        return Sensitivity(plan, point.name, 0, 0, no_room, 0, None, None, None)
    names, patient = np.unique([name for name, _ in placed], return_inverse=True)
    found = np.asarray([each.score is not None and each.score > point.threshold for _, each in placed])
    chance = [each.by_chance is not None and each.by_chance > point.threshold for _, each in placed]
    share = estimate_share(np.bincount(patient, found), np.bincount(patient))
    added = float(np.median([each.added for _, each in placed if each.added is not None]))
    return Sensitivity(
        plan,
        point.name,
        len(placed),
        len(names),
        no_room,
        int(found.sum()),
        share,
        float(np.mean(chance)),
        added,
    )
