"""FROC against loops that are written out, its invariances, and its intervals by simulation."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from unary.evaluation.froc import (
    FALSE_RATES,
    FalseOn,
    ImageOutcome,
    compare_froc,
    froc_curve,
    sensitivity_at_rates,
    summarise_froc,
)
from unary.evaluation.roc import EvaluationError, OneClassError, ScoreError

RATES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 100.0)
HEALTHY = ImageOutcome("n", True, True, (3.0, 1.0))
ILL = ImageOutcome("a", False, True, (2.5,), (4.0, 2.0, None))

scores = st.integers(-4, 4).map(float)
images = st.one_of(
    st.builds(
        ImageOutcome, st.sampled_from("abcdef"), st.just(True), st.booleans(), st.lists(scores, max_size=4).map(tuple)
    ),
    st.builds(
        ImageOutcome,
        st.sampled_from("abcdef"),
        st.just(False),
        st.booleans(),
        st.lists(scores, max_size=4).map(tuple),
        st.lists(st.one_of(st.none(), scores), max_size=3).map(tuple),
    ),
)
cases = st.lists(images, max_size=12).map(lambda drawn: [HEALTHY, ILL, *drawn])


def draw_outcomes(
    rng: np.random.Generator,
    *,
    ill: int = 20,
    healthy: int = 30,
    views: int = 4,
    found: float = 0.8,
    shift: float = 1.5,
) -> list[ImageOutcome]:
    """Two lesions an image; half of the variance of the scores is the patient's."""
    outcomes = []
    for patient in range(ill + healthy):
        effect = rng.normal()
        for _ in range(views):
            false = tuple((effect + rng.normal(size=rng.poisson(3.0))).tolist())
            targets: tuple[float | None, ...] = ()
            if patient < ill:
                hit = rng.random(2) < found
                values = (effect + shift + rng.normal(size=2)).tolist()
                targets = tuple(value if kept else None for value, kept in zip(values, hit, strict=True))
            outcomes.append(ImageOutcome(f"p{patient}", patient >= ill, True, false, targets))
    return outcomes


def count_everything(outcomes: list[ImageOutcome], threshold: float, on: FalseOn) -> tuple[float, float]:
    """Sensitivity and false findings per image at a threshold, as a reader would count them."""
    false, counted, found, targets = 0, 0, 0, 0
    for outcome in outcomes:
        if outcome.complete and (outcome.normal or on == "complete"):
            counted += 1
            for score in outcome.false_scores:
                if score >= threshold:
                    false += 1
        for best in outcome.target_scores:
            targets += 1
            if best is not None and best >= threshold:
                found += 1
    return found / targets, false / counted


@pytest.mark.parametrize("on", ["normal", "complete"])
@settings(max_examples=150, deadline=None)
@given(cases)
def test_curve_and_sensitivities_equal_a_brute_force_loop(on: FalseOn, outcomes: list[ImageOutcome]) -> None:
    thresholds = [np.inf, *np.arange(-4.5, 5.0, 0.5)]
    counted = [count_everything(outcomes, threshold, on) for threshold in thresholds]
    for rate, found in zip(RATES, sensitivity_at_rates(outcomes, rates=RATES, on=on), strict=True):
        assert found == pytest.approx(max(sensitivity for sensitivity, false in counted if false <= rate + 1e-9))
    false_rates, sensitivities, points = froc_curve(outcomes, on=on)
    assert (false_rates[0], sensitivities[0], points[0]) == (0, 0, np.inf)
    assert (np.diff(points) < 0).all()
    for false_rate, sensitivity, threshold in zip(false_rates, sensitivities, points, strict=True):
        assert (sensitivity, false_rate) == pytest.approx(count_everything(outcomes, threshold, on))


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from(["cube", "exp", "shift", "scale"]))
def test_nothing_changes_under_an_increasing_map(outcomes: list[ImageOutcome], which: str) -> None:
    change = {
        "cube": lambda x: x**3,
        "exp": lambda x: float(np.exp(x)),
        "shift": lambda x: x - 1000.0,
        "scale": lambda x: x * 1e-9,
    }[which]
    mapped = [
        replace(
            outcome,
            false_scores=tuple(change(score) for score in outcome.false_scores),
            target_scores=tuple(None if score is None else change(score) for score in outcome.target_scores),
        )
        for outcome in outcomes
    ]
    for on in ("normal", "complete"):
        for own, other in zip(froc_curve(outcomes, on=on)[:2], froc_curve(mapped, on=on)[:2], strict=True):
            np.testing.assert_array_equal(own, other)
        results = [
            summarise_froc([each], rng=np.random.default_rng(0), on=on, resamples=30) for each in (outcomes, mapped)
        ]
        assert results[0] == results[1]


