"""Curves, areas and intervals, each against a second opinion."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from unary.errors import UnaryError
from unary.evaluation.intervals import (
    FewPatientsError,
    Run,
    bound_extreme,
    difference_over_seeds,
    draw_patients,
    estimate_over_seeds,
    percentile_interval,
)
from unary.evaluation.roc import (
    EvaluationError,
    OneClassError,
    ScoreError,
    auroc,
    average_precision,
    rank_scores,
    roc_curve,
    sensitivity_at_specificity,
    weighted_aurocs,
    weighted_average_precisions,
    weighted_sensitivities,
)


def bound(scores, truth, *, patients, rng, resamples: int = 2000) -> tuple[float, float]:
    """The interval of the area under the curve of one run."""
    run = Run(np.asarray(scores), np.asarray(truth), np.asarray(patients))
    found = estimate_over_seeds([run], rng=rng, resamples=resamples)
    return found.low, found.high


def difference(first, second, *, positive, patients, rng):
    runs = [Run(np.asarray(scores), positive, patients) for scores in (first, second)]
    return difference_over_seeds(runs[:1], runs[1:], rng=rng)


def draw_case(seed: int, *, decimals: int, size: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (with ties when rounded), truth and weights."""
    rng = np.random.default_rng(seed)
    truth = rng.random(size) < 0.2
    truth[:2] = True, False
    scores = (rng.normal(size=size) + truth).round(decimals)
    return scores, truth, rng.integers(0, 4, size) + (np.arange(size) < 2)


def draw_clustered(rng: np.random.Generator, *, patients: int = 60, each: int = 20) -> Run:
    """A third of the patients have positives; half of a score's variance is the patient's."""
    who = np.repeat(np.arange(patients), each)
    truth = who < patients // 3
    effect = rng.normal(size=patients)[who]
    return Run(effect + rng.normal(size=who.size) + 1.5 * truth, truth, who)


@pytest.mark.parametrize("decimals", [0, 1, 12])
@pytest.mark.parametrize("seed", range(5))
def test_areas_equal_scikit_learn(seed: int, decimals: int) -> None:
    scores, truth, weights = draw_case(seed, decimals=decimals)
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    for given_weights in (weights, weights * 0.37):
        assert auroc(scores, truth, weights=given_weights) == pytest.approx(
            roc_auc_score(truth, scores, sample_weight=given_weights), abs=1e-12
        )
        assert average_precision(scores, truth, weights=given_weights) == pytest.approx(
            average_precision_score(truth, scores, sample_weight=given_weights), abs=1e-12
        )


@pytest.mark.parametrize("decimals", [0, 12])
def test_curve_equals_scikit_learn_and_holds_the_area(decimals: int) -> None:
    scores, truth, _ = draw_case(3, decimals=decimals)
    fpr, tpr, thresholds = roc_curve(scores, truth)
    for own, other in zip(
        (fpr, tpr, thresholds), sklearn_roc_curve(truth, scores, drop_intermediate=False), strict=True
    ):
        np.testing.assert_allclose(own, other)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auroc(scores, truth), abs=1e-12)
    for rate_false, rate_true, threshold in zip(fpr, tpr, thresholds, strict=True):
        assert rate_false == np.mean(scores[~truth] >= threshold)
        assert rate_true == np.mean(scores[truth] >= threshold)


