"""What a report on whole pictures claims: a table of situations and the sentences that they allow."""

from __future__ import annotations

import pytest

from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import FEW_PATIENTS
from unary.outputs.picture_leads import PictureOutcome, describe_learned, describe_pictures

BETTER, ALIKE, WORSE = Estimate(0.1, 0.02, 0.2), Estimate(0.001, -0.04, 0.05), Estimate(-0.3, -0.4, -0.2)
NOTHING_SHOWN = "shown nothing that the file does not tell"


def outcome(
    difference: Estimate | None, *, low: float = 0.85, high: float = 0.93, patients: int = 12
) -> PictureOutcome:
    found = {"auroc": 0.9, "auroc_ci95": [low, high], "n_positive": 1200, "n_negative": 30}
    found |= {"n_positive_patients": 40, "n_negative_patients": patients}
    return PictureOutcome("With the files as they are", found, "file bytes", 0.8, difference)


def describe(*outcomes: PictureOutcome, published: tuple[str, float] | None = None) -> str:
    what = ("sick films", "normal films")
    return describe_pictures("model", outcomes, what=what, unit="patient", published=published)


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (BETTER, "model is better than it (difference +0.100, +0.020 to +0.200)"),
        (ALIKE, "model is not told apart from it (difference +0.001, -0.040 to +0.050)"),
        (WORSE, "model is worse than it (difference -0.300, -0.400 to -0.200)"),
        (None, "model is not told apart from it (no paired interval)"),
        (Estimate(0.1, None, None), "model is not told apart from it (no paired interval)"),
    ],
)
def test_only_a_paired_interval_says_who_is_better(difference, said):
    text = describe(outcome(difference))
    assert text.startswith("Compared were 1,200 sick films (40 patients) against 30 normal films (12 patients).")
    assert "model has an AUROC of 0.900 (0.850 to 0.930); the best control, file bytes, has 0.800" in text
    assert said in text
    assert (NOTHING_SHOWN in text) == (difference is not BETTER)


def test_one_condition_that_fails_is_enough_to_say_so():
    assert NOTHING_SHOWN in describe(outcome(BETTER), outcome(ALIKE))
    assert NOTHING_SHOWN not in describe(outcome(BETTER), outcome(BETTER))


def test_with_too_few_nothing_is_claimed():
    text = describe(outcome(BETTER, patients=FEW_PATIENTS - 1), published=("Autoencoder", 0.5))
    assert text.startswith("Too few to tell: 1,200 sick films (40 patients) against 30 normal films (9 patients).")
    assert not [words for words in ("AUROC", "better", "published", "0.9") if words in text]


@pytest.mark.parametrize(("area", "said"), [(0.84, "lies above it"), (0.86, "holds it"), (0.94, "lies below it")])
def test_published_figures_are_compared_by_the_interval(area, said):
    text = describe(outcome(BETTER), published=("Autoencoder (32)", area))
    assert f"The highest of the published figures for this split is {area:.3f} (Autoencoder (32), without" in text
    assert f"the interval of model, with the files as they are, {said}." in text
    assert "published" not in describe(outcome(BETTER))


@pytest.mark.parametrize(
    ("negative", "positive", "said"),
    [
        ((486, 600), (0, 600), True),
        ((60, 600), (60, 600), False),
        ((0, 600), (300, 600), False),
        ((3, 600), (0, 600), False),
    ],
)
def test_what_has_been_learned_from_is_said_where_it_flatters(negative, positive, said):
    text = describe_learned(negative, positive)
    assert bool(text) == said
    if said:
        assert "Of the 600 negative test pictures 486 are copies or near copies of training pictures" in text
        assert "of the 600 positive ones 0: figures of all test pictures, published ones included, flatter" in text


@pytest.mark.parametrize("positive", [(12, 12), (0, 12)])
def test_that_nothing_new_was_tested_is_said_whichever_side_was_learned_from(positive):
    text = describe_learned((12, 12), positive, nothing_new=True)
    assert f"12 are copies or near copies of training pictures, of the 12 positive ones {positive[0]}" in text
    assert text.endswith("one side has no picture left: nothing here tells how new pictures would fare.")
    assert ("flatter" in text) == (positive[0] == 0)
    assert "nothing here tells" not in describe_learned((12, 12), positive)
