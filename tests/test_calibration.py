import dataclasses
import itertools
import math

import numpy as np
import pytest

from unary.errors import CalibrationError
from unary.models.calibration import MOST_FINDINGS, RATES, NormalScores, calibrate, check_points, describe_guarantee


def draw_patient(rng, name, *, findings=2.0):
    """One to four images that share a strong effect; some patients are far from the others."""
    effect = rng.normal() + 3 * (rng.random() < 0.1)
    images = []
    for _ in range(rng.integers(1, 5)):
        count = rng.poisson(findings * math.exp(0.7 * effect))
        scores = np.sort(1 + rng.exponential(size=count) * math.exp(0.5 * effect))[::-1]
        images.append(NormalScores(name, tuple(scores.tolist()), float(scores[0]) if count else float(rng.random())))
    return images


def draw_patients(rng, count, **how):
    return list(itertools.chain.from_iterable(draw_patient(rng, f"P{number}", **how) for number in range(count)))


def count_findings(image, threshold):
    return sum(score > threshold for score in image.findings[:MOST_FINDINGS])


@pytest.mark.parametrize("count", [2, 5, 20])
def test_p_values_keep_their_guarantee(count):
    rng, repeats = np.random.default_rng(count), 2500
    levels = np.arange(1, count + 2) / (count + 1)
    reached = np.zeros(len(levels))
    for _ in range(repeats):
        calibration = calibrate(draw_patients(rng, count))
        test = [calibration.find_p_value(image.image_score) for image in draw_patient(rng, "new")]
        reached += (np.asarray(test)[:, None] <= levels + 1e-9).mean(axis=0)
    assert (reached / repeats <= levels + 3 * np.sqrt(levels * (1 - levels) / repeats)).all()
    assert (reached / repeats)[-1] == 1


def test_p_values_of_one_image_per_patient_are_uniform():
    rng, repeats = np.random.default_rng(0), 4000
    ranks = np.zeros(5)
    for _ in range(repeats):
        scores = rng.normal(size=5)
        calibration = calibrate([NormalScores(str(number), (), score) for number, score in enumerate(scores[:4])])
        ranks[round(calibration.find_p_value(scores[4]) * 5) - 1] += 1
    assert np.abs(ranks / repeats - 0.2).max() < 4 * math.sqrt(0.2 * 0.8 / repeats)


@pytest.mark.parametrize(("count", "findings"), [(5, 2.0), (20, 0.3), (20, 4.0)])
def test_guaranteed_rates_and_false_alarms_hold_over_calibrations(count, findings):
    rng, repeats = np.random.default_rng(count), 2000
    found, alarms, bounds = (np.zeros((repeats, len(RATES))) for _ in range(3))
    for number in range(repeats):
        points = calibrate(draw_patients(rng, count, findings=findings)).operating_points
        test = draw_patient(rng, "new", findings=findings)
        for column, point in enumerate(points):
            found[number, column] = np.mean([count_findings(image, point.threshold) for image in test])
            alarms[number, column] = np.mean([image.image_score > point.threshold for image in test])
            bounds[number, column] = point.false_alarm_rate
    guaranteed = np.asarray([point.guaranteed for point in points])
    assert guaranteed.tolist() == [2 * MOST_FINDINGS / (count + 1) <= rate for rate in RATES]
    error = 3 * found.std(axis=0) / math.sqrt(repeats)
    assert (found.mean(axis=0) <= np.asarray(RATES) + error)[guaranteed].all()
    gap = alarms - bounds
    assert (gap.mean(axis=0) <= 3 * gap.std(axis=0) / math.sqrt(repeats)).all()


