"""The figures of an evaluation: lesions found, false alarms beside what was guaranteed, images, pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unary.evaluation.evaluate import Evaluation
from unary.evaluation.evaluated_image import EvaluatedImage, build_outcomes
from unary.evaluation.froc import FrocSummary, summarise_froc
from unary.evaluation.image_level import ImageComparison, compare_images
from unary.evaluation.intervals import Estimate, as_pair, attach_intervals
from unary.evaluation.lesion_query import list_queries
from unary.evaluation.metrics import FEW_PATIENTS
from unary.evaluation.pixelwise import PixelSummary, summarise_pixels
from unary.models.calibration import MOST_FINDINGS
from unary.profiles import Reading
from unary.progress import show_progress
from unary.records import OperatingPoint, count_words

_CHUNK = 1 << 22  # draws held at once


@dataclass(frozen=True)
class MeasuredPoint:
    """What normal images do at an operating point, beside what it guarantees.

    Attributes
    ----------
    point
        With its guarantees.
    rate
        What the point counts: findings per image, at most `MOST_FINDINGS` of each, or the share of an image's patches;
        a mean over patients, as the guarantee is.
    false_alarms
        The share of images with any finding, the mean over patients; None for a point that counts patches.
    images, alarmed, patients
        How many normal images, how many of them with anything above the threshold, and of how many patients.
    """

    point: OperatingPoint
    rate: Estimate
    false_alarms: Estimate | None
    images: int
    alarmed: int
    patients: int


@dataclass(frozen=True)
class EvaluationSummary:
    """The figures of `metrics.json`; a group without lesions, or a comparison without one of its sides, is absent.

    FROC is by name of the query (`unary.evaluation.lesion_query.list_queries`), operating points are in the model's
    order, the AUROC of image scores is by comparison and by label, pixels are by group of lesions, and of all.
    """

    froc: dict[str, FrocSummary]
    points: tuple[MeasuredPoint, ...]
    images: dict[str, ImageComparison]
    pixels: dict[str, PixelSummary]
    counts: dict[str, int]


def summarise_evaluation(
    evaluation: Evaluation,
    points: Sequence[OperatingPoint],
    *,
    reading: Reading,
    seed: int = 0,
    resamples: int = 2000,
    progress: bool = True,
) -> EvaluationSummary:
    """Return every figure that the evaluated images allow, with 95 % intervals over patients.

    The model's operating points are none where it has not been calibrated; the reading is of its profile. Every figure
    starts from the seed anew, so that none depends on which others there are.
    """

    def rng() -> np.random.Generator:
        return np.random.default_rng(seed)

    images = evaluation.evaluated
    normal = [image for image in images if image.normal]
    froc = {}
    queries = list_queries(reading)
    for name, query in show_progress(queries.items(), title="FROC", unit="group", shown=progress, leave=False):
        outcomes = build_outcomes(images, query)
        if normal and any(outcome.target_scores for outcome in outcomes):
            froc[name] = summarise_froc([outcomes], rng=rng(), resamples=resamples)
    pixels = {
        name: summarise_pixels(samples, rng=rng(), resamples=resamples)
        for name, samples in show_progress(
            evaluation.pixels.items(), title="pixels", unit="group", shown=progress, leave=False
        )
        if any(sample.positive.any() for sample in samples) and any((~sample.positive).any() for sample in samples)
    }
    measured = [_measure_point(point, normal, rng=rng(), resamples=resamples) for point in points]
    return EvaluationSummary(
        froc,
        tuple(point for point in measured if point is not None),
        compare_images(images, reading=reading, rng=rng(), resamples=resamples),
        pixels,
        _count(images, len(evaluation.skipped)),
    )


def _count(images: Sequence[EvaluatedImage], skipped: int) -> dict[str, int]:
    normal = [image for image in images if image.normal]
    assessed = Counter(image.row.assessment for image in images if image.row.assessment is not None)
    return {
        "images": len(images),
        "normal_images": len(normal),
        "normal_patients": len({image.row.patient_id for image in normal}),
        "partially_annotated": sum(not image.row.complete for image in images),
        "out_of_domain": sum(bool(image.out_of_domain) for image in images),
        "not_ranked": sum(not image.ranked for image in images),
        "skipped": skipped,
        **{f"assessment_{category}_images": count for category, count in sorted(assessed.items())},
    }


def _measure_point(
    point: OperatingPoint, normal: Sequence[EvaluatedImage], *, rng: np.random.Generator, resamples: int = 2000
) -> MeasuredPoint | None:
    """What normal images do at an operating point; None without any that have what it counts."""
    if point.unit == "patch":
        normal = [image for image in normal if len(image.patch_scores)]
    if not normal:
        return None
    patients = [image.row.patient_id for image in normal]
    if point.unit == "patch":
        values = np.asarray([np.mean(image.patch_scores > point.threshold) for image in normal])
        (rate,), alarms = estimate_patient_means(values, patients, rng=rng, resamples=resamples), None
    else:
        values = count_findings(point, normal)
        shares = np.stack([values / MOST_FINDINGS, values > 0])
        share, alarms = estimate_patient_means(shares, patients, rng=rng, resamples=resamples)
        rate = share.scale(MOST_FINDINGS)
    return MeasuredPoint(point, rate, alarms, len(values), int((values > 0).sum()), len(set(patients)))


def count_findings(point: OperatingPoint, images: Sequence[EvaluatedImage]) -> NDArray[np.int64]:
    """Return how many findings each image has above an operating point, at most `MOST_FINDINGS`, shape (n,)."""
    above = [sum(finding.score > point.threshold for finding in image.findings) for image in images]
    return np.minimum(np.asarray(above, np.int64), MOST_FINDINGS)


def estimate_patient_means(
    values: ArrayLike, patients: Sequence[str], *, rng: np.random.Generator, resamples: int = 2000
) -> list[Estimate]:
    """Return the mean over patients of their images' mean, with its 95 % percentile interval, for each row of values.

    Values are of shape (k, n), in [0, 1], of n images with a patient each; all rows meet the same draws of patients.
    With a single patient there is no interval; that of a mean of 0 or 1 is exact (`attach_intervals`).
    """
    names, owner = np.unique(list(patients), return_inverse=True)
    rows = np.atleast_2d(np.asarray(values, np.float64))
    means = np.stack([np.bincount(owner, weights=row) for row in rows]) / np.bincount(owner)
    plain = means.mean(axis=1)
    if len(names) < 2:
        return [Estimate(value, None, None) for value in plain.tolist()]
    step, resampled = max(1, _CHUNK // len(names)), []
    for start in range(0, resamples, step):
        drawn = rng.integers(len(names), size=(min(step, resamples - start), len(names)))
        resampled.append(means[:, drawn].mean(axis=2).T)
    return list(attach_intervals(plain, np.concatenate(resampled), units=len(names)))


def document_summary(summary: EvaluationSummary) -> dict[str, Any]:
    """Return the summary as ``metrics.json`` holds it under ``detection`` (`unary.evaluation.metrics`)."""
    return {
        "counts": summary.counts,
        "froc": {name: document_froc(froc) for name, froc in summary.froc.items()},
        "operating_points": {measured.point.name: _document_point(measured) for measured in summary.points},
        "image_auroc": {
            name: {
                **as_pair("auroc", found.auroc),
                "n_positive": found.positives,
                "n_negative": found.negatives,
                "n_positive_patients": found.positive_patients,
                "n_negative_patients": found.negative_patients,
            }
            for name, found in summary.images.items()
        },
        "pixels": {
            name: {
                **as_pair("auroc", found.auroc),
                **as_pair("average_precision", found.average_precision),
                "n_positive": found.positives,
                "n_negative": found.negatives,
                "n_unscored": found.unscored,
                "n_positive_patients": found.positive_patients,
                "n_negative_patients": found.negative_patients,
            }
            for name, found in summary.pixels.items()
        },
    }


def document_froc(froc: FrocSummary) -> dict[str, Any]:
    """Return sensitivities by rate, with their intervals and counts."""
    names = [f"{rate:g}" for rate in froc.rates]
    few = min(froc.target_patients, froc.image_patients) < FEW_PATIENTS
    note = (
        f"the intervals rest on {count_words(froc.target_patients, 'patient')} with lesions and "
        f"{froc.image_patients} normal ones: too few to tell"
    )
    return {
        "sensitivity": {name: found.value for name, found in zip(names, froc.sensitivities, strict=True)},
        "sensitivity_ci95": {name: found.interval for name, found in zip(names, froc.sensitivities, strict=True)},
        **as_pair("mean_sensitivity", froc.mean),
        "n_lesions": froc.targets,
        "n_lesion_patients": froc.target_patients,
        "n_normal_images": froc.images,
        "n_normal_patients": froc.image_patients,
        **({"note": note} if few else {}),
    }


def _document_point(measured: MeasuredPoint) -> dict[str, Any]:
    point = measured.point
    document: dict[str, Any] = {
        "threshold": point.threshold,
        "expected_is_guaranteed": point.guaranteed,
        "calibration_patients": point.patients,
        "n_normal_images": measured.images,
        "n_normal_patients": measured.patients,
    }
    if measured.false_alarms is None:
        return document | {"expected_share_of_patches": point.rate, **as_pair("share_of_patches", measured.rate)}
    return document | {
        "expected_false_findings": point.rate,
        "guaranteed_false_alarm_rate": point.false_alarm_rate,
        **as_pair("false_findings", measured.rate),
        **as_pair("false_alarm_rate", measured.false_alarms),
        "n_normal_images_with_finding": measured.alarmed,
    }
