"""What `unary monitor` writes: a drift report, its figures as JSON, and tables of months and of signals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unary.evaluation.intervals import as_pair
from unary.evaluation.monitoring import FACTS, QUANTILES, GuaranteeTest, Monitoring, MonthFigures, Scanner
from unary.evaluation.monitoring_limits import ALARM_RATE, FOLLOWED
from unary.files import replacing, write_csv
from unary.models.bundle import describe_versions
from unary.outputs.figures import figure_png
from unary.outputs.monitoring_figures import plot_followed, plot_guarantee, plot_months
from unary.outputs.report import Cell, Picture, Report, Section, Table, write_report
from unary.outputs.words import with_interval
from unary.records import NOTICE, count_words

HTML_FILE, JSON_FILE, MONTHS_FILE, SIGNALS_FILE = "report.html", "monitoring.json", "months.csv", "signals.csv"
_TESTS = {"guarantee": "the guarantee", "change": "what was before", "limit": "limits set", "constancy": "baseline"}


def write_monitoring(monitoring: Monitoring, out: Path) -> tuple[str, ...]:
    """Write ``report.html``, ``monitoring.json``, ``months.csv`` and ``signals.csv``; return lines for a terminal.

    None of them names a patient, a study or a date; ``out`` is a folder, which is created.
    """
    with replacing(out / JSON_FILE) as partial:
        partial.write_text(json.dumps(_document(monitoring), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _write_tables(monitoring, out)
    write_report(_build_report(monitoring), out / HTML_FILE)
    lines = [
        f"{each.month}, scanner {each.scanner}, {name_value(each.what)}: {each.said}" for each in monitoring.signals
    ]
    return (_say_lead(monitoring), *lines, *(f"note: {each}" for each in monitoring.notices), str(out / HTML_FILE))


def name_value(key: str) -> str:
    """Return what a followed value, or the rate of alarms, is called."""
    return FOLLOWED.get(key, "share of images with a finding" if key == ALARM_RATE else key)


def _document(monitoring: Monitoring) -> dict[str, Any]:
    return {
        "notice": NOTICE,
        "mode": "constancy" if monitoring.constancy else "clinic",
        "model": dict(monitoring.model),
        "operating_point": monitoring.operating_point,
        "limits": dataclasses.asdict(monitoring.limits),
        "signals": [dataclasses.asdict(each) for each in monitoring.signals],
        "scanners": [_document_scanner(each) for each in monitoring.scanners],
        "notices": list(monitoring.notices),
        "files_without_a_result": dict(monitoring.without_result),
        "versions": describe_versions(),
    }


def _document_scanner(scanner: Scanner) -> dict[str, Any]:
    test = scanner.guarantee
    return {
        "scanner": scanner.name,
        "described": scanner.described,
        "images": scanner.images,
        "studies": scanner.studies,
        "months": [_document_month(month) for month in scanner.months],
        "guarantee": None
        if test is None
        else {
            "guaranteed": test.bound,
            "tested": test.tested,
            "evidence": float(test.capital[-1]),
            "highest_evidence": float(test.capital.max()),
            "needed": test.needed,
        },
        "charts": {
            key: {
                "values": len(found.values),
                "limit": None if found.chart is None else found.chart.limit,
                "interval": found.interval,
            }
            for key, found in scanner.charts.items()
        },
        "changes": [dict(zip(("month", "what", "value"), each, strict=True)) for each in scanner.changes],
    }


def _document_month(month: MonthFigures) -> dict[str, Any]:
    scores = month.score_quantiles
    return {
        "month": month.month,
        "images": month.images,
        "studies": month.studies,
        **as_pair(ALARM_RATE, month.alarms),
        "image_score_quantiles": None if scores is None else dict(zip(map(str, QUANTILES), scores, strict=True)),
        "medians": dict(month.medians),
    }


def _write_tables(monitoring: Monitoring, out: Path) -> None:
    names = [f"score_q{round(100 * share)}" for share in QUANTILES]
    header = ["scanner", "month", "images", "studies", ALARM_RATE, "low95", "high95", *names]
    header += [f"median_{key}" for key in FOLLOWED]
    rows: list[list[object]] = []
    for scanner in monitoring.scanners:
        for month in scanner.months:
            alarms = month.alarms
            scores = month.score_quantiles or (None,) * len(QUANTILES)
            first = [scanner.name, month.month, month.images, month.studies, alarms.value, alarms.low, alarms.high]
            rows.append([*first, *scores, *(month.medians.get(key) for key in FOLLOWED)])
    write_csv(out / MONTHS_FILE, header, rows)
    signals = [[each.scanner, each.month, each.kind, each.what, each.said] for each in monitoring.signals]
    write_csv(out / SIGNALS_FILE, ["scanner", "month", "kind", "what", "said"], signals)


def _say_lead(monitoring: Monitoring) -> str:
    images = count_words(sum(scanner.images for scanner in monitoring.scanners), "image")
    seen = f"{images} of {count_words(len(monitoring.scanners), 'scanner')}"
    count = len(monitoring.signals)
    if not count:
        return f"Nothing to look at: {seen} were watched, and no test gave a signal."
    which = sorted({name_value(each.what) for each in monitoring.signals})
    return f"{count_words(count, 'signal')} to look at, in {seen}: {'; '.join(which)}."


def _build_report(monitoring: Monitoring) -> Report:
    constancy = monitoring.constancy
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (each.month, each.scanner, _TESTS[each.kind], name_value(each.what), each.said) for each in monitoring.signals
    )
    tables = (Table("Signals.", ("month", "scanner", "against", "what", "what was seen"), rows),) if rows else ()
    signals = Section("Signals", tuple(_explain(monitoring)), tables)
    without: tuple[tuple[Cell, ...], ...] = tuple(sorted(monitoring.without_result.items()))
    counted = (Table("Files without a result, by reason.", ("reason", "files"), without),) if without else ()
    point = monitoring.operating_point
    model = f"Model {str(monitoring.model.get('sha256', ''))[:12]}, unary {monitoring.model.get('version', 'unknown')}"
    told = (f"{model}, operating point {point['name'] if point else 'none'}.",)
    sections = [section for scanner in monitoring.scanners for section in _build_scanner(scanner, constancy=constancy)]
    return Report(
        title="Constancy of a phantom image" if constancy else "Drift report",
        lead=_say_lead(monitoring),
        sections=(signals, *sections, Section("What was read", told, counted)),
        provenance={
            "model": dict(monitoring.model),
            "operating_point": point or {},
            "limits": dataclasses.asdict(monitoring.limits),
            "versions": describe_versions(),
        },
        notices=monitoring.notices,
    )


def _explain(monitoring: Monitoring) -> Iterator[str]:
    limits = monitoring.limits
    if monitoring.constancy:
        yield (
            "One object, sent again and again. Control limits are those that a further value of a normal distribution "
            "leaves with a stated chance, given the baseline, however short: all values together give a false signal "
            f"in {limits.average_run_length:,.0f} images on average. That the values are normally distributed and "
            "independent is an assumption."
        )
        return
    yield (
        "A signal is a reason to look, not a verdict. Two tests are made of each scanner, study by study, and may be "
        "looked at as often as one likes."
    )
    prevalence = (
        f"With the stated prevalence of {limits.prevalence:g}, so many images may alarm rightly."
        if limits.prevalence is not None
        else "No prevalence is stated: every image is taken as normal, so that lesions rightly found count as alarms."
    )
    yield (
        "Against the guarantee: somebody bets, before each study, that its images alarm more often than the guarantee "
        "allows; while they do not, the stakes of 1 reach the line with a chance of at most "
        f"{limits.false_alarm:g}, however long the bets go on, on any scanner. The guarantee holds on average over "
        "calibrations; what is tested is the most that a calibration on so few patients may mean in the long run. "
        f"The guarantee is of normal images. {prevalence}"
    )
    yield (
        "Against what was before: where does each study lie among all before it? While nothing changes every place is "
        "as likely, and the sums (CUSUM, of all that is followed together) give a false signal once in "
        f"{limits.average_run_length:,.0f} studies on average. A slow season, another population or other operators "
        "are changes as well as a fault; after a change the new state becomes what was before."
    )


def _build_scanner(scanner: Scanner, *, constancy: bool) -> Iterator[Section]:
    head = f"Scanner {scanner.name}"
    studies = f"{scanner.studies:,} {'study' if scanner.studies == 1 else 'studies'}"
    counts = f"{count_words(scanner.images, 'image')}, {studies}"
    pictures = []
    paragraphs = [f"{scanner.described}: {counts}."]
    if not constancy:
        pictures.append(
            Picture(
                figure_png(plot_months(scanner.months, scanner.guarantee)),
                "Share of images with a finding by month, each study counting as one, with 95 % intervals over studies",
                "Alarm rate by month",
            )
        )
        if scanner.guarantee is None:
            paragraphs.append("The operating point guarantees nothing of alarms, so that there is no test against it.")
        else:
            paragraphs.append(_say_guarantee(scanner.guarantee))
            pictures.append(
                Picture(
                    figure_png(plot_guarantee(scanner.guarantee)),
                    "Evidence against the guarantee after each study",
                    "Capital of the bettor by study",
                )
            )
    for key, found in scanner.charts.items():
        what = "Images" if constancy else "Studies"
        caption = f"{what} in their order: {name_value(key)}"
        pictures.append(Picture(figure_png(plot_followed(found, name=name_value(key))), caption, f"Chart of {key}"))
    tables = [_table_months(scanner)]
    if scanner.changes:
        rows: tuple[tuple[Cell, ...], ...] = tuple((month, what, value) for month, what, value in scanner.changes)
        tables.append(Table("What the headers say anew.", ("month", "what", "value"), rows))
    else:
        paragraphs.append(f"In all months the headers say the same of {', '.join(FACTS)}.".replace("_", " "))
    yield Section(head, tuple(paragraphs), tuple(tables), tuple(pictures))


def _say_guarantee(test: GuaranteeTest) -> str:
    state = "BROKEN" if test.capital.max() >= test.needed else "not broken"
    return (
        f"Guarantee: {state}. At most {test.bound:.3g} of normal images are guaranteed to have a finding; "
        f"{test.tested:.3g} is tested. Evidence {test.capital[-1]:.3g}, at its highest {test.capital.max():.3g}; "
        f"{test.needed:.3g} is needed."
    )


def _table_months(scanner: Scanner) -> Table:
    known = [key for key in FOLLOWED if any(key in month.medians for month in scanner.months)]
    header = ["month", "images", "studies", "images with a finding", *(f"score, {share:.0%}" for share in QUANTILES)]
    rows: list[tuple[Cell, ...]] = []
    for month in scanner.months:
        scores: tuple[float | None, ...] = month.score_quantiles or (None,) * len(QUANTILES)
        medians = [month.medians.get(key) for key in known if key != "image_score"]
        rows.append((month.month, month.images, month.studies, with_interval(month.alarms), *scores, *medians))
    header += [key.replace("_", " ") for key in known if key != "image_score"]
    return Table("By month; medians but for counts and shares.", tuple(header), tuple(rows))