def find_slowly(normals, rate):
    """The same in loops, from the definition: of all scores of findings, the lowest one that keeps the rate."""
    patients = {image.patient: [other for other in normals if other.patient == image.patient] for image in normals}
    count = len(patients)

    def measure(threshold):
        return sum(
            sum(count_findings(image, threshold) for image in images) / len(images) for images in patients.values()
        )

    guaranteed = 2 * MOST_FINDINGS / (count + 1) <= rate + 1e-12
    scores = sorted({score for image in normals for score in image.findings[:MOST_FINDINGS]})
    for threshold in scores:
        total = measure(threshold)
        kept = (total + MOST_FINDINGS) / (count + 1) <= rate if guaranteed else total / count <= rate
        if kept:
            return threshold, guaranteed, total / count
    raise AssertionError("nothing lies above the highest score")


@pytest.mark.parametrize("seed", range(12))
def test_thresholds_agree_with_loops(seed):
    rng = np.random.default_rng(seed)
    normals = draw_patients(rng, int(rng.integers(2, 30)), findings=float(rng.uniform(0.5, 6)))
    if seed % 2:  # ties
        normals = [
            NormalScores(one.patient, tuple(round(v, 1) for v in one.findings), round(one.image_score, 1))
            for one in normals
        ]
    points = calibrate(normals).operating_points
    least = -math.inf
    for point in reversed(points):
        threshold, guaranteed, _ = find_slowly(normals, point.rate)
        least = max(threshold, least)
        assert point.threshold == least
        assert point.guaranteed == guaranteed
        shares = {}
        for image in normals:
            shares.setdefault(image.patient, []).append(count_findings(image, point.threshold))
        assert point.measured_rate == pytest.approx(np.mean([np.mean(values) for values in shares.values()]))
        assert point.measured_rate <= point.rate + 1e-9


@pytest.mark.parametrize("count", range(2, 90, 3))
def test_a_larger_rate_never_has_a_higher_threshold(count):
    # With 15 patients 0.5 can just be guaranteed and its threshold is the highest score, where 0.1 is an estimate.
    points = calibrate(draw_patients(np.random.default_rng(count), count)).operating_points
    assert [point.name for point in points] == ["0.1", "0.5", "1", "2"]
    thresholds = [point.threshold for point in points]
    assert thresholds == sorted(thresholds, reverse=True)
    alarms = [point.false_alarm_rate for point in points]
    assert alarms == sorted(alarms)
    assert [point.guaranteed for point in points] == sorted(point.guaranteed for point in points)


def test_increasing_maps_of_the_scores_change_nothing_else():
    normals = draw_patients(np.random.default_rng(3), 20)

    def bend(score):
        return math.exp(score / 4) - 40

    bent = [NormalScores(one.patient, tuple(map(bend, one.findings)), bend(one.image_score)) for one in normals]
    before, after = calibrate(normals), calibrate(bent)
    for one, other in zip(before.operating_points, after.operating_points, strict=True):
        assert other == dataclasses.replace(one, threshold=bend(one.threshold))
    for score in (0.5, 1.5, before.scores[7], 100):
        assert before.find_p_value(score) == after.find_p_value(bend(score))


@pytest.mark.parametrize("sign", [1, -1])
def test_without_any_finding_the_highest_image_is_the_threshold(sign):
    scores = sign * np.arange(1.0, 11.0)
    calibration = calibrate([NormalScores(str(number), (), score) for number, score in enumerate(scores)])
    for point in calibration.operating_points:
        assert point.threshold == scores.max()
        assert point.measured_rate == 0
        assert point.false_alarm_rate == pytest.approx(1 / 11)


def test_the_smallest_p_value_and_ties():
    calibration = calibrate([NormalScores(name, (1.0,), 1.0) for name in "abcd"])
    assert calibration.find_p_value(1.0) == 1, "as high counts as high"
    assert calibration.find_p_value(1.0 + 1e-9) == pytest.approx(1 / 5)
    assert calibration.find_p_value(math.inf) == pytest.approx(1 / 5)
    assert calibration.find_p_value(-math.inf) == 1
    for point in calibration.operating_points:  # a finding that ties with the threshold is not reported
        assert point.threshold == 1
        assert (point.measured_rate, point.false_alarm_rate) == (0, 0.2)


