"""The page of the demonstration: what is found, how often that is wrong, beside what, and how to do it oneself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unary.evaluation.evaluate import Evaluation
from unary.evaluation.evaluated_image import build_outcomes
from unary.evaluation.froc import FALSE_RATES, FrocSummary, Outcomes, compare_froc
from unary.evaluation.image_level import BY_LABEL
from unary.evaluation.intervals import Estimate
from unary.evaluation.lesion_query import ALL_LESIONS, LesionQuery
from unary.evaluation.metrics import FEW_PATIENTS
from unary.evaluation.summary import EvaluationSummary, MeasuredPoint, document_summary, summarise_evaluation
from unary.models.bundle import Model
from unary.models.calibration import describe_guarantee
from unary.models.examination import DEFAULT_POINT
from unary.outputs.cards import Card
from unary.outputs.detection_figures import plot_froc
from unary.outputs.figures import figure_png
from unary.outputs.leads import join_words, judge_difference
from unary.outputs.report import Cell, Link, Picture, Report, Section, Table, write_report
from unary.outputs.words import with_interval
from unary.records import count_words

BANNER = (
    "Synthetic data. Every image here is a computer-made phantom with planted lesions. The figures show that the chain "
    "works; they say nothing about real images."
)
NAMES = {
    "fusion": "unary's default",
    "wei2018": "the network of Wei et al. 2018",
    "laplacian": "a filter that learns nothing",
}
_SHORT = {"wei2018": "the network", "laplacian": "the filter"}
_SUBJECT = "fusion"
_RATE = 1.0  # false findings per normal image, at which lesions are counted
_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Compared:
    """One detector on the images that none has learned from.

    ``difference`` is the default's share of lesions found, at one false finding per normal image, minus this one's;
    None for the default, and where there are too few patients for an interval.
    """

    name: str
    outcomes: Outcomes
    summary: EvaluationSummary
    difference: Estimate | None

    @property
    def froc(self) -> FrocSummary:
        """Of all lesions."""
        return self.summary.froc[ALL_LESIONS]

    def count_found(self, threshold: float) -> int:
        """Return how many lesions have a finding above a threshold."""
        scores = [score for one in self.outcomes for score in one.target_scores]
        return sum(score is not None and score > threshold for score in scores)

    @property
    def found(self) -> Estimate:
        """The share of lesions found at one false finding per normal image."""
        return self.froc.sensitivities[self.froc.rates.index(_RATE)]


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the page shows: the default's model, the cards of four views, all detectors compared, what was run."""

    model: Model
    cards: tuple[Card, ...]
    compared: tuple[Compared, ...]
    meta: Mapping[str, Any]


def compare_detectors(models: Mapping[str, Model], evaluations: Mapping[str, Evaluation]) -> tuple[Compared, ...]:
    """Return the figures of every detector on the same images, the default first."""
    reading = models[_SUBJECT].profile.reading
    outcomes = {name: build_outcomes(each.evaluated, LesionQuery()) for name, each in evaluations.items()}
    compared = []
    for name, evaluation in evaluations.items():
        calibration = models[name].calibration
        points = () if calibration is None else calibration.operating_points
        summary = summarise_evaluation(evaluation, points, reading=reading, resamples=_RESAMPLES, progress=False)
        froc, difference = summary.froc[ALL_LESIONS], None
        if name != _SUBJECT and min(froc.target_patients, froc.image_patients) >= FEW_PATIENTS:
            pair = [outcomes[_SUBJECT]], [outcomes[name]]
            found = compare_froc(*pair, rng=np.random.default_rng(0), resamples=_RESAMPLES)
            difference = found[list(FALSE_RATES).index(_RATE)]
        compared.append(Compared(name, outcomes[name], summary, difference))
    return tuple(compared)


def document_demo(result: DemoResult) -> dict[str, Any]:
    """Return what ``metrics.json`` holds: the figures of `unary.evaluation.summary` by detector, and the run."""
    return {"detectors": {each.name: document_summary(each.summary) for each in result.compared}, "meta": result.meta}