def test_the_order_of_images_and_findings_does_not_matter() -> None:
    outcomes = draw_outcomes(np.random.default_rng(0))
    turned = [
        replace(outcome, false_scores=outcome.false_scores[::-1], target_scores=outcome.target_scores[::-1])
        for outcome in outcomes[::-1]
    ]
    one, other = (summarise_froc([each], rng=np.random.default_rng(1)) for each in (outcomes, turned))
    assert one == other


def test_ties_never_gain() -> None:
    constant = [ImageOutcome("n", True, True, (1.0, 1.0)), ImageOutcome("a", False, True, (), (1.0, 1.0))]
    assert sensitivity_at_rates(constant, rates=[0, 1, 1.99, 2]).tolist() == [0, 0, 0, 1]
    false_rates, sensitivities, _ = froc_curve(constant)
    assert (false_rates.tolist(), sensitivities.tolist()) == ([0, 2], [0, 1])


def test_rates_do_not_trip_over_decimal_fractions() -> None:
    """0.1 * 30 is 3.0000000000000004 in binary but 0.7 * 30 is 20.999999999999996; 21 findings are meant."""
    healthy = [ImageOutcome(f"n{place}", True, True, (float(place),)) for place in range(30)]
    ill = ImageOutcome("a", False, True, (), tuple(place + 0.5 for place in range(-1, 30)))
    allowed = [round((found * 31) - 1) for found in sensitivity_at_rates([*healthy, ill], rates=[0, 0.1, 0.7])]
    assert allowed == [0, 3, 21]


def test_a_missed_lesion_is_missed_however_low_the_scores_lie() -> None:
    for shift in (-100.0, 0.0, 100.0):
        healthy = ImageOutcome("n", True, True, (shift,))
        ill = ImageOutcome("a", False, True, (), (shift + 1, None))
        assert sensitivity_at_rates([healthy, ill], rates=[0, 1e6]).tolist() == [0.5, 0.5]


def test_partly_annotated_images_count_lesions_but_no_false_findings() -> None:
    partial = ImageOutcome("b", False, False, (9.0,) * 50, (5.0,))
    unsure = ImageOutcome("c", True, False, (9.0,) * 50)
    base = [HEALTHY, ILL, ImageOutcome("b", False, False, (), (5.0,))]
    for on in ("normal", "complete"):
        expected = sensitivity_at_rates(base, rates=RATES, on=on)
        np.testing.assert_array_equal(
            sensitivity_at_rates([HEALTHY, ILL, partial, unsure], rates=RATES, on=on), expected
        )
    summary = summarise_froc([[HEALTHY, ILL, partial, unsure]], rng=np.random.default_rng(0))
    assert (summary.targets, summary.images, summary.target_patients, summary.image_patients) == (4, 1, 2, 1)


def test_false_findings_of_complete_abnormal_images_count_when_asked() -> None:
    assert sensitivity_at_rates([HEALTHY, ILL], rates=[1.0]).tolist() == [
        2 / 3
    ]  # 3.0 may be false; 2.0 scores above 1.0
    assert sensitivity_at_rates([HEALTHY, ILL], rates=[0.5, 1.0], on="complete").tolist() == [1 / 3, 2 / 3]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(OneClassError, match="no lesion to find in 1 images"):
        sensitivity_at_rates([HEALTHY])
    with pytest.raises(OneClassError, match="known to be normal"):
        froc_curve([ILL])
    with pytest.raises(OneClassError, match="annotated completely"):
        froc_curve([replace(ILL, complete=False)], on="complete")
    with pytest.raises(OneClassError):
        sensitivity_at_rates([])
    with pytest.raises(EvaluationError, match="no run"):
        summarise_froc([], rng=np.random.default_rng(0))
    with pytest.raises(OneClassError):
        summarise_froc([[HEALTHY, ILL], [HEALTHY]], rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="'typical'"):
        froc_curve([HEALTHY, ILL], on="typical")  # type: ignore[arg-type]


@pytest.mark.parametrize("rates", [[-1.0], [np.nan], [], 1.0])
def test_nonsense_rates_are_refused(rates: object) -> None:
    with pytest.raises(ValueError, match="none negative"):
        sensitivity_at_rates([HEALTHY, ILL], rates=rates)  # type: ignore[arg-type]


def test_outcomes_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(EvaluationError, match="normal image has no lesions"):
        ImageOutcome("n", True, True, (), (None,))
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ScoreError, match="a missed lesion is None"):
            ImageOutcome("n", False, True, (), (1.0, value))
        with pytest.raises(ScoreError):
            ImageOutcome("n", True, True, (value,))
    assert "secret" not in repr(ImageOutcome("secret", True, True))


