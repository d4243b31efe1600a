"""What `unary evaluate` says of findings: lines, tables as CSV, and sections of its report."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from unary.errors import ImageError
from unary.evaluation.detection_evaluation import DetectionEvaluation, DetectionSummary
from unary.evaluation.intervals import Estimate
from unary.evaluation.judged_images import SOUGHT, JudgedImage, build_outcomes
from unary.files import replacing
from unary.models.calibration import MOST_FINDINGS
from unary.models.detection import DEFAULT_POINT
from unary.outputs.detection_figures import plot_froc
from unary.outputs.detection_pictures import (
    Sight,
    list_false_alarms,
    list_lesions,
    plot_judged,
    plot_sights,
)
from unary.outputs.figures import figure_png
from unary.outputs.report import Cell, Picture, Section, Table

NAMES = {
    "calcification": "calcifications, by group",
    "calcification_clusters": "clusters of calcifications",
    "mass": "masses",
    "all": "all lesions",
    "birads_1_against_5": "BI-RADS 1 against 5",
    "birads_1_against_3_to_6": "BI-RADS 1 against 3 to 6",
    "calcifications_2_against_5": "calcifications, BI-RADS 2 against 5",
    "label_negative_against_positive": "label negative against positive",
}
_CROPS, _WHOLE = 12, 2


def write_tables(evaluation: DetectionEvaluation, out: Path) -> None:
    """Write ``findings.csv``, ``lesions.csv`` and ``images.csv``: all that the figures but those by pixel rest on.

    ``findings.csv`` has one row per finding: ``image_id``, ``rank``, ``score``, ``p_value``, the half-open box ``r0``,
    ``c0``, ``r1``, ``c1`` in stored pixels, and ``targets``, the lesions or groups that it hits, such as
    ``0:calcification 2:mass``. ``lesions.csv`` has one row per lesion or group, numbered within its image, with the
    ``score`` of the best finding on it, empty where there is none. ``images.csv`` says which images are ``normal`` and
    ``complete``.
    """
    header = ("image_id", "rank", "score", "p_value", "r0", "c0", "r1", "c1", "targets")
    _write_csv(out / "findings.csv", header, (line for image in evaluation.images for line in _list_findings(image)))
    header = ("image_id", "target", "group", "cluster", "sought", "lesions", "area_mm2", "score", "ranks")
    _write_csv(out / "lesions.csv", header, (line for image in evaluation.images for line in _list_targets(image)))
    header = ("image_id", "patient_id", "label", "birads", "normal", "complete", "score", "p_value", "out_of_domain")
    _write_csv(
        out / "images.csv",
        header,
        (
            (
                image.row.image_id,
                image.row.patient_id,
                image.row.label,
                image.row.birads,
                int(image.normal),
                int(image.row.complete),
                image.image_score,
                image.image_p_value,
                "; ".join(image.out_of_domain),
            )
            for image in evaluation.images
        ),
    )


def _list_findings(image: JudgedImage) -> Iterable[Sequence[object]]:
    for finding in image.findings:
        hit = [
            f"{place}:{target.group}"
            for place, (target, ranks) in enumerate(zip(image.match.targets, image.match.hits, strict=True))
            if finding.rank in ranks
        ]
        yield (image.row.image_id, finding.rank, finding.score, finding.p_value, *finding.box, " ".join(hit))


def _list_targets(image: JudgedImage) -> Iterable[Sequence[object]]:
    for place, (target, ranks) in enumerate(zip(image.match.targets, image.match.hits, strict=True)):
        yield (
            image.row.image_id,
            place,
            target.group,
            int(target.cluster),
            int(SOUGHT["all"].includes(image.row)),
            len(target.lesions),
            target.area_mm2,
            image.score_target(place),
            " ".join(map(str, ranks)),
        )


def _write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)  # csv writes floats in full, and nothing for None


def describe_detection(summary: DetectionSummary) -> list[str]:
    """Return the figures as lines for a terminal."""
    lines = []
    for name, froc in summary.froc.items():
        found = ", ".join(
            f"{with_interval(sensitivity)} at {rate:g}"
            for rate, sensitivity in zip(froc.rates, froc.sensitivities, strict=True)
        )
        lines.append(f"{NAMES[name]} ({froc.targets}): sensitivity {found} false findings per normal image")
    for measured in summary.points:
        point = measured.point
        lines.append(
            f"operating point {point.name}: {with_interval(measured.false_findings)} false findings per normal image, "
            f"{with_interval(measured.false_alarms)} of images alarmed (promised: at most {point.false_alarm_rate:.3g})"
        )
    lines += [f"images, {NAMES[name]}: AUROC {with_interval(found)}" for name, found in summary.images.items()]
    lines += [
        f"pixels, {NAMES[name]}: AUROC {with_interval(found.auroc)}, "
        f"average precision {with_interval(found.average_precision)}"
        for name, found in summary.pixels.items()
    ]
    return lines


def with_interval(found: Estimate) -> str:
    """Return a value with its interval, to two decimals, or three significant digits below 0.1."""
    between = "" if found.low is None or found.high is None else f" [{_short(found.low)}, {_short(found.high)}]"
    return _short(found.value) + between


def _short(value: float) -> str:
    return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.2f}"


def build_detection_sections(evaluation: DetectionEvaluation, summary: DetectionSummary) -> tuple[Section, ...]:
    """Return the sections of the report: FROC, false alarms promised and measured, images, pixels, pictures."""
    threshold = _choose_threshold(summary)
    return (
        _froc_section(evaluation, summary),
        *((_points_section(summary),) if summary.points else ()),
        _ranking_section(summary),
        *_picture_sections(evaluation.images, threshold),
    )


def _choose_threshold(summary: DetectionSummary) -> float:
    """That of the default operating point; none for a model that has not been calibrated."""
    return next((m.point.threshold for m in summary.points if m.point.name == DEFAULT_POINT), -math.inf)


def _froc_section(evaluation: DetectionEvaluation, summary: DetectionSummary) -> Section:
    counts = summary.counts
    said = (
        f"False findings are counted on {counts['normal_images']} normal images of {counts['normal_patients']} "
        "patients alone: without any listed lesion, of BI-RADS 1 where the category is known. Lesions are those of "
        "images labelled positive; calcifications at most 10 mm apart are one. A partially annotated image "
        f"({counts['partially_annotated']} here) counts for its listed lesions and for no false finding. When a "
        "finding has found a lesion is written in docs/statistics.md."
    )
    if not summary.froc:
        return Section("Lesions found", (said, "No curve: there is no normal image, or no lesion is listed."))
    runs = {name: [build_outcomes(evaluation.images, SOUGHT[name])] for name in summary.froc}
    figure = plot_froc(
        {NAMES[name]: of for name, of in runs.items()},
        summaries={NAMES[name]: froc for name, froc in summary.froc.items()},
    )
    rates = next(iter(summary.froc.values())).rates
    header = ("to be found", "lesions", "patients", *(f"at {rate:g}" for rate in rates), "mean")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            NAMES[name],
            froc.targets,
            froc.target_patients,
            *(with_interval(found) for found in froc.sensitivities),
            with_interval(froc.mean),
        )
        for name, froc in summary.froc.items()
    )
    caption = "Share of lesions found at so many false findings per normal image [95 % interval over patients]."
    text = "Lesions found against false findings per normal image"
    return Section(
        "Lesions found", (said,), (Table(caption, header, rows),), (Picture(figure_png(figure), text, text),)
    )


def _points_section(summary: DetectionSummary) -> Section:
    rows = tuple(
        (
            measured.point.name,
            ("at most " if measured.point.promised else "about ") + f"{measured.point.false_findings_per_image:g}",
            with_interval(measured.false_findings),
            f"at most {measured.point.false_alarm_rate:.2f}",
            with_interval(measured.false_alarms),
        )
        for measured in summary.points
    )
    said = (
        f"Operating points were set on {summary.points[0].point.patients} other normal patients. Both measures are "
        f"means over patients, as the promises are; of an image at most {MOST_FINDINGS} findings are reported and "
        "counted. A promise holds on average over the patients that happened to set it: one model may do worse."
    )
    measured = summary.points[0]
    caption = f"Measured on {measured.images} normal images of {measured.patients} patients."
    header = ("operating point", "false findings, expected", "measured", "images with any, promised", "measured")
    return Section("False alarms: promised and measured", (said,), (Table(caption, header, rows),))


def _ranking_section(summary: DetectionSummary) -> Section:
    images = tuple((NAMES[name], with_interval(found)) for name, found in summary.images.items())
    pixels = tuple(
        (NAMES[name], with_interval(p.auroc), with_interval(p.average_precision), p.positives, p.negatives, p.unscored)
        for name, p in summary.pixels.items()
    )
    header = ("lesions", "AUROC", "average precision", "lesion pixels", "other pixels", "lesion pixels not scored")
    said = (
        "An image is as abnormal as its strongest place. Benign against malignant calcifications is an experiment: a "
        "benign calcification departs from normal tissue too, and nothing here has learned the difference. Pixel by "
        "pixel, large lesions outvote small ones."
    )
    tables = (
        Table("Images told apart: AUROC [95 % interval over patients].", ("images", "AUROC"), images),
        Table("Pixels of normal images and of images labelled positive.", header, pixels),
    )
    return Section("Images and pixels", (said,), tuple(table for table in tables if table.rows))


def _picture_sections(images: Sequence[JudgedImage], threshold: float) -> tuple[Section, ...]:
    above = "above the operating point 1" if np.isfinite(threshold) else "at all: the model has no operating points"
    alarms = list_false_alarms(images, count=_CROPS)
    missed, found = (
        [
            sight
            for name in ("calcification_clusters", "mass")
            for sight in list_lesions(images, SOUGHT[name], threshold=threshold, found=which, count=_CROPS // 2)
        ]
        for which in (False, True)
    )
    others = list_lesions(images, SOUGHT["all"], threshold=threshold, found=False, count=3 * _CROPS)
    listed = {(sight.image.row.image_id, sight.box) for sight in missed}
    missed += [s for s in others if (s.image.row.image_id, s.box) not in listed][: _CROPS // 2]
    parts = (
        ("What alarms falsely", alarms, "The strongest findings in normal images"),
        ("What is missed", missed, f"Lesions without a finding {above}"),
        ("What is found", found, f"Some lesions with a finding {above}"),
    )
    sections = []
    for heading, sights, text in parts:
        figure = plot_sights(sights)
        if figure is not None:
            pictures = (Picture(figure_png(figure), text, text), *_whole_pictures(sights, threshold))
            sections.append(Section(heading, pictures=pictures))
    return tuple(sections)


def _whole_pictures(sights: Sequence[Sight], threshold: float) -> Iterable[Picture]:
    """The whole images of the first few sights."""
    for image in list({sight.image.row.image_id: sight.image for sight in sights}.values())[:_WHOLE]:
        try:
            figure = plot_judged(image, threshold=threshold)
        except ImageError:  # `plot_sights` has named it
            continue
        text = f"{image.row.image_id}: findings and annotated lesions"
        yield Picture(figure_png(figure), text, text)
