"""What the results of a scanner say of it over time: by month, against the guarantee, against what was before.

The unit of every test is a study, whose images resemble each other. What is a study, a scanner and a month of an image
is told by `unary.clinic.monitoring`, which reads the results.

**Against the guarantee.** A normal image has a finding with a chance of at most the operating point's bound, on average
over calibrations; with one calibration on n patients the rate may lie above for ever
(`unary.evaluation.clustered.bound_long_run`). Half of the stated chance of a false alarm goes to that, half to the
bettor of `unary.evaluation.sequential.bet_against`, divided among scanners. Images that are not normal alarm rightly:
with a share q of them the bound b becomes b + q (1 - b).

**Against what was before.** A CUSUM of sequential ranks for each value that is followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unary.evaluation.clustered import bound_long_run, estimate_share
from unary.evaluation.intervals import Estimate
from unary.evaluation.monitoring_limits import ALARM_RATE, FOLLOWED, MonitorLimits
from unary.evaluation.sequential import Chart, bet_against, chart_ranks, predict_interval

FACTS = ("manufacturer", "model_name", "software", "intent", "processing", "spacing_mm")
QUANTILES = (0.1, 0.5, 0.9)
FEWEST = 20  # studies, before a chart of them is drawn

Kind = Literal["guarantee", "change", "limit", "constancy"]


@dataclass(frozen=True)
class Observation:
    """One image and what was found in it.

    Attributes
    ----------
    scanner, study
        Pseudonyms, or what stands in for them.
    month
        Such as ``"2026-03"``.
    order
        By which images of a month come one after another.
    alarmed
        Whether it has a finding.
    values
        By a name of `FOLLOWED`; what is unknown is absent.
    facts
        By a name of `FACTS`.
    """

    scanner: str
    study: str = field(repr=False)
    month: str
    order: tuple[str, str] = field(repr=False)
    alarmed: bool
    values: Mapping[str, float]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Signal:
    """Something to look at: on which scanner, in which month, by which test, of what, and a sentence."""

    scanner: str
    month: str
    kind: Kind
    what: str
    said: str


@dataclass(frozen=True)
class MonthFigures:
    """One month of a scanner: counts, the share of images with a finding, quantiles and medians of what is followed."""

    month: str
    images: int
    studies: int
    alarms: Estimate
    score_quantiles: tuple[float, ...] | None
    medians: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class GuaranteeTest:
    """The test of a scanner's alarms against the guarantee.

    Attributes
    ----------
    bound
        What is guaranteed: the share of normal images with a finding, on average over calibrations.
    tested
        What is tested: the long-run bound of this calibration, with the stated prevalence.
    capital
        Shape (studies,), of the bettor.
    needed
        The capital at which the guarantee is called broken.
    """

    bound: float
    tested: float
    capital: NDArray[np.float64]
    needed: float


@dataclass(frozen=True, eq=False)
class FollowedChart:
    """A chart of one value: the studies' (in constancy mode the images') values and months, and its verdicts.

    ``interval`` is that of the constancy mode, of the baseline; ``chart`` that of the clinic.
    """

    values: NDArray[np.float64]
    months: tuple[str, ...]
    chart: Chart | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Scanner:
    """What is known of one scanner: months in their order, tests, charts by name, and when facts changed."""

    name: str
    described: str
    images: int
    studies: int
    months: tuple[MonthFigures, ...]
    guarantee: GuaranteeTest | None
    charts: Mapping[str, FollowedChart]
    changes: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, eq=False)
class Monitoring:
    """All scanners of one model and operating point, signals in the order of months, and what must be known with them.

    ``without_result`` counts files without a result by their reasons.
    """

    model: Mapping[str, Any]
    operating_point: Mapping[str, Any] | None
    limits: MonitorLimits
    constancy: bool
    scanners: tuple[Scanner, ...]
    signals: tuple[Signal, ...]
    notices: tuple[str, ...]
    without_result: Mapping[str, int]


def watch(
    observations: Sequence[Observation],
    model: Mapping[str, Any],
    operating_point: Mapping[str, Any] | None,
    limits: MonitorLimits,
    *,
    constancy: bool = False,
    notices: Sequence[str] = (),
    without_result: Mapping[str, int] | None = None,
) -> Monitoring:
    """Return what the images of all scanners, of one model and operating point, say over time."""
    names = sorted({each.scanner for each in observations})
    scanners, signals, told = [], [], list(notices)
    for name in names:
        own = sorted((each for each in observations if each.scanner == name), key=lambda each: (each.month, each.order))
        scanner, found, remarks = _watch_scanner(own, operating_point, limits, constancy=constancy, among=len(names))
        scanners.append(scanner)
        signals += found
        told += remarks
    signals.sort(key=lambda each: (each.month, each.scanner))
    return Monitoring(
        dict(model),
        operating_point,
        limits,
        constancy,
        tuple(scanners),
        tuple(signals),
        tuple(told),
        dict(without_result or {}),
    )


def _watch_scanner(
    own: Sequence[Observation],
    point: Mapping[str, Any] | None,
    limits: MonitorLimits,
    *,
    constancy: bool,
    among: int,
) -> tuple[Scanner, list[Signal], list[str]]:
    name = own[0].scanner
    months = tuple(_figure_month(name, month, own) for month in sorted({each.month for each in own}))
    signals = _check_limits(name, months, own, limits, constancy=constancy)
    remarks: list[str] = []
    guarantee: GuaranteeTest | None = None
    if constancy:
        charts, found, remarks = _chart_constancy(name, own, limits)
    else:
        guarantee, found = _test_guarantee(own, point, limits, among)
        charts, others = _chart_values(own, limits)
        found += others
        if len(months) == 1:
            remarks.append(f"scanner {name}: one month alone, {months[0].month}; a slow drift cannot be seen in it")
    facts = own[-1].facts
    described = ", ".join(facts[key] for key in ("manufacturer", "model_name") if key in facts) or "not stated"
    studies = len({each.study for each in own})
    scanner = Scanner(name, described, len(own), studies, months, guarantee, charts, tuple(_find_changes(own)))
    return scanner, signals + found, remarks


def _figure_month(name: str, month: str, own: Sequence[Observation]) -> MonthFigures:
    found = [each for each in own if each.month == month]
    studies, codes = np.unique([each.study for each in found], return_inverse=True)
    sizes = np.bincount(codes)
    shares = np.bincount(codes, [each.alarmed for each in found]) / sizes
    values = {key: [each.values[key] for each in found if key in each.values] for key in FOLLOWED}
    scores = values["image_score"]
    return MonthFigures(
        month,
        len(found),
        len(studies),
        estimate_share(shares, np.ones(len(studies)), observations=len(found)),
        tuple(float(value) for value in np.quantile(scores, QUANTILES)) if scores else None,
        {key: float(np.median(each)) for key, each in values.items() if each},
    )


def _join_studies(own: Sequence[Observation]) -> list[list[Observation]]:
    """The images by study, in the order of each study's first image."""
    studies: dict[str, list[Observation]] = {}
    for each in own:
        studies.setdefault(each.study, []).append(each)
    return list(studies.values())