def test_no_findings_at_all_find_nothing() -> None:
    silent = [ImageOutcome("n", True, True), ImageOutcome("a", False, True, (), (None, None))]
    assert sensitivity_at_rates(silent).tolist() == [0, 0, 0, 0]
    assert [each.tolist() for each in froc_curve(silent)] == [[0], [0], [np.inf]]


def test_interval_equals_a_resampling_written_out() -> None:
    """Same estimand, naive code: draw patients by kind, gather copies of their images, count."""
    outcomes = draw_outcomes(np.random.default_rng(3), ill=12, healthy=18, views=3)
    outcomes += [ImageOutcome(f"p{patient}", True, True, (0.3 * patient,)) for patient in range(5)]  # of both kinds
    kinds: dict[tuple[bool, bool], list[str]] = {}
    by_patient: dict[str, list[ImageOutcome]] = {}
    for outcome in outcomes:
        by_patient.setdefault(outcome.patient, []).append(outcome)
    for patient, own in by_patient.items():
        key = any(outcome.target_scores for outcome in own), any(outcome.normal for outcome in own)
        kinds.setdefault(key, []).append(patient)
    assert len(kinds) == 3
    rng, values = np.random.default_rng(5), []
    for _ in range(1500):
        drawn = [name for members in kinds.values() for name in rng.choice(members, len(members))]
        values.append(sensitivity_at_rates([outcome for name in drawn for outcome in by_patient[name]]))
    summary = summarise_froc([outcomes], rng=np.random.default_rng(6), resamples=4000)
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    assert [estimate.low for estimate in summary.sensitivities] == pytest.approx(low, abs=0.025)
    assert [estimate.high for estimate in summary.sensitivities] == pytest.approx(high, abs=0.025)
    assert [estimate.value for estimate in summary.sensitivities] == sensitivity_at_rates(outcomes).tolist()
    assert summary.mean.value == pytest.approx(sensitivity_at_rates(outcomes).mean())
    means = np.percentile(np.mean(values, axis=1), [2.5, 97.5])
    assert (summary.mean.low, summary.mean.high) == pytest.approx(tuple(means), abs=0.02)


def test_intervals_cover_the_truth() -> None:
    """The expected sensitivity at one false finding per image, known from the distributions.

    False findings: three per image on average, N(0, 2) over patients; lesions N(1.5, 2), found in four of five cases.
    """
    threshold = norm.isf(1 / 3, scale=np.sqrt(2))
    target = 0.8 * norm.sf(threshold, loc=1.5, scale=np.sqrt(2))
    covered, rounds = 0, 200
    for seed in range(rounds):
        outcomes = draw_outcomes(np.random.default_rng(seed), ill=40, healthy=60, views=2)
        summary = summarise_froc([outcomes], rng=np.random.default_rng(seed), rates=[1.0], resamples=300)
        (estimate,) = summary.sensitivities
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= target <= estimate.high
    assert 0.89 <= covered / rounds <= 0.985


def test_intervals_over_images_instead_of_patients_would_be_too_narrow() -> None:
    outcomes = draw_outcomes(np.random.default_rng(0), ill=40, healthy=60, views=8)
    alone = [replace(outcome, patient=str(place)) for place, outcome in enumerate(outcomes)]
    widths = []
    for each in (outcomes, alone):
        mean = summarise_froc([each], rng=np.random.default_rng(1)).mean
        assert mean.low is not None
        assert mean.high is not None
        widths.append(mean.high - mean.low)
    assert widths[0] > 1.5 * widths[1]