def test_a_patient_counts_once_however_many_images():
    many = [NormalScores("a", (float(score),), float(score)) for score in range(10, 110)]
    calibration = calibrate([*many, NormalScores("b", (), 0.0), NormalScores("c", (), 0.0)])
    assert calibration.patients == 3
    assert calibration.find_p_value(10.0) == pytest.approx(2 / 4)
    assert calibration.find_p_value(60.0) == pytest.approx((1 + 0.5) / 4)
    assert calibration.find_p_value(0.0) == pytest.approx(1)


def test_only_the_findings_that_are_reported_count():
    few = calibrate([NormalScores(name, tuple(range(20, 20 - MOST_FINDINGS, -1)), 20.0) for name in "ab"], rates=(9,))
    many = calibrate([NormalScores(name, tuple(range(20, 0, -1)), 20.0) for name in "ab"], rates=(9,))
    assert few == many


def test_a_rate_that_can_just_be_guaranteed_is():
    normals = [NormalScores(str(number), (float(number),), float(number)) for number in range(159)]
    assert 2 * MOST_FINDINGS / 160 == 0.1
    assert calibrate(normals).operating_points[0].guaranteed
    assert not calibrate(normals[:-1]).operating_points[0].guaranteed
    assert not calibrate(normals[:-1]).operating_points[0].guaranteed


def test_the_sentences_say_what_is_guaranteed():
    normals = [NormalScores(str(number), (float(number),), float(number)) for number in range(20)]
    calibration = calibrate(normals)
    assert "an estimate" in describe_guarantee(calibration.find_operating_point("0.1"))
    sentence = describe_guarantee(calibration.find_operating_point("1"))
    assert "At most 1 false finding per normal image is expected" in sentence
    assert "2 false findings per normal image are expected" in describe_guarantee(calibration.find_operating_point("2"))
    assert "1/21" in sentence
    with pytest.raises(CalibrationError, match=r"no operating point '3'; this model has 0\.1, 0\.5, 1, 2"):
        calibration.find_operating_point("3")


def test_a_number_names_its_point():
    normals = [NormalScores(str(number), (float(number),), float(number)) for number in range(20)]
    calibration = calibrate(normals)
    for name, point in (("1", 1), ("1", 1.0), ("0.5", 0.5), ("2", np.float32(2))):
        assert calibration.find_operating_point(point) == calibration.find_operating_point(name)


def draw_patches(rng, name):
    """Images of one patient whose patches share an effect; some images have none."""
    effect = rng.normal()
    sizes = rng.integers(0, 30, rng.integers(1, 4))
    return [NormalScores(name, (), 9.0, effect + rng.normal(size=size)) for size in sizes]


def share_above(image, threshold):
    return float((image.patches > threshold).mean()) if len(image.patches) else 0.0


@pytest.mark.parametrize("count", [2, 19, 40])
def test_guaranteed_shares_of_patches_hold_over_calibrations(count):
    rng, repeats = np.random.default_rng(count), 1500
    above = np.zeros((repeats, 2))
    for number in range(repeats):
        normals = list(itertools.chain.from_iterable(draw_patches(rng, f"P{k}") for k in range(count)))
        points = calibrate(normals, specificities=(0.9, 0.95)).operating_points[-2:]
        test = draw_patches(rng, "new")
        above[number] = [np.mean([share_above(image, point.threshold) for image in test]) for point in points]
    assert [point.name for point in points] == ["patch_0.9", "patch_0.95"]
    guaranteed = np.asarray([point.guaranteed for point in points])
    assert guaranteed.tolist() == [2 / (count + 1) <= rate for rate in (0.1, 0.05)]
    error = 3 * above.std(axis=0) / math.sqrt(repeats)
    assert (above.mean(axis=0) <= np.asarray([0.1, 0.05]) + error)[guaranteed].all()


