"""Areas over pixels against scikit-learn on every pixel."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from unary.evaluation import pixelwise
from unary.evaluation.matching import group_targets
from unary.evaluation.pixelwise import PixelSample, draw_truth, summarise_pixels
from unary.evaluation.roc import EvaluationError, OneClassError, ScoreError
from unary.profiles import DEFAULT
from unary.records import Lesion


def sample_pixels(scores: np.ndarray, truth: np.ndarray, **options) -> PixelSample:
    """Of lesions of one group."""
    return pixelwise.sample_pixels(scores, {"own": truth}, **options)["own"]


def draw_map(seed: int, *, side: int = 1000, share: float = 0.01, gain: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """A map of heavy-tailed scores in a unit of its own, float32, and its truth."""
    rng = np.random.default_rng(seed)
    truth = rng.random((side, side)) < share
    return (1000 + np.exp(rng.normal(size=(side, side)) + gain * truth)).astype(np.float32), truth


def summarise(samples: list[PixelSample], resamples: int = 200):
    return summarise_pixels(samples, rng=np.random.default_rng(0), resamples=resamples)


@pytest.mark.parametrize(("share", "gain"), [(0.3, 1.0), (0.01, 2.0), (0.00005, 4.0), (0.00005, 0.5)])
def test_areas_equal_scikit_learn_on_every_pixel(share: float, gain: float) -> None:
    maps = [draw_map(seed, share=share, gain=gain) for seed in range(3)]
    found = summarise([sample_pixels(*each, patient=str(place)) for place, each in enumerate(maps)], resamples=2)
    scores, truth = (np.concatenate([each[part].ravel() for each in maps]) for part in (0, 1))
    assert found.auroc.value == pytest.approx(roc_auc_score(truth, scores), abs=1e-5)
    assert found.average_precision.value == pytest.approx(average_precision_score(truth, scores), rel=1e-4)
    assert (found.positives, found.negatives) == (truth.sum(), (~truth).sum())


def test_small_images_are_exact_ties_included() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 5, (90, 90)).astype(float)
    truth = rng.random((90, 90)) < 0.1 + 0.02 * scores
    found = summarise([sample_pixels(scores, truth, patient="a")])
    assert found.auroc.value == pytest.approx(roc_auc_score(truth.ravel(), scores.ravel()), abs=1e-12)
    assert found.average_precision.value == pytest.approx(
        average_precision_score(truth.ravel(), scores.ravel()), abs=1e-12
    )
    assert found.auroc.low is None


def test_coarse_scores_of_a_large_image_keep_their_ties() -> None:
    scores, truth = draw_map(3)
    coarse = np.round(np.log(scores - 999), 0)
    found = summarise([sample_pixels(coarse, truth, patient="a")])
    assert found.auroc.value == pytest.approx(roc_auc_score(truth.ravel(), coarse.ravel()), abs=2e-4)
    constant = summarise([sample_pixels(np.ones_like(scores), truth, patient=name) for name in "ab"])
    assert (constant.auroc.value, constant.auroc.low, constant.auroc.high) == (0.5, None, None)
    assert constant.average_precision.value == pytest.approx(truth.mean())


@given(st.integers(0, 400_000), st.sampled_from([1, 3, 1000]))
def test_groups_of_ranks_are_those_of_the_rule(count: int, coarser: int) -> None:
    tail, bulk = max(512 // coarser, 8), max(4096 // coarser, 64)
    bounds = [0]
    while bounds[-1] < count:
        size = max(1, min(bounds[-1] // tail, count // bulk))
        bounds.append(min(count, bounds[-1] + ((size - 1) | 1)))
    assert pixelwise._bound_groups(count, coarser).tolist() == bounds


def test_of_very_many_images_fewer_pixels_say_nearly_the_same() -> None:
    maps = [draw_map(seed, side=224, share=0.01) for seed in range(40)]
    fine, coarse = (
        [sample_pixels(*each, patient=str(place), images=images) for place, each in enumerate(maps)]
        for images in (40, 100_000)
    )
    assert sum(len(one.scores) for one in coarse) < sum(len(one.scores) for one in fine) / 20
    exact, found = (summarise(samples, resamples=50) for samples in (fine, coarse))
    assert found.auroc.value == pytest.approx(exact.auroc.value, abs=5e-4)
    assert found.average_precision.value == pytest.approx(exact.average_precision.value, rel=0.01)
    assert (found.positives, found.negatives) == (exact.positives, exact.negatives)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["cube", "exp", "shift"]))
def test_nothing_changes_under_an_increasing_map(seed: int, which: str) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(4, 150, 150)).round(3)
    truth = rng.random((4, 150, 150)) < 0.1
    mapped = {"cube": scores**3, "exp": np.exp(scores), "shift": scores + 100}[which]
    results = [
        summarise([sample_pixels(each[place], truth[place], patient=str(place)) for place in range(4)], resamples=20)
        for each in (scores, mapped)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("count", [1, 511, 12_287, 12_288, 100_000, 3_000_001])
def test_groups_of_ranks_hold_what_is_promised(count: int) -> None:
    sample = sample_pixels(np.arange(count), np.zeros(count, bool), patient="a")
    assert sample.weights.sum() == count
    before = np.cumsum(sample.weights) - sample.weights
    assert (sample.weights <= np.maximum(1, np.minimum(before / 512, count / 4096))).all()
    assert len(sample.scores) < 14_000
    above = count - 1 - sample.scores
    assert ((above >= before) & (above < before + sample.weights)).all()
    assert (above[:-1] - before[:-1] == (sample.weights[:-1] - 1) / 2).all()  # but for the last, the very middle
    assert (len(sample.scores) == count) == (count < 12_288)


def test_interval_equals_a_resampling_written_out() -> None:
    rng = np.random.default_rng(4)
    maps = []
    for place in range(24):
        effect, truth = rng.normal(), rng.random((40, 40)) < (0.1 if place < 10 else 0)
        maps.append((effect + rng.normal(size=(40, 40)) + 1.5 * truth, truth, f"p{place // 2}"))
    found = summarise([sample_pixels(*each[:2], patient=each[2]) for each in maps], resamples=3000)
    values = []
    for _ in range(150):
        drawn = np.concatenate([rng.choice(5, 5), 5 + rng.choice(7, 7)])
        rows = [maps[2 * patient + view] for patient in drawn for view in (0, 1)]
        truth, scores = (np.concatenate([row[part].ravel() for row in rows]) for part in (1, 0))
        values.append((roc_auc_score(truth, scores), average_precision_score(truth, scores)))
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    for estimate, bounds in zip((found.auroc, found.average_precision), zip(low, high, strict=True), strict=True):
        assert (estimate.low, estimate.high) == pytest.approx(bounds, abs=0.03)
    assert (found.positive_patients, found.negative_patients) == (5, 12)


def test_bins_of_the_intervals_do_not_shift_them() -> None:
    """Images of several patients that are copies but for one pixel: every resample has nearly the value itself."""
    scores, truth = draw_map(7, side=700, share=0.002)
    copies = {name: scores.copy() for name in "abc"}
    copies["a"][truth.nonzero()[0][0], truth.nonzero()[1][0]] = scores.min()
    found = summarise([sample_pixels(each, truth, patient=name) for name, each in copies.items()], resamples=20)
    for estimate in (found.auroc, found.average_precision):
        assert estimate.low == pytest.approx(estimate.value, rel=2e-3)
        assert estimate.high == pytest.approx(estimate.value, rel=2e-3)


def test_unscored_pixels_are_left_out_and_counted() -> None:
    scores, truth = draw_map(5, side=80, share=0.2)
    holes = scores.copy()
    holes[:20] = np.nan
    found = summarise([sample_pixels(holes, truth, patient="a")])
    assert found.auroc.value == pytest.approx(roc_auc_score(truth[20:].ravel(), scores[20:].ravel()), abs=1e-12)
    assert found.unscored == truth[:20].sum()


def test_partly_annotated_images_give_no_negatives() -> None:
    scores, truth = draw_map(6, side=80, share=0.2)
    part = sample_pixels(scores, truth, patient="a", complete=False)
    assert part.positive.all()
    normal = sample_pixels(scores, np.zeros_like(truth), patient="b")
    expected = roc_auc_score(
        np.arange(truth.sum() + truth.size) < truth.sum(), np.concatenate([scores[truth], scores.ravel()])
    )
    assert summarise([part, normal]).auroc.value == pytest.approx(expected, abs=1e-12)


def test_lesions_of_another_group_are_neither_positive_nor_negative() -> None:
    scores, truth = draw_map(8, side=80, share=0.3)
    first, second = truth & (np.arange(80) < 50), truth & (np.arange(80) >= 45)
    samples = pixelwise.sample_pixels(scores, {"a": first, "b": second, "all": truth}, patient="p")
    for name, own in (("a", first), ("b", second), ("all", truth)):
        kept = own | ~truth
        found = summarise([samples[name]])
        assert found.auroc.value == pytest.approx(roc_auc_score(own[kept], scores[kept]), abs=1e-12)
        assert (found.positives, found.negatives) == (own.sum(), (~truth).sum())


def test_truth_is_drawn_from_targets() -> None:
    lesions = [
        Lesion("i", "Calcification", "point", ((10.0, 10.0),)),
        Lesion("i", "Calcification", "point", ((10.0, 14.0),)),
        Lesion("i", "Mass", "box", ((20.0, 20.0), (30.0, 40.0))),
    ]
    targets = group_targets(lesions, (50, 60), reading=DEFAULT.reading, spacing_mm=(0.1, 0.1))
    assert draw_truth(targets, (50, 60)).sum() == 2 + 200
    specks = draw_truth(targets, (50, 60), group="calcification")
    assert np.argwhere(specks).tolist() == [[10, 10], [10, 14]]


def test_misshapen_input_is_refused_in_clear_words() -> None:
    scores, truth = np.zeros((4, 4)), np.zeros((4, 4), bool)
    with pytest.raises(ScoreError, match="shapes"):
        sample_pixels(scores, truth[:3], patient="a")
    with pytest.raises(ScoreError, match="1 pixels are infinite"):
        sample_pixels(np.where(np.eye(4) * np.arange(4) == 3, np.inf, 0.0), truth, patient="a")
    with pytest.raises(OneClassError, match="0 positive"):
        summarise([sample_pixels(scores, truth, patient="a")])
    with pytest.raises(OneClassError, match="0 other"):
        summarise([sample_pixels(scores, ~truth, patient="a")])
    with pytest.raises(EvaluationError, match="no image"):
        summarise([])
    assert "secret" not in repr(sample_pixels(scores, truth, patient="secret"))


def test_memory_of_a_sample_is_bounded() -> None:
    tracemalloc.start()
    samples = []
    for seed in range(3):
        before = tracemalloc.get_traced_memory()[0]
        samples.append(sample_pixels(*draw_map(seed), patient="a"))
        assert tracemalloc.get_traced_memory()[0] - before < 500_000
    tracemalloc.stop()