def test_integer_weights_count_copies() -> None:
    scores, truth, weights = draw_case(8, decimals=1)
    copies = np.repeat(np.arange(len(scores)), weights)
    assert auroc(scores, truth, weights=weights) == pytest.approx(auroc(scores[copies], truth[copies]), abs=1e-12)
    assert average_precision(scores, truth, weights=weights) == pytest.approx(
        average_precision(scores[copies], truth[copies]), abs=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.booleans(), st.integers(0, 4)), min_size=4, max_size=30),
    st.sampled_from(["cube", "exp", "shift", "scale"]),
)
def test_nothing_changes_under_an_increasing_map(rows: list[tuple[int, bool, int]], which: str) -> None:
    rows = [*rows, (0, True, 0), (1, False, 1), (2, True, 1)]
    scores, truth, who = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores.astype(float)
    mapped = {"cube": scores**3, "exp": np.exp(scores), "shift": scores - 1e6, "scale": scores * 1e-9}[which]
    results = [
        (
            auroc(each, truth),
            average_precision(each, truth),
            *(sensitivity_at_specificity(each, truth, specificity=level) for level in (0.0, 0.5, 0.9, 1.0)),
            bound(each, truth, patients=who, rng=np.random.default_rng(0), resamples=50) if len(set(who)) > 4 else None,
        )
        for each in (scores, mapped)
    ]
    assert results[0] == results[1]


def test_turning_scores_over_turns_the_area_over() -> None:
    scores, truth, weights = draw_case(1, decimals=1)
    assert auroc(-scores, truth, weights=weights) == pytest.approx(1 - auroc(scores, truth, weights=weights))
    assert auroc(scores, ~truth) == pytest.approx(1 - auroc(scores, truth))


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("decimals", [0, 12])
def test_sensitivity_follows_its_stated_rule(level: float, decimals: int) -> None:
    scores, truth, _ = draw_case(5, decimals=decimals, size=200)
    negatives = scores[~truth]
    candidates = [-np.inf, *np.unique(negatives)]
    threshold = next(t for t in candidates if np.mean(negatives <= t) >= level - 1e-12)
    found = sensitivity_at_specificity(scores, truth, specificity=level)
    assert found == np.mean(scores[truth] > threshold)
    assert np.mean(negatives <= threshold) >= level - 1e-12


@pytest.mark.parametrize("decimals", [0, 1, 12])
@pytest.mark.parametrize("level", [0.0, 0.5, 0.95, 0.99, 1.0])
def test_weighted_sensitivity_counts_copies(level: float, decimals: int) -> None:
    cases = [draw_case(seed, decimals=decimals) for seed in range(4)]
    for scores, truth, weights in cases:
        rows = np.stack([weights, np.ones(len(scores)), weights * 0.37]).astype(float)
        found = weighted_sensitivities(rank_scores(scores, truth), rows, specificity=level)
        copies = sensitivity_at_specificity(np.repeat(scores, weights), np.repeat(truth, weights), specificity=level)
        plain = sensitivity_at_specificity(scores, truth, specificity=level)
        assert found == pytest.approx([copies, plain, copies], abs=1e-12)
    scores, truth, weights = cases[0]
    for lost in (truth, ~truth):
        assert np.isnan(
            weighted_sensitivities(rank_scores(scores, truth), np.where(lost, 0.0, 1.0)[None], specificity=level)
        ).all()


def test_sensitivity_does_not_trip_over_decimal_fractions() -> None:
    """0.07 * 100 is 7.000000000000001 in binary; the seventh negative is meant, not the eighth."""
    scores = np.concatenate([np.arange(100.0), [6.5]])
    assert sensitivity_at_specificity(scores, scores == 6.5, specificity=0.07) == 1.0


def test_constant_scores_are_worth_one_half() -> None:
    truth = np.arange(40) < 4
    assert auroc(np.ones(40), truth) == 0.5
    assert average_precision(np.ones(40), truth) == pytest.approx(0.1)
    assert sensitivity_at_specificity(np.ones(40), truth, specificity=0.9) == 0.0
    assert bound(np.ones(40), truth, patients=np.arange(40), rng=np.random.default_rng(0)) == (None, None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [auroc, average_precision, roc_curve])
def test_non_finite_scores_are_refused(function: object, value: float) -> None:
    with pytest.raises(ScoreError, match="1 of 3 are NaN or infinite"):
        function([0.0, value, 1.0], [True, False, False])  # type: ignore[operator]


