"""What `unary evaluate` writes: metrics, scores and a report of a model on a labelled manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from unary.errors import ManifestError
from unary.evaluation.evaluate import Evaluation
from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import (
    ALL,
    Differences,
    ScoreTable,
    compare_all,
    select_runs,
    summarise,
    write_metrics,
    write_scores,
)
from unary.evaluation.summary import document_summary, summarise_evaluation
from unary.models.bundle import Model, describe_versions
from unary.models.card import describe_command
from unary.outputs.detection_report import build_findings_sections, describe_findings, write_tables
from unary.outputs.figures import figure_png, plot_histogram, plot_roc
from unary.outputs.leads import IMAGES, PATCHES, describe_auroc, describe_outcome, describe_seen, is_few
from unary.outputs.report import Picture, Report, Section, build_results_section, write_report
from unary.outputs.words import IMAGE_GROUP, name_groups
from unary.records import NOTICE

_PATCH_POINT = "patch_0.95"


def write_evaluation(
    evaluation: Evaluation,
    model: Model,
    out: Path,
    *,
    banners: tuple[str, ...] = (),
    resamples: int = 2000,
    progress: bool = True,
) -> tuple[str, ...]:
    """Write ``metrics.json``, ``scores.parquet``, ``report.html`` and the tables of `write_tables`.

    Groups of patches are those of the profile's lesions; the group ``image`` ranks whole images, the model's by the
    image score, those of baseline and controls by their highest patch.

    ``out`` is a folder, which is created; banners are what the report must not leave unseen, such as synthetic data.
    Returns the outcome as lines for a terminal.

    Raises
    ------
    ManifestError
        If neither patches nor images can be compared.
    """
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
    report = _build_report(metrics, tables[0], model, differences, banners=banners, meta=meta)
    sections = (*report.sections, *build_findings_sections(evaluation, found, reading))
    write_metrics(out / "metrics.json", metrics, meta=meta, detection=document_summary(found))
    write_report(dataclasses.replace(report, sections=sections), out / "report.html")
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
    table: ScoreTable,
    model: Model,
    differences: dict[str, Estimate | None],
    *,
    banners: tuple[str, ...],
    meta: dict[str, Any],
) -> Report:
    group, sides = (ALL, PATCHES) if ALL in metrics[model.name] else (IMAGE_GROUP, IMAGES)
    unit = sides.unit
    outcomes = {name: groups[group] for name, groups in metrics.items()}
    lead = describe_outcome(outcomes, subject=model.name, differences=differences, sides=sides)
    curves = {name: [run for run in select_runs([table], detector=name) if run is not None] for name in table.scores}
    estimates = {
        name: Estimate(found["auroc"], *(found["auroc_ci95"] or (None, None))) for name, found in outcomes.items()
    }
    positive, negative = table.roles(ALL)
    kept = positive | negative
    points = model.calibration.operating_points if model.calibration is not None and group == ALL else ()
    threshold, caption = next((each.threshold for each in points if each.name == _PATCH_POINT), None), "Scores by class"
    if threshold is not None:
        caption += f"; the line is the operating point {_PATCH_POINT}"
    histogram = plot_histogram(
        table.scores[model.name][kept], positive[kept], label=f"score of {model.name}", threshold=threshold, unit=unit
    )
    pictures = (
        Picture(figure_png(plot_roc(curves, estimates=estimates, unit=unit)), "ROC curves", "ROC curves by detector"),
        Picture(figure_png(histogram), caption, "Histogram of scores"),
    )
    results = build_results_section("Results", metrics, titles=name_groups(model.profile.reading))
    results = dataclasses.replace(results, paragraphs=(*results.paragraphs, meta["seen"]))
    return Report(
        title=f"Evaluation of {model.name}",
        lead=lead,
        banners=banners,
        notices=tuple(meta["skipped"]),
        sections=(results, Section("ROC and scores by class", pictures=pictures)),
        provenance={key: value for key, value in meta.items() if key != "skipped"},
    )
