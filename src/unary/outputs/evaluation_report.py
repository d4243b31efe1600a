"""What `unary evaluate` writes: metrics, scores and a report of a model on a labelled manifest."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from unary.errors import ManifestError
from unary.evaluation.detection_evaluation import DetectionEvaluation, document_summary, summarise_detection
from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import ALL, ScoreTable, select_runs, summarise, write_metrics, write_scores
from unary.models.bundle import Model, describe_versions
from unary.models.detection import require_settings
from unary.models.pipeline import Evaluation
from unary.outputs.detection_report import build_detection_sections, describe_detection, write_tables
from unary.outputs.figures import figure_png, plot_histogram, plot_roc
from unary.outputs.report import Picture, Report, Section, build_results_section, describe_outcome, write_report

IMAGE_GROUP = "image"
NO_FINDINGS = "Findings were not evaluated: the model was fitted by a version of unary that knew none."


def write_evaluation(
    evaluation: Evaluation,
    model: Model,
    out: Path,
    *,
    detection: DetectionEvaluation | None = None,
    banners: tuple[str, ...] = (),
    resamples: int = 2000,
) -> tuple[str, ...]:
    """Write ``metrics.json``, ``scores.parquet`` and ``report.html`` under ``out``; return the outcome as lines.

    Patch-level groups are those of the lesions; the group ``image`` ranks whole images by their highest patch. With
    ``detection``, the figures of findings are added, and the tables of `write_tables`.

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
        summary = summarise([table], rng=np.random.default_rng(0), resamples=resamples)
        for name, groups in summary.items():
            metrics[name] |= {IMAGE_GROUP: groups[ALL]} if table is evaluation.images else groups
    collection = evaluation.collection
    meta = {
        "notice": "Research software. Not for diagnosis.",
        "command": shlex.join(["unary", *sys.argv[1:]]),
        "versions": describe_versions(),
        "data_hash": collection.data_hash,
        "model": {"detector": model.name, "provenance_data_hash": model.provenance.data_hash},
        "preparation": dataclasses.asdict(model.preparation),
        "grid": dataclasses.asdict(model.grid),
        "seed": model.provenance.training.get("seed"),
        "notices": list(banners),
        "skipped": list(collection.skipped),
    }
    write_scores(out / "scores.parquet", tables)
    report = _build_report(metrics, tables, model, banners=banners, meta=meta)
    found_lines: list[str] = []
    document = None
    if detection is not None:
        calibration = require_settings(model).calibration
        found = summarise_detection(detection, calibration.operating_points if calibration else (), resamples=resamples)
        document, found_lines = document_summary(found), describe_detection(found)
        write_tables(detection, out)
        sections = (*report.sections, *build_detection_sections(detection, found))
        skipped = (line for line in detection.skipped if line not in report.notices)
        report = dataclasses.replace(report, sections=sections, notices=(*report.notices, *skipped))
    elif model.detection is None:
        report = dataclasses.replace(report, notices=(*report.notices, NO_FINDINGS))
    write_metrics(out / "metrics.json", metrics, meta=meta, detection=document)
    write_report(report, out / "report.html")
    lines = [
        f"{name:18s} {group:14s} AUROC {found['auroc']:.3f}{_between(found)}"
        for name, groups in metrics.items()
        for group, found in groups.items()
    ]
    return (*lines, *found_lines, str(out / "report.html"))


def _between(found: dict[str, Any]) -> str:
    interval = found["auroc_ci95"]
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


def _build_report(
    metrics: dict[str, Any], tables: list[ScoreTable], model: Model, *, banners: tuple[str, ...], meta: dict[str, Any]
) -> Report:
    table = tables[0]
    group = ALL if ALL in metrics[model.name] else IMAGE_GROUP
    outcomes = {name: groups[group] for name, groups in metrics.items()}
    if model.name == "laplacian":
        found = outcomes[model.name]
        lead = f"The laplacian reaches an AUROC of {found['auroc']:.3f}{_between(found)}."
    else:
        lead = describe_outcome(outcomes, first=model.name, second="laplacian", difference=None)
    curves = {name: [run for run in select_runs([table], detector=name) if run is not None] for name in table.scores}
    estimates = {
        name: Estimate(found["auroc"], *(found["auroc_ci95"] or (None, None))) for name, found in outcomes.items()
    }
    positive, negative = table.roles(ALL)
    kept = positive | negative
    pictures = (
        Picture(figure_png(plot_roc(curves, estimates=estimates)), "ROC curves", "ROC curves by detector"),
        Picture(
            figure_png(
                plot_histogram(
                    table.scores[model.name][kept],
                    positive[kept],
                    label=f"score of {model.name}",
                    threshold=model.thresholds["0.95"],
                )
            ),
            "Scores by class; the line is the threshold that 95 % of held-out normal patches stay below",
            "Histogram of scores",
        ),
    )
    return Report(
        title=f"Evaluation of {model.name}",
        lead=lead,
        banners=banners,
        notices=tuple(meta["skipped"]),
        sections=(build_results_section("Results", metrics), Section("ROC and scores by class", pictures=pictures)),
        provenance={key: value for key, value in meta.items() if key != "skipped"},
    )