def _test_guarantee(
    own: Sequence[Observation], point: Mapping[str, Any] | None, limits: MonitorLimits, among: int
) -> tuple[GuaranteeTest | None, list[Signal]]:
    bound = None if point is None else point.get("false_alarm_rate")
    if point is None or bound is None or bound >= 1:
        return None, []
    studies = _join_studies(own)
    shares = [float(np.mean([each.alarmed for each in study])) for study in studies]
    long_run = bound_long_run(float(bound), int(point["patients"]), doubt=limits.false_alarm / 2)
    tested = long_run + (limits.prevalence or 0.0) * (1 - long_run)
    needed = 2 * among / limits.false_alarm
    capital = bet_against(shares, min(tested, 1.0))
    found = GuaranteeTest(float(bound), tested, capital, needed)
    crossed = np.flatnonzero(capital >= needed)
    if not len(crossed):
        return found, []
    month = studies[int(crossed[0])][-1].month
    said = (
        f"more images alarm than the guarantee allows ({np.mean(shares):.3g} of them up to now; {tested:.3g} is the "
        f"most in the long run). Chance of saying so wrongly, ever, on any scanner: {limits.false_alarm:g}"
    )
    if limits.prevalence is None:
        said += ". No prevalence is stated: images with lesions count against the guarantee"
    return found, [Signal(own[0].scanner, month, "guarantee", ALARM_RATE, said)]