def test_runs_average_and_copies_change_nothing() -> None:
    runs = [draw_outcomes(np.random.default_rng(seed)) for seed in range(3)]
    together = summarise_froc(runs, rng=np.random.default_rng(9))
    plain = np.array([sensitivity_at_rates(run) for run in runs])
    assert [estimate.value for estimate in together.sensitivities] == pytest.approx(plain.mean(axis=0))
    assert together.targets == 3 * 20 * 4 * 2
    assert together.target_patients == 20
    alone = summarise_froc(runs[:1], rng=np.random.default_rng(9))
    copies = summarise_froc([runs[0]] * 4, rng=np.random.default_rng(9))
    for one, other in zip(alone.sensitivities, copies.sensitivities, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_runs_are_never_pooled() -> None:
    """Two folds whose scores share no unit: each finds everything with a threshold of its own."""
    folds = [
        [ImageOutcome("n", True, True, (unit,)), ImageOutcome("a", False, True, (), (2 * unit,))] for unit in (1.0, 1e6)
    ]
    assert summarise_froc(folds, rng=np.random.default_rng(0), rates=[0.0]).sensitivities[0].value == 1.0
    assert sensitivity_at_rates(folds[0] + folds[1], rates=[0.0]).tolist() == [0.5]


def test_folds_with_other_patients_survive_resamples_that_empty_them() -> None:
    rng = np.random.default_rng(0)
    folds = []
    for fold in range(4):
        ill = [ImageOutcome(f"a{place}", False, True, (), (float(rng.normal(1)),)) for place in range(6)]
        healthy = [ImageOutcome(f"n{2 * fold + place}", True, True, tuple(rng.normal(size=3))) for place in range(2)]
        folds.append(ill + healthy)
    mean = summarise_froc(folds, rng=np.random.default_rng(1)).mean
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low < mean.value < mean.high


def test_too_few_patients_have_no_interval() -> None:
    summary = summarise_froc([[HEALTHY, ILL]], rng=np.random.default_rng(0), rates=[1.0])
    assert (summary.mean.value, summary.mean.low, summary.mean.high) == (2 / 3, None, None)
    with pytest.raises(EvaluationError, match="at least two patients"):
        compare_froc([[HEALTHY, ILL]], [[HEALTHY, ILL]], rng=np.random.default_rng(0))


def test_patients_that_take_no_part_change_nothing() -> None:
    outcomes = draw_outcomes(np.random.default_rng(2))
    idle = [ImageOutcome(f"idle{place}", False, False, (99.0,)) for place in range(20)]
    one, other = (summarise_froc([each], rng=np.random.default_rng(3)) for each in (outcomes, [*idle, *outcomes]))
    assert one == other


def test_paired_difference_is_sharper_than_unpaired_intervals() -> None:
    rng = np.random.default_rng(5)
    worse = draw_outcomes(rng, ill=40, healthy=40)
    better = [
        replace(outcome, target_scores=tuple(None if score is None else score + 0.5 for score in outcome.target_scores))
        for outcome in worse
    ]
    *differences, mean = compare_froc([better], [worse], rng=np.random.default_rng(0))
    assert len(differences) == len(FALSE_RATES)
    plain = sensitivity_at_rates(better) - sensitivity_at_rates(worse)
    assert [difference.value for difference in differences] == pytest.approx(plain)
    assert mean.value == pytest.approx(plain.mean())
    assert mean.low is not None
    assert mean.high is not None
    assert 0 < mean.low < mean.value < mean.high
    alone = summarise_froc([better], rng=np.random.default_rng(0)).mean
    assert alone.low is not None
    assert alone.high is not None
    assert mean.high - mean.low < (alone.high - alone.low) / 2
    turned = compare_froc([worse], [better], rng=np.random.default_rng(0))[-1]
    assert (turned.value, turned.low, turned.high) == pytest.approx((-mean.value, -mean.high, -mean.low))
    none = compare_froc([worse], [worse], rng=np.random.default_rng(0))[-1]
    assert (none.value, none.low, none.high) == (0, None, None)


def test_what_all_or_no_patients_show_is_no_certainty() -> None:
    normal = [ImageOutcome(f"n{place}", True, True, (1.0,)) for place in range(12)]
    for score, bounds in ((2.0, [0.025 ** (1 / 5), 1.0]), (None, [0.0, 1 - 0.025 ** (1 / 5)])):
        ill = [ImageOutcome(f"a{place}", False, True, (), (score, score)) for place in range(5)]
        found = summarise_froc([[*normal, *ill]], rng=np.random.default_rng(0), resamples=50)
        for estimate in (*found.sensitivities, found.mean):
            assert estimate.interval == pytest.approx(bounds)


def test_differences_refuse_other_images() -> None:
    outcomes = draw_outcomes(np.random.default_rng(0))
    for other in ([outcomes[::-1]], [outcomes[:-1]], [outcomes, outcomes]):
        with pytest.raises(EvaluationError, match="same images"):
            compare_froc([outcomes], other, rng=np.random.default_rng(0))


def test_two_thousand_resamples_of_a_large_test_set_are_quick() -> None:
    """Four hundred images with fifty findings each."""
    rng = np.random.default_rng(0)
    outcomes = [
        ImageOutcome(
            f"p{place // 4}",
            place >= 120,
            True,
            tuple(rng.normal(size=50).tolist()),
            tuple(rng.normal(1, size=3).tolist()) if place < 120 else (),
        )
        for place in range(400)
    ]
    start = time.process_time()
    summarise_froc([outcomes], rng=rng)
    assert time.process_time() - start < 4