def write_demo_report(result: DemoResult, path: Path, *, seconds: float) -> str:
    """Write the page; return its lead."""
    lead = _describe_lead(result)
    links = (
        Link("every image tried", "evaluation/report.html"),
        Link("the four views, as unary detect writes them", "detections/report.html"),
    )
    report = Report(
        title="What unary finds in images that it has never seen",
        lead=lead,
        banners=(BANNER,),
        sections=(
            _show_views(result),
            _tell_errors(result),
            _tell_comparison(result),
            _tell_how(),
            _tell_small(result, seconds),
        ),
        provenance=result.meta,
        links=links,
    )
    write_report(report, path)
    return lead


def _describe_lead(result: DemoResult) -> str:
    """What is found and at which price; and how others do, of few patients without a verdict."""
    first, *others = result.compared
    froc = first.froc
    of = f"{first.found.value * froc.targets:.0f} of {count_words(froc.targets, 'planted lesion')}"
    lead = (
        f"In {count_words(froc.target_patients, 'synthetic patient')} whom it has never seen, unary finds {of} at one "
        "false finding per normal image."
    )
    beside = join_words([f"{NAMES[each.name]} finds {each.found.value * froc.targets:.0f}" for each in others])
    if any(each.difference is None for each in others):
        return f"{lead} There {beside}: too few patients to tell which is better."
    verdicts: dict[str, list[str]] = {}
    for each in others:
        verdicts.setdefault(judge_difference(each.difference), []).append(_SHORT[each.name])
    told = join_words([f"{verdict} {join_words(names)}" for verdict, names in verdicts.items()])
    return f"{lead} There {beside}: the default is {told}."


def _promise(measured: MeasuredPoint) -> str:
    return ("at most " if measured.point.guaranteed else "about ") + f"{measured.point.rate:g}"


def _find_point(compared: Compared) -> MeasuredPoint | None:
    return next((each for each in compared.summary.points if each.point.name == DEFAULT_POINT), None)


def _show_views(result: DemoResult) -> Section:
    learned = result.meta["config"]["learned"]
    return Section(
        "Four views of one synthetic patient",
        (
            "A cluster of calcifications is planted in the left breast, a mass in the right one. The detector has "
            f"learned from {count_words(learned, 'normal image')} alone and has never seen a lesion. Solid outlines "
            "and colour are its findings, each with its rank: red is hardly unusual, yellow is beyond every normal "
            "image that set the threshold. Dashed blue is a planted lesion that it has found, dotted pink one that it "
            "has missed. Click a picture to enlarge it; findings, map and lesions can be switched off.",
        ),
        cards=result.cards,
        layout="four",
    )


def _tell_errors(result: DemoResult) -> Section:
    first = result.compared[0]
    point = _find_point(first)
    measured = [each for each in first.summary.points if each.false_alarms is not None]
    froc = first.froc
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            each.point.name,
            _promise(each),
            with_interval(each.rate),
            f"at most {100 * each.point.false_alarm_rate:.0f} %" if each.point.false_alarm_rate is not None else None,
            f"{each.alarmed} of {each.images}",
            f"{first.count_found(each.point.threshold)} of {froc.targets}",
        )
        for each in measured
    )
    header = (
        "operating point",
        "false findings per normal image: promised",
        "measured",
        "normal images with any: promised",
        "measured",
        "lesions found",
    )
    guarantee = "" if point is None else f"At the default threshold: {describe_guarantee(point.point)} "
    images = count_words(froc.images, "normal image")
    said = (
        f"{guarantee}The promise rests on normal images alone and holds on average over the patients that happened to "
        "set the threshold, for new patients imaged in the same way; another scanner, another kind of image or "
        "patients who were learned from void it. It says nothing of how many lesions are found: that is measured, on "
        f"{count_words(froc.targets, 'planted lesion')}, and on phantoms means little."
    )
    caption = f"What was promised, and what {images} of other patients gave [95 % interval over patients]."
    return Section("How often it is wrong, and what is guaranteed", (said,), (Table(caption, header, rows),))