@pytest.mark.parametrize("count", [3, 17, 42])
def test_thresholds_of_patches_agree_with_loops(count):
    rng = np.random.default_rng(count)
    normals = list(itertools.chain.from_iterable(draw_patches(rng, f"P{k}") for k in range(count)))
    patients = {image.patient: [other for other in normals if other.patient == image.patient] for image in normals}

    def measure(threshold):
        shares = [np.mean([share_above(image, threshold) for image in images]) for images in patients.values()]
        return float(np.mean(shares))

    for point in calibrate(normals).operating_points[-2:]:
        assert (point.unit, point.false_alarm_rate, point.patients) == ("patch", None, count)
        most = (point.rate * (count + 1) - 1) / count if point.guaranteed else point.rate
        scores = np.sort(np.concatenate([image.patches for image in normals]))
        expected = next(score for score in scores if measure(score) <= most + 1e-12)
        assert point.threshold == expected
        assert point.measured_rate == pytest.approx(measure(expected))


def test_without_patches_no_point_counts_them_and_specificities_are_checked():
    normals = [NormalScores(name, (), 1.0) for name in "ab"]
    assert {point.unit for point in calibrate(normals).operating_points} == {"finding"}
    with pytest.raises(CalibrationError, match="specificities must lie between"):
        calibrate(normals, specificities=(1.0,))
    with pytest.raises(CalibrationError, match="finite"):
        NormalScores("a", (), 1.0, np.array([math.nan]))


def test_what_cannot_be_calibrated_is_refused():
    one = NormalScores("a", (2.0, 1.0), 2.0)
    with pytest.raises(CalibrationError, match="at least two patients"):
        calibrate([one, one])
    with pytest.raises(CalibrationError, match="at least two patients"):
        calibrate([])
    for rate in (0.0, -1.0, math.nan):
        with pytest.raises(CalibrationError, match="must be positive"):
            calibrate([one, NormalScores("b", (), 0.0)], rates=(1.0, rate))
    with pytest.raises(CalibrationError, match="finite"):
        NormalScores("a", (), math.nan)
    with pytest.raises(CalibrationError, match="finite"):
        NormalScores("a", (math.inf,), math.inf)
    with pytest.raises(CalibrationError, match="highest first"):
        NormalScores("a", (1.0, 2.0), 2.0)
    with pytest.raises(CalibrationError, match="above the image"):
        NormalScores("a", (3.0,), 2.0)


def test_the_sentences_promise_nothing_where_nothing_holds():
    normals = [NormalScores(str(number), (float(number),), float(number)) for number in range(20)]
    few = calibrate([NormalScores(name, (5.0, 4.0, 3.0), 5.0) for name in "ab"]).find_operating_point("1")
    assert "2 normal patients are too few for a guarantee" in describe_guarantee(few)
    assert "(guaranteed" not in describe_guarantee(few)
    assert "Nothing is guaranteed of how many normal images have a finding" in describe_guarantee(few)
    for point in calibrate(normals, overlap="allowed").operating_points:
        assert "(guaranteed" not in describe_guarantee(point)
    seen = describe_guarantee(calibrate(normals, overlap="allowed").find_operating_point("1"))
    assert "no guarantee, since patients were trained on" in seen


def test_points_that_the_scores_do_not_set_are_named():
    patches = np.arange(40.0)
    normals = [NormalScores(str(number), (float(number),), float(number), patches) for number in range(20)]
    calibration = calibrate(normals)
    check_points(calibration)
    for number, point in enumerate(calibration.operating_points):
        for change in ({"threshold": 1e9}, {"guaranteed": not point.guaranteed}, {"patients": 19}, {"rate": 0.3}):
            wrong = list(calibration.operating_points)
            wrong[number] = dataclasses.replace(point, **change)
            with pytest.raises(
                CalibrationError, match=f"the operating point {point.name} has the {next(iter(change))}"
            ):
                check_points(dataclasses.replace(calibration, operating_points=tuple(wrong)))
    with pytest.raises(CalibrationError, match=r"must be 0\.1, 0\.5, 1, 2, patch_0\.95, patch_0\.99"):
        check_points(dataclasses.replace(calibration, operating_points=()))
    assert all(len(image.patches) < 10 for image in calibration.images), "what sets no threshold is not kept"