def _chart_values(own: Sequence[Observation], limits: MonitorLimits) -> tuple[dict[str, FollowedChart], list[Signal]]:
    studies = _join_studies(own)
    series: dict[str, tuple[NDArray[np.float64], tuple[str, ...]]] = {}
    for key in FOLLOWED:
        known = [(study, [each.values[key] for each in study if key in each.values]) for study in studies]
        kept = [(study, float(np.mean(values))) for study, values in known if values]
        values = np.asarray([value for _, value in kept])
        if len(kept) >= FEWEST and np.ptp(values) > 0:
            series[key] = values, tuple(study[-1].month for study, _ in kept)
    charts: dict[str, FollowedChart] = {}
    signals: list[Signal] = []
    for number, (key, (values, months)) in enumerate(series.items()):
        chart = chart_ranks(values, run_length=len(series) * limits.average_run_length, seed=number)
        charts[key] = FollowedChart(values, months, chart)
        for place, side in chart.signals:
            before = float(np.median(values[: max(place - place // 4, 1)]))
            now = float(np.median(values[max(place - 9, 0) : place + 1]))
            said = f"{side} than before: about {now:.4g} in the last studies, {before:.4g} before"
            signals.append(Signal(own[0].scanner, months[place], "change", key, said))
    return charts, signals


def _chart_constancy(
    name: str, own: Sequence[Observation], limits: MonitorLimits
) -> tuple[dict[str, FollowedChart], list[Signal], list[str]]:
    if limits.baseline is None:
        return {}, [], [f"scanner {name}: no [baseline] is stated, and without one there are no control limits"]
    first, last = limits.baseline
    charts: dict[str, FollowedChart] = {}
    signals: list[Signal] = []
    remarks: list[str] = []
    kept = {key: [each for each in own if key in each.values] for key in FOLLOWED}
    used = [key for key, found in kept.items() if found]
    for key in used:
        values = np.asarray([each.values[key] for each in kept[key]])
        inside = [first <= each.month <= last for each in kept[key]]
        interval = predict_interval(values[inside].tolist(), 1 / (len(used) * limits.average_run_length))
        charts[key] = FollowedChart(values, tuple(each.month for each in kept[key]), None, interval)
        if interval is None:
            count = sum(inside)
            remarks.append(
                f"scanner {name}: {FOLLOWED[key]}: no control limits, for the baseline {first} to {last} has {count} "
                "image(s), or all alike; three that differ are needed"
            )
            continue
        for each, value in zip(kept[key], values.tolist(), strict=True):
            if each.month > last and not interval[0] <= value <= interval[1]:
                said = f"{value:.4g}, outside {interval[0]:.4g} to {interval[1]:.4g} of the baseline"
                signals.append(Signal(name, each.month, "constancy", key, said))
    return charts, signals, remarks


def _check_limits(
    name: str,
    months: Sequence[MonthFigures],
    own: Sequence[Observation],
    limits: MonitorLimits,
    *,
    constancy: bool,
) -> list[Signal]:
    found = []
    for key, (low, high) in limits.limits.items():
        words = f"the physicist's limits ({'' if low is None else f'low {low:g}'}{' ' * (low is not None)}"
        words += f"{'' if high is None else f'high {high:g}'})".replace(" )", ")")
        if constancy and key != ALARM_RATE:
            values = [(each.month, each.values[key], "") for each in own if key in each.values]
        elif key == ALARM_RATE:
            values = [(each.month, each.alarms.value, "of the month, ") for each in months]
        else:
            values = [
                (each.month, each.medians[key], "median of the month, ") for each in months if key in each.medians
            ]
        for month, value, of in values:
            if (low is not None and value < low) or (high is not None and value > high):
                found.append(Signal(name, month, "limit", key, f"{value:.4g}, {of}outside {words}"))
    return found


def _find_changes(own: Sequence[Observation]) -> list[tuple[str, str, str]]:
    """The month, the fact and the new value, whenever one appears that the scanner has not had before."""
    had: dict[str, set[str]] = {}
    found = []
    for each in own:
        for key in FACTS:
            value = each.facts.get(key, "not stated")
            if key in had and value not in had[key]:
                found.append((each.month, key, value))
            had.setdefault(key, set()).add(value)
    return found