@pytest.mark.parametrize(("truth", "words"), [([True] * 3, "0 negatives"), ([False] * 3, "0 positives")])
def test_one_class_is_refused(truth: list[bool], words: str) -> None:
    for call in (
        lambda: auroc([1.0, 2, 3], truth),
        lambda: average_precision([1.0, 2, 3], truth),
        lambda: roc_curve([1.0, 2, 3], truth),
        lambda: sensitivity_at_specificity([1.0, 2, 3], truth, specificity=0.9),
        lambda: bound([1.0, 2, 3], truth, patients=["a", "b", "c"], rng=np.random.default_rng(0)),
    ):
        with pytest.raises(OneClassError, match=words):
            call()


def test_misshapen_input_is_refused_in_clear_words() -> None:
    with pytest.raises(ScoreError, match="one length"):
        auroc([1.0, 2.0], [True, False, True])
    with pytest.raises(ScoreError, match="True and False"):
        auroc([1.0, 2.0], [1, 0])
    with pytest.raises(ScoreError, match="none negative"):
        auroc([1.0, 2.0], [True, False], weights=[1, -1])
    with pytest.raises(OneClassError, match="weight 0"):
        auroc([1.0, 2.0], [True, False], weights=[0, 1])
    with pytest.raises(ScoreError, match="needs its patient"):
        bound([1.0, 2.0], [True, False], patients=["a"], rng=np.random.default_rng(0))
    with pytest.raises(OneClassError):
        auroc([], [])
    with pytest.raises(EvaluationError, match="no seed"):
        estimate_over_seeds([], rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="specificity"):
        sensitivity_at_specificity([1.0, 2.0], [True, False], specificity=95)
    assert issubclass(EvaluationError, UnaryError)


def test_interval_equals_a_resampling_written_out() -> None:
    """Same estimand, naive code: draw patients by kind, gather copies of their patches, ask scikit-learn."""
    rng = np.random.default_rng(2)
    who = np.repeat(np.arange(30), 8)
    truth = (who < 12) & (rng.random(240) < 0.4)
    scores = rng.normal(size=30)[who] + rng.normal(size=240) + truth
    kinds = [[], [], []]
    for patient in range(30):
        own = truth[who == patient]
        kinds[0 if own.all() else 1 if not own.any() else 2].append(patient)
    values = []
    for _ in range(1000):
        drawn = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds if kind])
        rows = np.concatenate([np.flatnonzero(who == patient) for patient in drawn])
        values.append(roc_auc_score(truth[rows], scores[rows]))
    low, high = bound(scores, truth, patients=who, rng=np.random.default_rng(3), resamples=4000)
    assert (low, high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=0.015)


def test_clustered_intervals_cover_and_independent_ones_do_not() -> None:
    """AUROC of N(1.5, 2) against N(0, 2) is Phi(1.5 / 2); half of the variance is shared within a patient."""
    target = norm.cdf(1.5 / 2)
    covered, naive = 0, 0
    rounds = 250
    for seed in range(rounds):
        run = draw_clustered(np.random.default_rng(seed))
        for patients, resamples in ((run.patients, 300), (np.arange(len(run.scores)), 100)):
            low, high = bound(
                run.scores, run.positive, patients=patients, rng=np.random.default_rng(seed), resamples=resamples
            )
            if patients is run.patients:
                covered += low <= target <= high
            else:
                naive += low <= target <= high
    assert 0.89 <= covered / rounds <= 0.985
    assert naive / rounds < 0.7


