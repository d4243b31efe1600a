"""Shares over patients: exact where they are independent, held by simulation where they are not."""

import numpy as np
import pytest
from scipy import stats

from unary.evaluation.clustered import bound_long_run, estimate_share, weigh_alarms


def test_independent_things_have_the_exact_binomial_interval():
    for found, count in ((3, 20), (11, 20), (19, 20)):
        share = estimate_share(np.arange(count) < found, np.ones(count))
        exact = stats.binomtest(found, count).proportion_ci(method="exact")
        assert share.value == found / count
        assert share.low == pytest.approx(exact.low, abs=1e-12)
        assert share.high == pytest.approx(exact.high, abs=1e-12)


def test_shares_of_nothing_and_all_count_patients_and_not_images():
    assert estimate_share([0] * 8, [4] * 8).high == pytest.approx(stats.binomtest(0, 8).proportion_ci().high)
    assert estimate_share([4] * 8, [4] * 8).low == pytest.approx(stats.binomtest(8, 8).proportion_ci().low)
    assert estimate_share([1], [2]).interval is None
    with pytest.raises(ValueError, match="nothing was counted"):
        estimate_share([0, 0], [0, 0])
    assert estimate_share([0, 0, 1], [0, 2, 2]) == estimate_share([0, 1], [2, 2])


@pytest.mark.parametrize("patients", [8, 20])
def test_the_interval_covers_where_images_of_a_patient_resemble_each_other(patients):
    rng = np.random.default_rng(patients)
    truth, images, repeats, covered, naive = 0.4, 4, 400, 0, 0
    for _ in range(repeats):
        rates = rng.beta(truth * 1.5, (1 - truth) * 1.5, patients)
        found = rng.binomial(images, rates)
        share = estimate_share(found, np.full(patients, images))
        covered += share.low <= truth <= share.high
        plain = stats.binomtest(int(found.sum()), images * patients).proportion_ci(method="exact")
        naive += plain.low <= truth <= plain.high
    assert covered / repeats > 0.93
    assert naive < 0.9 * covered, "an interval that takes images for independent is too narrow"


def test_the_test_of_alarms_is_the_distribution_of_ranks():
    """Second opinion: all orders of calibration and new patients are as likely."""
    calibrated, patients, above = 9, 5, 2  # two calibration patients exceed the threshold, k = 3
    rng = np.random.default_rng(0)
    scores = rng.random((20_000, calibrated + patients))
    threshold = np.sort(scores[:, :calibrated])[:, -above - 1]
    alarms = (scores[:, calibrated:] > threshold[:, None]).sum(axis=1)
    rate = (above + 1) / (calibrated + 1)
    for number in range(patients + 1):
        share = float((alarms >= number).mean())
        assert weigh_alarms(number, patients, rate, calibrated) == pytest.approx(share, abs=0.012)
    with pytest.raises(ValueError, match="rate"):
        weigh_alarms(1, 5, 1.0, 9)


def test_the_test_of_alarms_keeps_its_level_with_several_images_of_a_patient():
    """The threshold is set by all images, each patient counting as one; one image of each new patient is taken."""
    rng = np.random.default_rng(1)
    repeats, wrong = 1500, 0
    for _ in range(repeats):
        own = rng.normal(size=(20 + 12, 1)) + rng.normal(size=(32, 4))
        calibration, new = own[:20], own[20:, 0]
        threshold = np.quantile(calibration, 0.9, method="higher")
        rate = (1 + (calibration > threshold).mean(axis=1).sum()) / 21
        wrong += weigh_alarms(int((new > threshold).sum()), 12, float(rate), 20) <= 0.05
    assert wrong / repeats <= 0.05


def test_the_long_run_bound_is_exceeded_by_as_many_calibrations_as_stated():
    rng = np.random.default_rng(2)
    calibrated, doubt = 30, 0.1
    scores = np.sort(rng.random((5000, calibrated)), axis=1)
    threshold = scores[:, -3]  # two exceed it
    bound = bound_long_run(3 / (calibrated + 1), calibrated, doubt=doubt)
    assert float((1 - threshold > bound).mean()) == pytest.approx(doubt, abs=0.015)
    assert bound_long_run(1.0, 5, doubt=0.1) == 1.0
