"""What `unary evaluate` writes: metrics, scores and a report of a model on a labelled manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unary.errors import ManifestError
from unary.evaluation.evaluate import Evaluation
from unary.evaluation.intervals import Estimate
from unary.evaluation.lesion_query import ALL_LESIONS
from unary.evaluation.metrics import (
    ALL,
    FEW_PATIENTS,
    Differences,
    ScoreTable,
    compare_all,
    select_runs,
    summarise,
    write_metrics,
    write_scores,
)
from unary.evaluation.summary import EvaluationSummary, document_summary, summarise_evaluation
from unary.models.bundle import Model, describe_versions
from unary.models.card import describe_command
from unary.outputs.card_pages import group_cards, list_pages, write_card_pages
from unary.outputs.cards import Card
from unary.outputs.detection_report import build_findings_sections, describe_findings, write_tables
from unary.outputs.evaluation_pictures import build_image_sections, remove_former_pictures
from unary.outputs.figures import figure_png, plot_histogram, plot_roc
from unary.outputs.leads import (
    IMAGES,
    PATCHES,
    Sides,
    describe_auroc,
    describe_briefly,
    describe_outcome,
    describe_seen,
    describe_sides,
    is_few,
)
from unary.outputs.report import Link, Picture, Report, Section, build_results_section, write_report
from unary.outputs.words import IMAGE_GROUP, name_groups, with_interval
from unary.records import NOTICE, count_words

_PATCH_POINT = "patch_0.95"


def write_evaluation(
    evaluation: Evaluation,
    model: Model,
    out: Path | str,
    *,
    banners: tuple[str, ...] = (),
    resamples: int = 2000,
    progress: bool = True,
) -> tuple[str, ...]:
    """Write ``metrics.json``, ``scores.parquet``, ``report.html`` and the tables of `write_tables`.

    It shows every image whose pictures `unary.outputs.evaluation_pictures.EvaluationPictures` has drawn beside it.

    Groups of patches are those of the profile's lesions; the group ``image`` ranks whole images, the model's by the
    image score, those of baseline and controls by their highest patch.

    ``out`` is a folder, which is created; banners are what the report must not leave unseen, such as synthetic data.
    Returns the outcome as lines for a terminal.

    Raises
    ------
    ManifestError
        If neither patches nor images can be compared.
    """
    out = Path(out)
    tables = [table for table in (evaluation.patches, evaluation.images) if table is not None]
    if not tables:
        raise ManifestError("nothing to compare: no usable image of one label is left (see the skipped images)")
    metrics: dict[str, Any] = {name: {} for name in tables[0].scores}
    for table in tables:
        summary = summarise([table], rng=np.random.default_rng(0), resamples=resamples, progress=progress)
        for name, groups in summary.items():
            metrics[name] |= {IMAGE_GROUP: groups[ALL]} if table is evaluation.images else groups
    differences = _compare(metrics, tables[0], model.name, resamples=resamples, progress=progress)
    seen = describe_seen(evaluation.seen, len({image.row.patient_id for image in evaluation.evaluated}))
    banners = banners if evaluation.seen == 0 else (*banners, seen)
    meta = {
        "notice": NOTICE,
        "command": describe_command(),
        "versions": describe_versions(),
        "data_hash": evaluation.data_hash,
        "model": {
            "detector": model.name,
            "profile": model.profile.name,
            "provenance_data_hash": model.provenance.data_hash,
        },
        "preparation": dataclasses.asdict(model.preparation),
        "grid": dataclasses.asdict(model.grid),
        "seed": model.provenance.seed,
        "seen": seen,
        "differences": {name: dataclasses.asdict(found) for name, found in differences.items() if found is not None},
        "notices": list(banners),
        "skipped": list(evaluation.skipped),
    }
    reading, calibration = model.profile.reading, model.calibration
    points = () if calibration is None else calibration.operating_points
    found = summarise_evaluation(evaluation, points, reading=reading, resamples=resamples, progress=progress)
    write_scores(out / "scores.parquet", tables)
    write_tables(evaluation, out)
    write_metrics(out / "metrics.json", metrics, meta=meta, detection=document_summary(found))
    report = _build_report(metrics, tables, model, differences, banners=banners, meta=meta)
    lead = _describe_lead(report.lead, found, metrics, model.name, differences)
    shown: tuple[Section, ...] = ()
    cards: tuple[Card, ...] = ()
    if evaluation.pictures:
        shown, cards = build_image_sections(evaluation.evaluated, model, evaluation.pictures)
    known: dict[str, Any] = {"provenance": report.provenance, "banners": banners}
    write_card_pages(out, group_cards(cards), len(cards), home="report.html", **known)
    froc, *others = build_findings_sections(evaluation, found, reading)
    sections = (froc, *shown, *others, *report.sections)
    links = (*list_pages(len(cards)), *(Link(name, name) for name in ("images.csv", "findings.csv", "lesions.csv")))
    report = dataclasses.replace(report, lead=lead, sections=sections, links=links)
    write_report(report, out / "report.html")
    remove_former_pictures(out, evaluation.pictures.values())
    lines = [
        f"{name:18s} {group:14s} AUROC {describe_auroc(entry)}"
        for name, groups in metrics.items()
        for group, entry in groups.items()
    ]
    return (*lines, *describe_findings(found, reading), seen, report.lead, str(out / "report.html"))


def _compare(
    metrics: dict[str, Any], table: ScoreTable, subject: str, *, resamples: int, progress: bool
) -> dict[str, Estimate | None]:
    """The AUROC of the model minus that of each other, paired; None where patients are too few."""
    others = [name for name in table.scores if name != subject]
    group = ALL if ALL in metrics[subject] else IMAGE_GROUP
    found: Differences = {}
    if not is_few(metrics[subject][group]):
        asked = [(name, subject, ALL) for name in others]
        found = compare_all([table], asked, resamples=resamples, progress=progress)
    return {name: found.get(name, {}).get(subject, {}).get(ALL) for name in others}


def _build_report(
    metrics: dict[str, Any],
    tables: Sequence[ScoreTable],
    model: Model,
    differences: dict[str, Estimate | None],
    *,
    banners: tuple[str, ...],
    meta: dict[str, Any],
) -> Report:
    group, sides = _choose_group(metrics, model.name)
    outcomes = {name: groups[group] for name, groups in metrics.items()}
    outcome = describe_outcome(outcomes, subject=model.name, differences=differences, sides=sides)
    pictures = [_draw_roc(metrics, table, "image" if table.split == "image" else "patch") for table in tables]
    results = build_results_section("Results", metrics, titles=name_groups(model.profile.reading))
    results = dataclasses.replace(results, paragraphs=(outcome, *results.paragraphs, meta["seen"]))
    histogram = _draw_histogram(tables[0], model, sides.unit)
    return Report(
        title=f"Evaluation of {model.name}",
        lead=outcome,
        banners=banners,
        notices=tuple(meta["skipped"]),
        sections=(results, Section("ROC and scores by class", pictures=(*pictures, histogram))),
        provenance={key: value for key, value in meta.items() if key != "skipped"},
    )


def _choose_group(metrics: dict[str, Any], subject: str) -> tuple[str, Sides]:
    """What the first table ranks: patches with lesions, or where there are none whole images."""
    return (ALL, PATCHES) if ALL in metrics[subject] else (IMAGE_GROUP, IMAGES)


def _describe_lead(
    outcome: str,
    found: EvaluationSummary,
    metrics: dict[str, Any],
    subject: str,
    differences: dict[str, Estimate | None],
) -> str:
    """Two sentences: how many lesions are found at which price, and what is told apart; of few patients nothing."""
    group, sides = _choose_group(metrics, subject)
    outcomes = {name: groups[group] for name, groups in metrics.items()}
    if is_few(outcomes[subject]):
        return outcome
    brief = describe_briefly(outcomes, subject=subject, differences=differences, sides=sides)
    froc = found.froc.get(ALL_LESIONS)
    if froc is None or min(froc.target_patients, froc.image_patients) < FEW_PATIENTS or 1.0 not in froc.rates:
        return f"Compared were {describe_sides(outcomes[subject], sides)}. {brief}"
    sensitivity = froc.sensitivities[froc.rates.index(1.0)]
    of = f"{count_words(froc.targets, 'lesion')} of {count_words(froc.target_patients, 'patient')}"
    return f"At one false finding per normal image, a share of {with_interval(sensitivity)} of {of} is found. {brief}"


def _draw_roc(metrics: dict[str, Any], table: ScoreTable, unit: str) -> Picture:
    """The curves of one question: patches with lesions against others, or positive images against negative ones."""
    group = IMAGE_GROUP if unit == "image" else ALL
    outcomes = {name: groups[group] for name, groups in metrics.items()}
    curves = {name: [run for run in select_runs([table], detector=name) if run is not None] for name in table.scores}
    estimates = {
        name: Estimate(found["auroc"], *(found["auroc_ci95"] or (None, None))) for name, found in outcomes.items()
    }
    sides = IMAGES if unit == "image" else PATCHES
    words = f"ROC curves: {sides.positive} against {sides.negative}"
    return Picture(figure_png(plot_roc(curves, estimates=estimates, unit=unit)), words, f"{words}, by detector")


def _draw_histogram(table: ScoreTable, model: Model, unit: str) -> Picture:
    positive, negative = table.roles(ALL)
    kept = positive | negative
    points = model.calibration.operating_points if model.calibration is not None and unit == "patch" else ()
    threshold, caption = next((each.threshold for each in points if each.name == _PATCH_POINT), None), "Scores by class"
    if threshold is not None:
        caption += f"; the line is the operating point {_PATCH_POINT}"
    scores = table.scores[model.name][kept]
    figure = plot_histogram(scores, positive[kept], label=f"score of {model.name}", threshold=threshold, unit=unit)
    return Picture(figure_png(figure), caption, "Histogram of scores")
