"""What `unary commission` writes: a report to be signed and filed, its figures as JSON, and tables."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from unary.datasets.simulated.plans import MASSES, LesionClass
from unary.evaluation.commissioning_plans import CommissionConfig
from unary.evaluation.commissioning_summary import (
    LEVEL,
    Commissioning,
    FalseAlarms,
    Sensitivity,
    describe_alarms,
    describe_readers_care,
)
from unary.evaluation.intervals import as_pair
from unary.files import replacing, write_csv
from unary.models.bundle import Model, describe_versions
from unary.models.calibration import describe_guarantee
from unary.models.card import describe_command
from unary.outputs.commissioning_figures import plot_insertions, plot_sensitivities, take_crops
from unary.outputs.figures import figure_png
from unary.outputs.report import Cell, Picture, Report, Section, Table, write_report
from unary.outputs.words import with_interval
from unary.records import NOTICE, ModelIdentity, count_words

FEW_PATIENTS = 10
JSON_FILE, HTML_FILE = "commissioning.json", "report.html"
_LINE = "_" * 40
_SIMULATED = (
    "Simulated lesions are drawings: they ask whether the model, on images of this hospital with their noise and blur, "
    "reports something of a stated size and contrast. They prove nothing about real lesions, and their sensitivities "
    "are none of disease."
)


def write_commissioning(
    made: Commissioning,
    model: Model,
    identity: ModelIdentity,
    out: Path,
    *,
    config: CommissionConfig,
    moment: datetime,
) -> tuple[str, ...]:
    """Write ``report.html``, ``commissioning.json`` and the tables; return the outcome as lines for a terminal.

    ``sensitivity.csv`` has a row for each lesion asked for and operating point, ``false_alarms.csv`` one for each
    operating point, ``lesions.csv`` one for each lesion inserted, ``images.csv`` one for each image of the manifest.
    No table names a patient.

    Parameters
    ----------
    config
        What was asked.
    moment
        When the test was made, with its time zone.
    """
    meta = _describe_run(made, model, identity, config, moment)
    _write_tables(made, out)
    document = {
        **meta,
        "false_alarms": [_document_alarms(each) for each in made.false_alarms],
        "sensitivity": [_document_sensitivity(each) for each in made.sensitivities],
    }
    with replacing(out / JSON_FILE) as partial:
        partial.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_report(_build_report(made, model, meta, seed=config.seed), out / HTML_FILE)
    lines = [describe_alarms(each) for each in made.false_alarms]
    return (*describe_readers_care(made), *lines, _say_found(made), _SIMULATED, str(out / HTML_FILE))


def _describe_run(
    made: Commissioning, model: Model, identity: ModelIdentity, config: CommissionConfig, moment: datetime
) -> dict[str, Any]:
    answers = made.answers
    seconds = [answer.seconds for answer in answers.answers]
    return {
        "notice": NOTICE,
        "command": describe_command(),
        "moment": moment.isoformat(),
        "unary": identity.version,
        "model_sha256": identity.sha256,
        "detector": identity.detector,
        "profile": model.profile.name,
        "images": {
            "used": len(answers.answers),
            "patients": made.patients,
            "not_usable": len(answers.failed),
            "out_of_domain": made.out_of_domain,
            "fitted_on_patients": made.seen,
            "calibrated_on_images": made.calibrated_on,
        },
        "seconds_per_image": float(np.median(seconds)) if seconds else None,
        "examinations_per_image": len(made.plans) + 1,
        "settings": dataclasses.asdict(config),
        "versions": describe_versions(),
    }


def _document_alarms(each: FalseAlarms) -> dict[str, Any]:
    return {
        "operating_point": dataclasses.asdict(each.point),
        "guarantee": describe_guarantee(each.point),
        **as_pair("share_of_images_with_a_finding", each.share),
        "images_with_a_finding": each.alarmed,
        **as_pair("findings_per_image", each.findings),
        "patients_alarming_by_one_image_each": each.drawn,
        "p_value": each.p_value,
        "verdict": each.verdict,
        "said": describe_alarms(each),
    }


def _document_sensitivity(each: Sensitivity) -> dict[str, Any]:
    known = {name: value for name, value in dataclasses.asdict(each).items() if name not in ("share", "point")}
    share = {"sensitivity": None, "sensitivity_ci95": None}
    if each.share is not None:
        share = as_pair("sensitivity", each.share)
    return {"operating_point": each.point, **known, **share}


def _write_tables(made: Commissioning, out: Path) -> None:
    columns = (
        "kind size_mm contrast operating_point lesions patients no_room found sensitivity low95 high95 by_chance "
        "median_added"
    )
    rows: list[list[object]] = []
    for each in made.sensitivities:
        plan, share = each.plan, each.share
        values = (None, None, None) if share is None else (share.value, share.low, share.high)
        counts = (each.lesions, each.patients, each.no_room, each.found)
        asked = (plan.kind, plan.size_mm, plan.contrast, each.point)
        rows.append([*asked, *counts, *values, each.by_chance, each.added])
    write_csv(out / "sensitivity.csv", columns.split(), rows)
    columns = (
        "operating_point guaranteed_share images patients images_with_a_finding share low95 high95 findings_per_image "
        "findings_low95 findings_high95 asked_rate rate_guaranteed patients_alarming p_value verdict"
    )
    rows = []
    for found in made.false_alarms:
        point, share, number = found.point, found.share, found.findings
        first = (point.name, point.false_alarm_rate, len(made.answers.answers), made.patients)
        values = (share.value, share.low, share.high)
        numbers = (number.value, number.low, number.high, point.rate, point.guaranteed)
        rows.append([*first, found.alarmed, *values, *numbers, found.drawn, found.p_value, found.verdict])
    write_csv(out / "false_alarms.csv", columns.split(), rows)
    columns = "image_id kind size_mm contrast row col score by_chance_score added"
    rows = []
    for answer in made.answers.answers:
        for one in answer.insertions:
            plan, centre = made.plans[one.plan], one.centre or (None, None)
            what = (plan.kind, plan.size_mm, plan.contrast)
            rows.append([answer.image_id, *what, *centre, one.score, one.by_chance, one.added])
    write_csv(out / "lesions.csv", columns.split(), rows)
    rows = [
        [answer.image_id, "used", "", answer.score, len(answer.findings), "; ".join(answer.out_of_domain)]
        for answer in made.answers.answers
    ]
    rows += [[name, reason, detail, None, None, None] for name, reason, detail in made.answers.failed]
    columns = "image_id state detail image_score findings_at_most out_of_domain"
    write_csv(out / "images.csv", columns.split(), rows)


def _build_report(made: Commissioning, model: Model, meta: Mapping[str, Any], *, seed: int) -> Report:
    images, patients = count_words(len(made.answers.answers), "normal image"), count_words(made.patients, "patient")
    few = (f"{patients} are few: intervals are wide, and hold what can be said of patients like these.",) * (
        made.patients < FEW_PATIENTS
    )
    counted = Section(
        "What was asked",
        (
            f"{images} of {patients}, each examined {meta['examinations_per_image']} times: as it is, and with one "
            "lesion at a time. Lesions are blurred as the image is and added to it, so that its own noise stays on "
            "them. Their places depend on the seed and on the image's name alone.",
            _SIMULATED,
            "The contrast of calcifications is the peak in units of the fine noise near it (root mean square on blocks "
            "of about 0.14 mm), that of masses the mean of the body in units of the spread of this breast's regional "
            "brightness; what that is in the images' own values stands in the tables.",
            *describe_readers_care(made),
            *few,
        ),
        (_table_images(made),),
    )
    return Report(
        title=f"Commissioning test of {model.name}",
        lead=f"{_lead_alarms(made)} {_say_found(made)}",
        banners=(*describe_readers_care(made), "Lesions are simulated; the images are of patients of this hospital."),
        notices=tuple(f"{name}: {reason}: {detail}" for name, reason, detail in made.answers.failed),
        sections=(
            counted,
            _section_alarms(made),
            *_sections_found(made, model, seed=seed),
            _section_signature(made, meta),
        ),
        provenance=meta,
    )


def _table_images(made: Commissioning) -> Table:
    reasons = sorted({reason for _, reason, _ in made.answers.failed})
    counts = [(reason, sum(one == reason for _, one, _ in made.answers.failed)) for reason in reasons]
    rows: list[tuple[Cell, ...]] = [
        ("used", len(made.answers.answers)),
        ("of these, unlike those that the model has learned from", made.out_of_domain),
        ("of these, scoring as an image of the calibration", made.calibrated_on),
        *((f"not usable: {reason}", count) for reason, count in counts),
    ]
    return Table("Normal images.", ("images", "number"), tuple(rows))


def _lead_alarms(made: Commissioning) -> str:
    exceeded = [each.point.name for each in made.false_alarms if each.verdict == "exceeded"]
    if exceeded:
        return f"MORE FALSE ALARMS THAN GUARANTEED at operating point {', '.join(exceeded)}."
    if any(each.verdict == "kept" for each in made.false_alarms):
        return "Nothing speaks against what the operating points guarantee of false alarms."
    if any(each.verdict == "not judged" for each in made.false_alarms):
        return "False alarms are not judged: patients are known to the model."
    return "The operating points guarantee nothing of false alarms, so that there is nothing to hold them against."


def _say_found(made: Commissioning) -> str:
    """One sentence on what is found at one false finding per normal image, or the nearest point to it."""
    point = _choose_point(made)
    told = []
    for kind, rows in _group(made, point):
        shares = [each.share.value for each in rows if each.share is not None]
        if shares:
            told.append(f"{kind.replace('_', ' ')} {min(shares):.0%} to {max(shares):.0%}")
    if not told:
        return "No image had room for any of the simulated lesions."
    return f"At operating point {point}, found of the simulated lesions, by size and contrast: {'; '.join(told)}."


def _choose_point(made: Commissioning) -> str:
    names = [each.point.name for each in made.false_alarms]
    return "1" if "1" in names else names[0]


def _group(made: Commissioning, point: str) -> Iterator[tuple[LesionClass, list[Sensitivity]]]:
    rows = [each for each in made.sensitivities if each.point == point]
    for kind, own in itertools.groupby(rows, key=lambda each: each.plan.kind):
        yield kind, list(own)


def _section_alarms(made: Commissioning) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for each in made.false_alarms:
        point = each.point
        bound = None if point.false_alarm_rate is None or point.false_alarm_rate >= 1 else point.false_alarm_rate
        asked = f"{point.rate:g}, {'guaranteed' if point.guaranteed else 'estimated'}"
        alarming = f"{each.drawn} of {made.patients}"
        measured = (bound, with_interval(each.share), alarming, each.p_value, each.verdict)
        rows.append((point.name, *measured, asked, with_interval(each.findings)))
    guaranteed = sum(each.p_value is not None for each in made.false_alarms)
    header = (
        "operating point",
        "images with a finding, at most (guaranteed)",
        "measured, 95 % interval",
        "patients alarming, one image each",
        "p",
        "verdict",
        "findings per image, at most",
        "measured, 95 % interval",
    )
    return Section(
        "False alarms, against what is guaranteed",
        (
            "Measured on the images as they are. As in the guarantee, every patient counts as one, whatever the number "
            "of images.",
            "The exact statement: a threshold that k - 1 of n calibration patients exceed guarantees that at most "
            "k / (n + 1) of normal images alarm, on average over calibrations. If the patients here are like those, "
            "the number who alarm by one image each is beta-binomial with k and n + 1 - k; p is how often it is as "
            "large as here or larger. That the calibration had few patients, too, is taken into account. A verdict "
            f"'exceeded' means p at or below {LEVEL:g} / {max(guaranteed, 1)}, so that a model with which nothing is "
            f"wrong gets one at any point with a chance of at most {LEVEL:.0%}. 'Kept' means no more than that nothing "
            "speaks against the guarantee: with few patients little can.",
            *(describe_alarms(each) for each in made.false_alarms),
        ),
        (Table("False alarms by operating point.", header, tuple(rows)),),
    )


def _sections_found(made: Commissioning, model: Model, *, seed: int) -> Iterator[Section]:
    points = [each.point.name for each in made.false_alarms]
    chosen = _choose_point(made)
    for kind, rows in _group(made, chosen):
        crops = take_crops(made, model, kind, seed=seed)
        unit = "spread of regional brightness" if kind in MASSES else "local noise"
        pictures = [
            Picture(
                figure_png(plot_sensitivities(rows, point=chosen)),
                f"Share found at operating point {chosen} by contrast, in units of the {unit}, for each size, with "
                "95 % intervals over patients; dotted, what chance finds at the same places",
                "Sensitivity by contrast, a line for each size",
            )
        ]
        if crops:
            pictures.append(
                Picture(
                    figure_png(plot_insertions(crops)),
                    "What was asked: the same place of an image as it is and with the lesion, in one grey window",
                    "Crops of images without and with the lesion, by size and contrast",
                )
            )
        yield Section(
            f"Found: {kind.replace('_', ' ')}",
            (_describe_kind(rows),),
            (_table_found(made, kind, points),),
            tuple(pictures),
        )


def _describe_kind(rows: Sequence[Sensitivity]) -> str:
    plan = rows[0].plan
    if plan.count > 1:
        return (
            f"{plan.count} specks within {plan.spread_mm:g} mm, of the stated size each; single ones vary around it, "
            "larger ones being brighter. A cluster is found if a finding hits it as a whole."
        )
    return "One of the stated size in an image."


def _table_found(made: Commissioning, kind: str, points: Sequence[str]) -> Table:
    own = [each for each in made.sensitivities if each.plan.kind == kind]
    chosen = _choose_point(made)
    rows: list[tuple[Cell, ...]] = []
    for _, group in itertools.groupby(own, key=lambda each: each.plan):
        by_point = {each.point: each for each in group}
        first = by_point[chosen]
        shares = [None if (share := by_point[name].share) is None else with_interval(share) for name in points]
        added = None if first.added is None else float(f"{first.added:.3g}")
        counts: tuple[Cell, ...] = (first.lesions, first.patients, first.no_room)
        rows.append((f"{first.plan.size_mm:g}", f"{first.plan.contrast:g}", added, *counts, *shares, first.by_chance))
    first_columns = ("size, mm", "contrast", "highest value added, median", "lesions", "patients", "no room")
    header = (*first_columns, *(f"found at {name}" for name in points), f"by chance at {chosen}")
    return Table(
        "Share found, with 95 % intervals over patients, at each operating point (false findings per normal image).",
        header,
        tuple(rows),
    )


def _section_signature(made: Commissioning, meta: Mapping[str, Any]) -> Section:
    rows: list[tuple[Cell, ...]] = [
        ("Model (SHA-256 of model.json)", str(meta["model_sha256"])),
        ("Detector, profile", f"{meta['detector']}, {meta['profile']}"),
        ("unary", str(meta["unary"])),
        ("Date of the test", str(meta["moment"])),
        ("Normal images, patients", f"{len(made.answers.answers)}, {made.patients}"),
        ("Hospital, department", _LINE),
        ("Scanner(s)", _LINE),
        ("Operating point to be used", _LINE),
        ("Accepted / not accepted, remarks", _LINE),
        ("Name, function", _LINE),
        ("Date, signature", _LINE),
    ]
    return Section("To be signed", (), (Table("Of this test.", ("what", "entry"), tuple(rows)),))
