"""Findings judged on a labelled manifest: lesions found, false alarms beside what was promised, images and pixels.

Images are read one after the other, and of each only its findings, the outlines of its lesions and a sample of its
pixels are kept. One unreadable image never stops the rest.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from unary.errors import ImageError
from unary.evaluation.froc import FrocSummary, summarise_froc
from unary.evaluation.image_level import compare_images
from unary.evaluation.intervals import Estimate, Run, auroc_over_seeds
from unary.evaluation.judged_images import PIXEL_GROUPS, SOUGHT, JudgedImage, build_outcomes, judge_image
from unary.evaluation.metrics import FEW_PATIENTS
from unary.evaluation.pixelwise import PixelSample, PixelSummary, summarise_pixels
from unary.models.bundle import Model
from unary.models.calibration import MOST_FINDINGS
from unary.records import Lesion, Manifest, OperatingPoint

logger = logging.getLogger(__name__)

BY_LABEL = "label_negative_against_positive"


@dataclass(frozen=True, eq=False)
class DetectionEvaluation:
    """The judged images of a manifest.

    Attributes
    ----------
    images
        In manifest order.
    pixels
        Samples by kind of lesion (``all``, ``calcification``, ``mass``), of normal images and of images labelled
        positive. The pixels of lesions of another kind are left out, not taken as normal.
    skipped
        One line per image that could not be used.
    """

    images: tuple[JudgedImage, ...]
    pixels: dict[str, tuple[PixelSample, ...]]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class MeasuredPoint:
    """What normal images do at an operating point, beside what it promised.

    Attributes
    ----------
    point
        With its promises.
    false_findings, false_alarms
        Findings per image, at most `MOST_FINDINGS` counted of each, and the share of images with any; means over
        patients, as the promises are.
    images, alarmed, patients
        How many normal images, how many of them with a finding, and of how many patients.
    """

    point: OperatingPoint
    false_findings: Estimate
    false_alarms: Estimate
    images: int
    alarmed: int
    patients: int


@dataclass(frozen=True)
class DetectionSummary:
    """The figures of `metrics.json`; a group without lesions, or a comparison without one of its sides, is absent."""

    froc: dict[str, FrocSummary]
    points: tuple[MeasuredPoint, ...]
    images: dict[str, Estimate]
    pixels: dict[str, PixelSummary]
    counts: dict[str, int]


def evaluate_detection(model: Model, manifest: Manifest, *, progress: bool = True) -> DetectionEvaluation | None:
    """Find what departs from normal in every image of a manifest, and judge it by the listed lesions.

    Parameters
    ----------
    model
        Of `unary.models.pipeline.fit`.
    manifest
        Labelled; of patients that the model has not seen, which `unary.models.pipeline.evaluate` checks.
    progress
        Show a progress bar.

    Returns
    -------
    DetectionEvaluation or None
        None, with a warning, for a model of a version that knew no findings.
    """
    if model.detection is None:
        logger.warning("the model was fitted by a version that knew no findings: lesions and false alarms are left out")
        return None
    lesions: dict[str, list[Lesion]] = {}
    for lesion in manifest.lesions:
        lesions.setdefault(lesion.image_id, []).append(lesion)
    images: list[JudgedImage] = []
    samples: dict[str, list[PixelSample]] = {name: [] for name in PIXEL_GROUPS}
    skipped: list[str] = []
    for row in tqdm(manifest.rows, desc="detecting", unit="image", delay=2, disable=None if progress else True):
        try:
            judged, sampled = judge_image(model, row, lesions.get(row.image_id, ()))
        except ImageError as error:
            skipped.append(str(error))
            logger.warning("skipped: %s", error)
            continue
        images.append(judged)
        for name, sample in sampled.items():
            samples[name].append(sample)
    return DetectionEvaluation(tuple(images), {name: tuple(of) for name, of in samples.items()}, tuple(skipped))


def summarise_detection(
    evaluation: DetectionEvaluation, points: Sequence[OperatingPoint], *, seed: int = 0, resamples: int = 2000
) -> DetectionSummary:
    """Return every figure that the judged images allow, with 95 % intervals over patients.

    Parameters
    ----------
    evaluation
        Of `evaluate_detection`.
    points
        The model's operating points; none for a model that has not been calibrated.
    seed
        Of the bootstrap; every figure starts from it anew, so that none depends on which others there are.
    resamples
        Of each interval.
    """

    def rng() -> np.random.Generator:
        return np.random.default_rng(seed)

    images = evaluation.images
    normal = [image for image in images if image.normal]
    froc = {}
    for name, sought in SOUGHT.items():
        outcomes = build_outcomes(images, sought)
        if normal and any(outcome.target_scores for outcome in outcomes):
            froc[name] = summarise_froc([outcomes], rng=rng(), resamples=resamples)
    pixels = {
        name: summarise_pixels(samples, rng=rng(), resamples=resamples)
        for name, samples in evaluation.pixels.items()
        if any(sample.positive.any() for sample in samples) and any((~sample.positive).any() for sample in samples)
    }
    measured = tuple(measure_point(point, normal, rng=rng(), resamples=resamples) for point in points if normal)
    by_birads = Counter(image.row.birads for image in images if image.row.birads is not None)
    counts = {
        "images": len(images),
        "normal_images": len(normal),
        "normal_patients": len({image.row.patient_id for image in normal}),
        "partially_annotated": sum(not image.row.complete for image in images),
        "out_of_domain": sum(bool(image.out_of_domain) for image in images),
        "skipped": len(evaluation.skipped),
        **{f"birads_{category}_images": count for category, count in sorted(by_birads.items())},
    }
    return DetectionSummary(froc, measured, compare_judged(images, rng=rng, resamples=resamples), pixels, counts)


def compare_judged(
    images: Sequence[JudgedImage],
    *,
    rng: Callable[[], np.random.Generator],
    runs: ArrayLike | None = None,
    resamples: int = 2000,
) -> dict[str, Estimate]:
    """Return the AUROC of image scores by BI-RADS category, as `compare_images`, and by label.

    Images without a score take no part. ``rng`` gives a new generator for each statistic; ``runs`` is as for
    `compare_images`, one per image.
    """
    runs_of = np.zeros(len(images), int) if runs is None else np.asarray(runs)
    kept = [place for place, image in enumerate(images) if image.image_score is not None]
    scores = np.asarray([images[place].image_score for place in kept], np.float64)
    patients = np.asarray([images[place].row.patient_id for place in kept])
    labels = np.asarray([images[place].row.label or "" for place in kept])
    calcified = [any(t.group == "calcification" for t in images[place].match.targets) for place in kept]
    found = compare_images(
        scores,
        birads=[images[place].row.birads for place in kept],
        patients=patients,
        has_calcification=np.asarray(calcified, bool),
        rng=rng(),
        runs=runs_of[kept],
        resamples=resamples,
    )
    parts = [(runs_of[kept] == run) & (labels != "") for run in np.unique(runs_of[kept])]
    by_label = [Run(scores[part], labels[part] == "positive", patients[part]) for part in parts]
    both = [run for run in by_label if run.positive.any() and not run.positive.all()]
    return {**found, BY_LABEL: auroc_over_seeds(both, rng=rng(), resamples=resamples)} if both else found


def measure_point(
    point: OperatingPoint, normal: Sequence[JudgedImage], *, rng: np.random.Generator, resamples: int = 2000
) -> MeasuredPoint:
    """Return what normal images do at an operating point; the images must not have set it."""
    counts = count_findings(point, normal)
    patients = [image.row.patient_id for image in normal]
    found, alarms = estimate_patient_means(np.stack([counts, counts > 0]), patients, rng=rng, resamples=resamples)
    return MeasuredPoint(point, found, alarms, len(counts), int((counts > 0).sum()), len(set(patients)))


def count_findings(point: OperatingPoint, images: Sequence[JudgedImage]) -> NDArray[np.int64]:
    """Return how many findings each image has above an operating point, at most `MOST_FINDINGS`, shape (n,)."""
    above = [sum(finding.score > point.threshold for finding in image.findings) for image in images]
    return np.minimum(np.asarray(above, np.int64), MOST_FINDINGS)


def estimate_patient_means(
    values: ArrayLike, patients: Sequence[str], *, rng: np.random.Generator, resamples: int = 2000
) -> list[Estimate]:
    """Return the mean over patients of their images' mean, with its 95 % percentile interval, for each row of values.

    Parameters
    ----------
    values
        Shape (k, n): of n images.
    patients
        One per image, at least one. With a single patient there is no interval.
    rng, resamples
        Of the bootstrap over patients; all rows meet the same draws.
    """
    names, owner = np.unique(list(patients), return_inverse=True)
    rows = np.atleast_2d(np.asarray(values, np.float64))
    means = np.stack([np.bincount(owner, weights=row) for row in rows]) / np.bincount(owner)
    plain = means.mean(axis=1).tolist()
    if len(names) < 2:
        return [Estimate(value, None, None) for value in plain]
    drawn = rng.integers(len(names), size=(resamples, len(names)))
    bounds = np.percentile(means[:, drawn].mean(axis=2), [2.5, 97.5], axis=1)
    return [Estimate(value, float(low), float(high)) for value, low, high in zip(plain, *bounds, strict=True)]


def document_summary(summary: DetectionSummary) -> dict[str, Any]:
    """Return the summary as ``metrics.json`` holds it under ``detection``."""
    return {
        "counts": summary.counts,
        "froc": {name: describe_froc(froc) for name, froc in summary.froc.items()},
        "operating_points": {measured.point.name: describe_point(measured) for measured in summary.points},
        "image_auroc": {name: as_pair("auroc", found) for name, found in summary.images.items()},
        "pixels": {
            name: {
                **as_pair("auroc", found.auroc),
                **as_pair("average_precision", found.average_precision),
                "n_positive": found.positives,
                "n_negative": found.negatives,
                "n_unscored": found.unscored,
                "n_patients": found.patients,
            }
            for name, found in summary.pixels.items()
        },
    }


def describe_froc(froc: FrocSummary) -> dict[str, Any]:
    """Return sensitivities by rate, with their intervals and counts."""
    names = [f"{rate:g}" for rate in froc.rates]
    few = min(froc.target_patients, froc.image_patients) < FEW_PATIENTS
    note = (
        f"the intervals rest on {froc.target_patients} patients with lesions and {froc.image_patients} normal ones, "
        "and are probably too narrow"
    )
    return {
        "sensitivity": {name: found.value for name, found in zip(names, froc.sensitivities, strict=True)},
        "sensitivity_ci95": {
            name: as_pair("x", found)["x_ci95"] for name, found in zip(names, froc.sensitivities, strict=True)
        },
        **as_pair("mean_sensitivity", froc.mean),
        "n_lesions": froc.targets,
        "n_lesion_patients": froc.target_patients,
        "n_normal_images": froc.images,
        "n_normal_patients": froc.image_patients,
        **({"note": note} if few else {}),
    }


def describe_point(measured: MeasuredPoint) -> dict[str, Any]:
    """Return an operating point's promises and what was measured."""
    point = measured.point
    return {
        "threshold": point.threshold,
        "expected_false_findings": point.false_findings_per_image,
        "expected_is_promised": point.promised,
        "promised_false_alarm_rate": point.false_alarm_rate,
        "calibration_patients": point.patients,
        **as_pair("false_findings", measured.false_findings),
        **as_pair("false_alarm_rate", measured.false_alarms),
        "n_normal_images": measured.images,
        "n_normal_images_with_finding": measured.alarmed,
        "n_normal_patients": measured.patients,
    }


def as_pair(name: str, found: Estimate) -> dict[str, Any]:
    """Return an estimate as ``{name: value, name_ci95: [low, high] or None}``."""
    return {name: found.value, f"{name}_ci95": None if found.low is None else [found.low, found.high]}