def test_every_resample_keeps_both_classes() -> None:
    """Two patients with a positive among many: plain resampling would lose both in an eighth of the draws."""
    scores, truth = np.arange(20.0), np.isin(np.arange(20), [9, 11])
    low, high = bound(scores, truth, patients=np.arange(20), rng=np.random.default_rng(0))
    assert 0 <= low < 19 / 36 < high <= 1
    both = np.tile([True, False], 40)
    scores = np.random.default_rng(0).normal(size=80) + both
    low, high = bound(scores, both, patients=np.arange(80) // 2, rng=np.random.default_rng(0))
    assert low < auroc(scores, both) < high


@pytest.mark.parametrize(("positives", "negatives"), [(1, 20), (20, 1)])
def test_one_patient_of_a_side_has_no_interval(positives: int, negatives: int) -> None:
    """Whatever the other side is, nobody can know how another such patient would score."""
    patients = np.repeat(np.arange(positives + negatives), 6)
    truth, scores = patients < positives, np.random.default_rng(0).normal(size=len(patients))
    run = Run(scores + truth, truth, patients)
    assert estimate_over_seeds([run], rng=np.random.default_rng(0), resamples=20).interval is None
    with pytest.raises(FewPatientsError, match="at least two on either side"):
        difference_over_seeds([run], [Run(scores, truth, patients)], rng=np.random.default_rng(0), resamples=20)


def test_too_few_patients_have_no_interval() -> None:
    scores, truth = [1.0, 2.0, 3.0, 4.0], [False, False, True, True]
    for patients in (["a"] * 4, ["a", "a", "b", "b"]):
        assert bound(scores, truth, patients=patients, rng=np.random.default_rng(0)) == (None, None)
        codes = np.unique(patients, return_inverse=True)[1]
        with pytest.raises(FewPatientsError, match="at least two patients"):
            draw_patients(codes, np.array(truth), resamples=9, rng=np.random.default_rng(0))
    with pytest.raises(FewPatientsError, match="no resample"):
        percentile_interval(np.full(3, np.nan))
    run = Run(np.array(scores), np.array(truth), np.array(["a"] * 4))
    estimate = estimate_over_seeds([run], rng=np.random.default_rng(0))
    assert (estimate.value, estimate.low, estimate.high) == (1.0, None, None)


def test_draws_are_reproducible_and_ignore_the_order_of_rows() -> None:
    run = draw_clustered(np.random.default_rng(0))
    turned = np.random.default_rng(1).permutation(len(run.scores))
    results = [
        bound(run.scores[rows], run.positive[rows], patients=run.patients[rows], rng=np.random.default_rng(7))
        for rows in (slice(None), slice(None), turned)
    ]
    assert results[0] == results[1] == pytest.approx(results[2], abs=1e-12)


def test_average_precision_has_its_own_interval() -> None:
    run = draw_clustered(np.random.default_rng(4))
    found = estimate_over_seeds([run], compute=weighted_average_precisions, rng=np.random.default_rng(0))
    assert found.low < average_precision(run.scores, run.positive) == found.value < found.high


def test_paired_difference_is_sharper_than_unpaired_intervals() -> None:
    rng = np.random.default_rng(5)
    run = draw_clustered(rng)
    better = run.scores + 0.6 * run.positive + 0.05 * rng.normal(size=len(run.scores))
    same = {"positive": run.positive, "patients": run.patients}
    found = difference(better, run.scores, **same, rng=np.random.default_rng(0))
    assert found.low is not None
    assert found.high is not None
    assert found.value == pytest.approx(auroc(better, run.positive) - auroc(run.scores, run.positive))
    assert 0 < found.low < found.value < found.high
    low, high = bound(run.scores, run.positive, patients=run.patients, rng=np.random.default_rng(0))
    assert found.high - found.low < (high - low) / 2
    reverse = difference(run.scores, better, **same, rng=np.random.default_rng(0))
    assert (reverse.value, reverse.low, reverse.high) == pytest.approx((-found.value, -found.high, -found.low))
    none = difference(run.scores, run.scores * 2, **same, rng=np.random.default_rng(0))
    assert (none.value, none.low, none.high) == (0, None, None)


@pytest.mark.parametrize(
    ("positives", "negatives", "both", "pairs"), [(12, 20, 0, 12), (3, 4, 0, 3), (0, 0, 9, 4), (1, 8, 5, 6)]
)
def test_perfect_separation_is_no_certainty(positives: int, negatives: int, both: int, pairs: int) -> None:
    """Of n pairs of patients that were all told apart, fewer than 0.025 ** (1 / n) of all may be."""
    kinds = np.repeat([0, 1, 2], [positives, negatives, both])
    patients = np.repeat(np.arange(len(kinds)), 4)
    truth = (kinds[patients] == 0) | ((kinds[patients] == 2) & (np.arange(len(patients)) % 4 < 2))
    for scores, bounds in (
        (truth + np.linspace(0, 0.5, len(truth)), (0.025 ** (1 / pairs), 1.0)),
        (1 - truth + np.linspace(0, 0.5, len(truth)), (0.0, 1 - 0.025 ** (1 / pairs))),
    ):
        run = Run(scores, truth, patients)
        found = estimate_over_seeds([run, run], rng=np.random.default_rng(0), resamples=50)
        assert (found.low, found.high) == pytest.approx(bounds)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.high
    perfect = Run(truth.astype(float), truth, patients)
    for compute in (weighted_average_precisions, weighted_aurocs):
        of_all = estimate_over_seeds([perfect], rng=np.random.default_rng(0), resamples=50, compute=compute)
        assert of_all.value == 1
        assert of_all.interval != [1, 1]


def test_exact_intervals_of_extremes_cover() -> None:
    """Where a share is so far from 1 that its bound misses it, all of n succeed in at most one sample of forty."""
    for units in (3, 10, 50):
        low, high = bound_extreme(1.0, units)
        assert low is not None
        assert low**units == pytest.approx(0.025)
        assert bound_extreme(0.0, units) == pytest.approx((0.0, 1 - low))
        assert high == 1
    assert bound_extreme(0.3, 10) == (None, None)


def test_seeds_average_and_one_seed_equals_the_plain_interval() -> None:
    runs = [draw_clustered(np.random.default_rng(seed)) for seed in range(3)]
    alone = estimate_over_seeds(runs[:1], rng=np.random.default_rng(9))
    assert (alone.low, alone.high) == bound(
        runs[0].scores, runs[0].positive, patients=runs[0].patients, rng=np.random.default_rng(9)
    )
    together = estimate_over_seeds(runs, rng=np.random.default_rng(9))
    assert together.value == pytest.approx(np.mean([auroc(run.scores, run.positive) for run in runs]))
    copies = estimate_over_seeds([runs[0]] * 4, rng=np.random.default_rng(9))
    assert (copies.value, copies.low, copies.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_seeds_with_different_patients_survive_resamples_that_empty_them() -> None:
    """Each seed tests two negative patients of its own; often neither is drawn, and that seed is left out."""
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(4):
        who = np.array([*np.repeat(np.arange(6), 5), *np.repeat([100 + 2 * seed, 101 + 2 * seed], 10)])
        truth = who < 100
        runs.append(Run(rng.normal(size=who.size) + 2 * truth, truth, who))
    estimate = estimate_over_seeds(runs, rng=np.random.default_rng(1))
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < estimate.value < estimate.high


def test_difference_over_seeds_refuses_unpaired_runs() -> None:
    runs = [draw_clustered(np.random.default_rng(seed)) for seed in range(2)]
    other = Run(runs[0].scores, runs[0].positive, runs[0].patients[::-1])
    for first, second in ((runs, runs[:1]), (runs[:1], [other])):
        with pytest.raises(EvaluationError, match="same patches"):
            difference_over_seeds(first, second, rng=np.random.default_rng(0))


def test_two_thousand_resamples_of_twenty_thousand_scores_are_quick() -> None:
    rng = np.random.default_rng(0)
    scores, truth, who = rng.normal(size=20_000), rng.random(20_000) < 0.1, rng.integers(120, size=20_000)
    start = time.process_time()
    bound(scores, truth, patients=who, rng=rng)
    assert time.process_time() - start < 4
