"""Tests that are looked at for ever: their false alarms are as rare as stated, by simulation."""

import numpy as np
import pytest

from unary.evaluation.clustered import bound_long_run
from unary.evaluation.sequential import (
    ALLOWANCE,
    bet_against,
    chart_ranks,
    find_limit,
    predict_interval,
    rank_in_sequence,
)


def test_a_bettor_seldom_wins_against_a_belief_that_is_true_however_long_the_bets_go_on():
    rng = np.random.default_rng(0)
    for values in (
        (rng.random((600, 1500)) < 0.1).astype(float),  # as bad as is allowed
        rng.choice([0, 0.25, 0.5, 1], p=[0.86, 0.04, 0.04, 0.06], size=(600, 1500)),  # shares of a study's images
    ):
        assert values.mean() == pytest.approx(0.09, abs=0.02)
        ever = [bool((bet_against(row, 0.1) >= 20).any()) for row in values]
        assert np.mean(ever) <= 0.05
    broken = [bool((bet_against(rng.random(600) < 0.2, 0.1) >= 20).any()) for _ in range(60)]
    assert np.mean(broken) > 0.95


def test_the_whole_test_against_a_guarantee_is_wrong_as_seldom_as_stated():
    """Calibrations are drawn as well: their long-run rates scatter around what is guaranteed on average."""
    rng = np.random.default_rng(1)
    calibrated, above, alarm = 40, 3, 0.05
    rate, wrong, careless = (above + 1) / (calibrated + 1), 0, 0
    repeats = 400
    for _ in range(repeats):
        threshold = np.sort(rng.random(calibrated))[-above - 1]
        alarms = (rng.random(1500) > threshold).astype(float)
        tested = bound_long_run(rate, calibrated, doubt=alarm / 2)
        wrong += bool((bet_against(alarms, tested) >= 2 / alarm).any())
        careless += bool((bet_against(alarms, rate) >= 1 / alarm).any())
    assert wrong / repeats <= alarm
    assert careless / repeats > 2 * alarm, "who forgets that one calibration differs from the mean is wrong often"


def test_places_in_a_sequence_are_uniform_and_independent_whatever_the_distribution():
    rng = np.random.default_rng(2)
    values = rng.poisson(2.0, 3000)  # with many ties
    places = rank_in_sequence(values)
    assert 0 < places.min() < places.max() < 1
    assert np.histogram(places, 10, (0, 1))[0] == pytest.approx(300, abs=70)
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.06
    again = rank_in_sequence(values)
    assert np.array_equal(places, again)
    tops = rank_in_sequence(np.arange(5.0))
    assert ((tops >= np.arange(5) / np.arange(1, 6)) & (tops < 1)).all()
    with pytest.raises(ValueError, match="finite"):
        rank_in_sequence([1.0, np.nan])


@pytest.mark.parametrize("wanted", [100.0, 400.0])
def test_the_run_length_is_that_of_a_simulation(wanted):
    limit = find_limit(wanted)
    rng = np.random.default_rng(3)
    count = 3000
    up, down, length = np.zeros(count), np.zeros(count), np.zeros(count)
    alive = np.ones(count, bool)
    for number in range(1, 40 * int(wanted)):
        step = 2 * np.sqrt(3) * (rng.random(count) - 0.5)
        up, down = np.maximum(0, up + step - ALLOWANCE), np.maximum(0, down - step - ALLOWANCE)
        hit = alive & ((up >= limit) | (down >= limit))
        length[hit] = number
        alive &= ~hit
        if not alive.any():
            break
    assert not alive.any()
    assert float(length.mean()) == pytest.approx(wanted, rel=0.08)


def test_charts_of_whole_streams_keep_the_run_length_and_see_a_shift():
    rng = np.random.default_rng(4)
    counts = [len(chart_ranks(rng.gamma(2.0, size=800), run_length=400.0, seed=seed).signals) for seed in range(60)]
    assert np.mean(counts) == pytest.approx(800 / 400, abs=0.6)
    late = 0
    for seed in range(20):
        values = rng.normal(size=400)
        values[250:] += 1.0
        places = [
            place for place, side in chart_ranks(values, run_length=5000.0, seed=seed).signals if side == "higher"
        ]
        late += any(250 <= place < 310 for place in places)
    assert late >= 18
    with pytest.raises(ValueError, match="run_length"):
        find_limit(1.0)


def test_a_further_value_leaves_the_interval_of_a_short_baseline_as_often_as_stated():
    rng = np.random.default_rng(5)
    outside = 0
    for _ in range(4000):
        *baseline, new = rng.normal(50, 3, 6).tolist()
        low, high = predict_interval(baseline, 0.1)
        outside += not low <= new <= high
    assert outside / 4000 == pytest.approx(0.1, abs=0.015)
    assert predict_interval([1.0, 2.0], 0.1) is None
    assert predict_interval([3.0, 3.0, 3.0], 0.1) is None


def test_evidence_without_end_stays_a_number():
    capital = bet_against(np.ones(5000), 0.05)
    assert np.isfinite(capital).all()
    assert (np.diff(capital) >= 0).all()
    assert capital[-1] == pytest.approx(1e100)
    assert bet_against([], 0.05).shape == (0,)
