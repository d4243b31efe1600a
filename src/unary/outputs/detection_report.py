"""What `unary evaluate` says of findings: lines, tables as CSV, and sections of its report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from unary.evaluation.evaluate import Evaluation
from unary.evaluation.evaluated_image import EvaluatedImage, build_outcomes
from unary.evaluation.lesion_query import ALL_LESIONS, LesionQuery, list_queries
from unary.evaluation.summary import EvaluationSummary, MeasuredPoint, document_summary
from unary.files import write_csv
from unary.models.calibration import MOST_FINDINGS
from unary.outputs.detection_figures import plot_froc
from unary.outputs.figures import figure_png
from unary.outputs.leads import describe_auroc, note_few
from unary.outputs.report import Cell, Picture, Section, Table
from unary.outputs.words import name_figures, with_interval
from unary.profiles import Reading
from unary.records import count_words


def write_tables(evaluation: Evaluation, out: Path) -> None:
    """Write ``findings.csv``, ``lesions.csv`` and ``images.csv``: all that the figures but those by pixel rest on.

    ``findings.csv`` has one row per finding: ``image_id``, ``rank``, ``score``, ``p_value``, the half-open box ``r0``,
    ``c0``, ``r1``, ``c1`` in stored pixels, ``kind``, and ``targets``, the lesions or groups that it hits, such as
    ``0:calcification 2:mass``. ``lesions.csv`` has one row per lesion or cluster, numbered within its image, with the
    ``score`` of the best finding on it, empty where there is none; ``counted`` says whether its image is labelled
    positive. ``images.csv`` says which images are ``normal`` and ``complete``.
    """
    images = evaluation.evaluated
    columns = ("image_id", "rank", "score", "p_value", "r0", "c0", "r1", "c1", "kind", "targets")
    write_csv(out / "findings.csv", columns, (line for image in images for line in _list_findings(image)))
    header = ("image_id", "target", "group", "cluster", "counted", "lesions", "area_mm2", "score", "ranks")
    write_csv(out / "lesions.csv", header, (line for image in images for line in _list_targets(image)))
    fields = ("image_id", "patient_id", "label", "assessment")
    lines = (
        (
            *(getattr(image.row, field) for field in fields),
            int(image.normal),
            int(image.row.complete),
            image.image_score,
            image.image_p_value,
            "; ".join(image.out_of_domain),
        )
        for image in images
    )
    write_csv(out / "images.csv", (*fields, "normal", "complete", "score", "p_value", "out_of_domain"), lines)


def _list_findings(image: EvaluatedImage) -> Iterable[Sequence[object]]:
    targets = list(enumerate(zip(image.match.targets, image.match.hits, strict=True)))
    for finding in image.findings:
        hit = " ".join(f"{place}:{target.group}" for place, (target, ranks) in targets if finding.rank in ranks)
        yield (image.row.image_id, finding.rank, finding.score, finding.p_value, *finding.box, finding.kind, hit)


def _list_targets(image: EvaluatedImage) -> Iterable[Sequence[object]]:
    counted = int(LesionQuery().selects_image(image.row))
    for place, (target, ranks) in enumerate(zip(image.match.targets, image.match.hits, strict=True)):
        kind, size = (target.group, int(target.cluster), counted), (len(target.lesions), target.area_mm2)
        yield (image.row.image_id, place, *kind, *size, image.score_target(place), " ".join(map(str, ranks)))


def describe_findings(summary: EvaluationSummary, reading: Reading) -> list[str]:
    """Return the figures as lines for a terminal, in the words of the profile."""
    names, titles, lines = name_figures(reading), _name_pixels(reading), []
    for name, froc in summary.froc.items():
        found = ", ".join(
            f"{with_interval(sensitivity)} at {rate:g}"
            for rate, sensitivity in zip(froc.rates, froc.sensitivities, strict=True)
        )
        few = note_few(froc.target_patients, froc.image_patients)
        lines.append(f"{names[name]} ({froc.targets}): sensitivity {found} false findings per normal image{few}")
    for measured in summary.points:
        point, rate = measured.point, with_interval(measured.rate)
        if measured.false_alarms is None:
            said = f"of a normal image's patches above ({_expect(measured)})"
        else:
            alarmed = f"{with_interval(measured.false_alarms)} of images alarmed"
            said = f"false findings per normal image, {alarmed} (guaranteed: at most {point.false_alarm_rate:.3g})"
        lines.append(f"operating point {point.name}: {rate} {said}{note_few(measured.patients)}")
    images = document_summary(summary)["image_auroc"]
    lines += [f"images, {names[name]}: AUROC {describe_auroc(found)}" for name, found in images.items()]
    lines += [
        f"pixels, {titles[name]}: AUROC {with_interval(found.auroc)}, "
        f"average precision {with_interval(found.average_precision)}"
        f"{note_few(found.positive_patients, found.negative_patients)}"
        for name, found in summary.pixels.items()
    ]
    return lines


def _name_pixels(reading: Reading) -> dict[str, str]:
    """What samples of pixels are of; there are no clusters among them."""
    return {ALL_LESIONS: "all lesions", **{group.name: group.title for group in reading.groups}}


def _expect(measured: MeasuredPoint) -> str:
    return ("at most " if measured.point.guaranteed else "about ") + f"{measured.point.rate:g}"


def build_findings_sections(
    evaluation: Evaluation, summary: EvaluationSummary, reading: Reading
) -> tuple[Section, ...]:
    """Return the sections of the report: FROC; false alarms, guaranteed and measured; images and pixels."""
    return (
        _build_froc_section(evaluation, summary, reading),
        *((_build_points_section(summary),) if summary.points else ()),
        _build_ranking_section(summary, reading),
    )


def _build_froc_section(evaluation: Evaluation, summary: EvaluationSummary, reading: Reading) -> Section:
    names, counts = name_figures(reading), summary.counts
    known = f", of assessment {' or '.join(reading.normal)} where that is known" if reading.normal else ""
    joined = "".join(f"; {group.title} at most 10 mm apart are one" for group in reading.groups if group.clustered)
    said = (
        f"False findings are counted on {count_words(counts['normal_images'], 'normal image')} of "
        f"{count_words(counts['normal_patients'], 'patient')} alone: without any listed lesion{known}. "
        f"Lesions are those of images labelled positive{joined}. A "
        f"partially annotated image ({counts['partially_annotated']} here) counts for its listed lesions and for no "
        "false finding. When a finding has found a lesion is written in docs/statistics.md."
    )
    if not summary.froc:
        why = "no image is known to be normal" if counts["normal_images"] == 0 else "no lesion is listed to be found"
        return Section("Lesions found", (said, f"Nothing is said of findings: {why}."))
    queries = list_queries(reading)
    figure = plot_froc(
        {names[name]: [build_outcomes(evaluation.evaluated, queries[name])] for name in summary.froc},
        summaries={names[name]: froc for name, froc in summary.froc.items()},
    )
    rates = next(iter(summary.froc.values())).rates
    header = ("to be found", "lesions", "patients", *(f"at {rate:g}" for rate in rates), "mean")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            names[name] + note_few(froc.target_patients, froc.image_patients),
            froc.targets,
            froc.target_patients,
            *map(with_interval, (*froc.sensitivities, froc.mean)),
        )
        for name, froc in summary.froc.items()
    )
    caption = "Share of lesions found at so many false findings per normal image [95 % interval over patients]."
    text = "Lesions found against false findings per normal image"
    return Section(
        "Lesions found", (said,), (Table(caption, header, rows),), (Picture(figure_png(figure), text, text),)
    )


def _build_points_section(summary: EvaluationSummary) -> Section:
    findings = [measured for measured in summary.points if measured.false_alarms is not None]
    patches = [measured for measured in summary.points if measured.false_alarms is None]
    said = (
        f"Operating points were set on {count_words(summary.points[0].point.patients, 'normal patient')}. All "
        f"measures are means over patients, as the guarantees are; of an image at most {MOST_FINDINGS} findings are "
        "reported and counted. A guarantee holds on average over the patients that happened to set it: one model may "
        "do worse."
    )
    tables = (
        Table(
            f"Findings, {_count_images(findings)}.",
            ("operating point", "false findings, expected", "measured", "images with any, guaranteed", "measured"),
            tuple(
                (
                    measured.point.name,
                    _expect(measured),
                    with_interval(measured.rate),
                    f"at most {measured.point.false_alarm_rate:.2f}",
                    with_interval(measured.false_alarms),
                )
                for measured in findings
                if measured.false_alarms is not None
            ),
        ),
        Table(
            f"Patches, {_count_images(patches)}.",
            ("operating point", "share of an image's patches, expected", "measured"),
            tuple((each.point.name, _expect(each), with_interval(each.rate)) for each in patches),
        ),
    )
    heading = "False alarms: guaranteed and measured"
    return Section(heading, (said,), tuple(table for table in tables if table.rows))


def _count_images(points: Sequence[MeasuredPoint]) -> str:
    if not points:
        return "not measured"
    images, patients = count_words(points[0].images, "normal image"), count_words(points[0].patients, "patient")
    return f"measured on {images} of {patients}{note_few(points[0].patients)}"


def _build_ranking_section(summary: EvaluationSummary, reading: Reading) -> Section:
    names, titles = name_figures(reading), _name_pixels(reading)
    images = tuple(
        (names[name], found["n_positive"], found["n_negative"], describe_auroc(found))
        for name, found in document_summary(summary)["image_auroc"].items()
    )
    pixels = tuple(
        (
            titles[name] + note_few(p.positive_patients, p.negative_patients),
            with_interval(p.auroc),
            with_interval(p.average_precision),
            p.positives,
            p.negatives,
            p.unscored,
        )
        for name, p in summary.pixels.items()
    )
    header = ("lesions", "AUROC", "average precision", "lesion pixels", "other pixels", "lesion pixels not scored")
    said = (
        "An image is as abnormal as its strongest place. To tell benign lesions from malignant ones is an experiment: "
        "both depart from normal tissue, and nothing here has learned the difference. Pixel by pixel, large lesions "
        "outvote small ones."
    )
    if alone := summary.counts["not_ranked"]:
        said += f" {count_words(alone, 'image')} without a score or without a patch took no part among images."
    tables = (
        Table(
            "Image scores: AUROC (95 % interval over patients).",
            ("images", "positive", "negative", "AUROC"),
            images,
        ),
        Table("Pixels of normal images and of images labelled positive.", header, pixels),
    )
    return Section("Images and pixels", (said,), tuple(table for table in tables if table.rows))