def _tell_comparison(result: DemoResult) -> Section:
    compared = result.compared
    curves = {NAMES[each.name]: [each.outcomes] for each in compared}
    figure = plot_froc(curves, summaries={NAMES[each.name]: each.froc for each in compared})
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            NAMES[each.name],
            with_interval(each.found),
            "\u2013" if each.difference is None else _describe_difference(each.difference),
            with_interval(each.summary.images[BY_LABEL].auroc),
        )
        for each in compared
    )
    header = (
        "detector",
        "share of lesions found at 1 false finding per normal image",
        "the default finds more by",
        "images with a lesion told from others (AUROC)",
    )
    epochs = result.meta["config"]["epochs"]
    said = (
        "All three learned from the same normal images, set their thresholds on the same others, and met the same "
        "test images; curves further up and to the left are better. The paper scores a patch by what its network "
        "fails to reconstruct. The filter looks for bright spots and learns nothing; planted specks are bright spots, "
        "so that on phantoms it does well, and what does not beat it has shown nothing here. On real mammograms the "
        f"default is ahead of it (docs/results/bench.md). The paper's network was trained for {epochs} of its 500 "
        "epochs; it is rerun as published, on real "
        "mammograms, by unary reproduce wei2018."
    )
    words = "Lesions found against false findings per normal image, by detector"
    return Section(
        "Beside the paper's method, and beside no learning",
        (said,),
        (Table("The same images for all [95 % interval over patients].", header, rows),),
        (Picture(figure_png(figure), words, words),),
    )


def _describe_difference(found: Estimate) -> str:
    between = "" if found.low is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
    return f"{found.value:+.2f}{between}"


def _tell_how() -> Section:
    return Section(
        "With your own images",
        (
            "After make demo, the command unary is in the environment that it made. Take it up in the folder of the "
            "clone, once for each terminal; on Windows it is .venv\\Scripts\\activate:",
        ),
        commands=(
            ". .venv/bin/activate",
            "# find: images lie in MY_IMAGES/normal/ and, where there are any, MY_IMAGES/abnormal/\n"
            "unary manifest folder MY_IMAGES --out all.csv\n"
            "unary fit all.csv --out model\n"
            "unary detect model NEW_IMAGES --out results\n"
            "# then open results/report.html",
            "# measure how often that is right\n"
            "unary split all.csv --train train.csv --test test.csv\n"
            "unary fit train.csv --out model-to-test\n"
            "unary evaluate model-to-test test.csv --out evaluation\n"
            "# then open evaluation/report.html",
        ),
        terms=(
            (
                "What to bring",
                "DICOM, PNG, TIFF, PGM or JPEG. Some twenty normal patients are a start, a hundred give useful "
                "guarantees. All views of a patient must be told to belong together: by folder, or in the manifest.",
            ),
            (
                "What is learned",
                "The normal images alone; those with lesions serve to measure, of patients who were not learned from.",
            ),
            (
                "Other images than mammograms",
                "unary fit --profile general takes any images of one kind.",
            ),
        ),
    )


def _tell_small(result: DemoResult, seconds: float) -> Section:
    config = result.meta["config"]
    phantom = config["phantom"]
    return Section(
        "What is small here",
        (
            f"It took {seconds:.0f} s. Learned from were {config['learned']} images, where real use begins at some "
            f"twenty patients; {config['thresholds']} set the thresholds; {config['normal']} normal and "
            f"{config['abnormal']} with lesions were tried, of {phantom['rows']} x {phantom['cols']} pixels of "
            f"{phantom['spacing_mm']:g} mm, where a mammogram has ten times as many. The default's network was "
            f"trained for {config['steps']} of 1,000 steps. Phantoms are drawings, easier than tissue: on real "
            "mammograms figures are lower, and are in docs/results.md.",
        ),
    )
