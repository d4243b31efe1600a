"""What reports claim: a table of situations and the sentences that they allow."""

from __future__ import annotations

from typing import Any

import pytest

from unary.evaluation.intervals import Estimate
from unary.evaluation.metrics import FEW_PATIENTS
from unary.outputs.leads import (
    IMAGES,
    PATCHES,
    Sides,
    describe_auroc,
    describe_means,
    describe_one_class,
    describe_outcome,
    describe_readings,
    describe_seen,
    describe_sides,
    head_repetition,
    join_words,
    judge_difference,
    note_few,
)


def entry(area: float, low: float | None = None, high: float | None = None, **counts: int) -> dict[str, Any]:
    """An entry of metrics.json, of enough patients unless said otherwise."""
    found = {"n_positive": 40, "n_negative": 900, "n_positive_patients": 12, "n_negative_patients": 20, **counts}
    interval = None if low is None or high is None else [low, high]
    return {"auroc": area, "auroc_ci95": interval, "sensitivity_at_specificity": {"0.95": 0.61}, **found}


BETTER, ALIKE, WORSE = Estimate(0.1, 0.02, 0.2), Estimate(0.001, -0.04, 0.05), Estimate(-0.3, -0.4, -0.2)
NEVER_OF_IMAGES = ("patch", "lesion")
CLAIMS = ("better than", "worse than", "not told apart", "tells ", "flags")


@pytest.mark.parametrize(
    ("model", "differences", "sides", "said", "unsaid"),
    [
        pytest.param(
            entry(1.0, 0.4, 1.0, n_positive=4, n_negative=3, n_positive_patients=4, n_negative_patients=3),
            {"laplacian": None, "mean_brightness": BETTER},
            IMAGES,
            (
                "Too few patients to tell: 4 images labelled positive (4 patients) against 3 images labelled negative "
                "(3 patients).",
                "Below 10 patients on either side nothing is claimed of model",
                "these images alone",
            ),
            ("1.000", "AUROC", *CLAIMS, *NEVER_OF_IMAGES),
            id="seven-images",
        ),
        pytest.param(
            entry(1.0, 0.7, 1.0, n_negative_patients=9, n_negative=9_000),
            {"laplacian": BETTER},
            PATCHES,
            ("Too few patients to tell: 40 patches with a lesion (12 patients) against 9,000 normal patches (9 ",),
            ("1.000", *CLAIMS),
            id="many-patches-of-few-patients",
        ),
        pytest.param(
            entry(0.9, 0.8, 0.95),
            {"laplacian": BETTER, "mean_brightness": BETTER, "standard_deviation": BETTER},
            PATCHES,
            (
                "Compared were 40 patches with a lesion (12 patients) against 900 normal patches (20 patients).",
                "tells patches with a lesion from normal patches with an AUROC of 0.900 (0.800 to 0.950), where chance",
                "It is better than laplacian (difference +0.100, +0.020 to +0.200), mean_brightness (",
                "Let 95 % of the normal patches pass, and model flags 61 % of the patches with a lesion.",
                "These are patches, not patients",
            ),
            ("not told apart", "worse than", "shown nothing"),
            id="better-than-all",
        ),
        pytest.param(
            entry(0.911, 0.85, 0.96),
            {"laplacian": ALIKE},
            PATCHES,
            ("It is not told apart from laplacian (difference +0.001, -0.040 to +0.050).",),
            ("better than", "worse than"),
            id="a-thousandth-more",
        ),
        pytest.param(
            entry(0.911, 0.85, 0.96),
            {"laplacian": None},
            PATCHES,
            ("It is not told apart from laplacian (no paired interval).",),
            ("better than",),
            id="no-paired-interval",
        ),
        pytest.param(
            entry(0.477, 0.4, 0.55),
            {"laplacian": BETTER, "standard_deviation": BETTER, "mean_brightness": WORSE},
            PATCHES,
            (
                "an AUROC of 0.477 (0.400 to 0.550): it is not told apart from chance (0.5).",
                "It is worse than mean_brightness (difference -0.300, -0.400 to -0.200).",
                "mean_brightness: a control that knows nothing of lesions; what does not beat it has shown nothing.",
            ),
            ("tells ", "better than", "flags", "best"),
            id="chance-and-a-control-ahead",
        ),
        pytest.param(
            entry(0.3, 0.2, 0.4),
            {},
            PATCHES,
            ("worse than chance (0.5), it ranks them the wrong way round",),
            ("tells ", "flags"),
            id="the-wrong-way-round",
        ),
        pytest.param(
            entry(0.8, 0.7, 0.9),
            {"mean_brightness": ALIKE, "standard_deviation": WORSE, "laplacian": BETTER},
            PATCHES,
            ("mean_brightness and standard_deviation: controls that know nothing of lesions",),
            (),
            id="no-better-than-controls",
        ),
        pytest.param(
            entry(0.5),
            {},
            PATCHES,
            ("0.500 (no interval): whether that is more than chance (0.5) is not known.",),
            ("tells ", "flags"),
            id="no-interval",
        ),
        pytest.param(
            entry(0.9, 0.8, 0.95),
            {"laplacian": BETTER},
            IMAGES,
            ("Compared were 40 images labelled positive (12 patients) against 900 images labelled negative (20 ",),
            NEVER_OF_IMAGES,
            id="images",
        ),
    ],
)
def test_a_lead_says_no_more_than_its_numbers(
    model: dict[str, Any],
    differences: dict[str, Estimate | None],
    sides: Sides,
    said: tuple[str, ...],
    unsaid: tuple[str, ...],
) -> None:
    groups = {"model": model, **{name: entry(0.81, 0.7, 0.9) for name in differences}}
    text = describe_outcome(groups, subject="model", differences=differences, sides=sides)
    for words in said:
        assert words in text
    for words in unsaid:
        assert words not in text


def test_a_control_that_is_ahead_turned_over_is_named() -> None:
    """A score that ranks all images the wrong way round tells them apart as well as its opposite."""
    groups = {
        "model": entry(0.7, 0.6, 0.8),
        "mean_brightness": entry(0.19, 0.1, 0.3),
        "laplacian": entry(0.1, 0.0, 0.2),
    }
    text = describe_outcome(groups, subject="model", differences={"mean_brightness": BETTER, "laplacian": BETTER})
    assert "Turned over, mean_brightness (0.810) would do as well or better, knowing nothing of lesions." in text
    for area in (0.31, 0.5):
        groups["mean_brightness"] = entry(area, 0.1, 0.6)
        assert "Turned over" not in describe_outcome(groups, subject="model", differences={"mean_brightness": BETTER})
    groups |= {"model": entry(0.5, 0.4, 0.6), "mean_brightness": entry(0.5, 0.4, 0.6)}
    assert "Turned over" not in describe_outcome(groups, subject="model", differences={"mean_brightness": BETTER})


def test_the_highest_of_several_is_called_that_and_no_more() -> None:
    groups = {"laplacian": entry(0.477, 0.4, 0.55), "mean_brightness": entry(0.81, 0.7, 0.9)}
    text = describe_outcome(groups, subject="laplacian", differences={"mean_brightness": WORSE}, among=5)
    assert "The highest of 5 detectors, laplacian, has an AUROC of 0.477 (0.400 to 0.550): it is not told" in text
    assert "best" not in text


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (None, "not told apart from"),
        (Estimate(0.5, None, None), "not told apart from"),
        (Estimate(0.5, 0.0, 0.6), "not told apart from"),
        (Estimate(-0.5, -0.6, 0.0), "not told apart from"),
        (Estimate(0.5, 1e-9, 0.6), "better than"),
        (Estimate(-0.5, -0.6, -1e-9), "worse than"),
    ],
)
def test_better_needs_a_paired_interval_beyond_zero(found: Estimate | None, verdict: str) -> None:
    assert judge_difference(found) == verdict


@pytest.mark.parametrize("patients", [0, 1, FEW_PATIENTS - 1])
def test_an_area_of_few_patients_is_never_shown_with_an_interval(patients: int) -> None:
    text = describe_auroc(entry(1.0, 0.99, 1.0, n_positive_patients=patients))
    assert text == f"1.000 (too few patients to tell: {patients} against 20)"
    assert note_few(20, patients) == f" (too few patients to tell: 20 against {patients})"
    assert note_few(FEW_PATIENTS, FEW_PATIENTS) == ""


@pytest.mark.parametrize(
    ("options", "heading"),
    [
        ({"epochs": (500, 500), "runs": 3, "images": ((67, 49), (67, 49))}, "W, reproduced"),
        ({"epochs": (2, 500), "runs": 1}, "W, not as published: 2 of 500 epochs, one run"),
        ({"epochs": (500, 500), "runs": 2}, "W, not as published: 2 runs"),
        ({"epochs": (900, 500), "runs": 3}, "W, not as published: 900 epochs, not 500"),
        (
            {"epochs": (500, 500), "runs": 3, "images": ((40, 12), (67, 49))},
            "W, not as published: 40 negative and 12 positive images in place of 67 and 49",
        ),
        (
            {"epochs": (500, 500), "runs": 3, "changed": ["stride_px 64", "30 % held out"]},
            "W, not as published: other settings (stride_px 64, 30 % held out)",
        ),
    ],
)
def test_only_a_whole_run_is_headed_as_one(options: dict[str, Any], heading: str) -> None:
    assert head_repetition("W", whole=", reproduced", **options) == heading


@pytest.mark.parametrize(
    ("runs", "said", "unsaid"),
    [
        (
            [0.9],
            ("0.900 (in one run)", "pixels alone (0.600)", "one run cannot tell which is better"),
            ("Run by run", "1 runs", "0.900 to"),
        ),
        ([0.9, 0.91], ("0.905 (0.900 to 0.910 in 2 runs)", "2 runs cannot tell which is better"), ("Run by run",)),
        ([0.9, 0.91, 0.92], ("Run by run it lies above chance and pixels alone (0.600).",), ("below", "cannot")),
        ([0.4, 0.41, 0.42], ("Run by run it lies below chance and pixels alone (0.600).",), ("above chance",)),
        ([0.55, 0.6, 0.65], ("above chance; now above, now below pixels alone (0.600)",), ("above chance and",)),
    ],
)
def test_one_class_is_ranked_by_all_of_its_runs(
    runs: list[float], said: tuple[str, ...], unsaid: tuple[str, ...]
) -> None:
    areas = {"zero": runs, "one": [area - 0.1 for area in runs], "mean": runs}
    text = describe_one_class("MNIST", areas, {"p": 0.6}, names={"p": "pixels"})
    for words in ("highest for zero", "lowest for one", *said):
        assert words in text
    assert not [words for words in unsaid if words in text]


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (0, "The model was fitted on none of these 3 patients"),
        (2, "The model was fitted on 2 of these 3 patients: every figure is flattered"),
        (None, "cannot be told here"),
    ],
)
def test_what_the_model_has_seen_is_said(seen: int | None, words: str) -> None:
    assert words in describe_seen(seen, 3)


def test_words_of_number() -> None:
    assert [describe_means(count, "fold") for count in (1, 2)] == ["of one fold", "means over 2 folds"]
    assert [join_words(list(words)) for words in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
    assert "1 patient" in describe_seen(0, 1)
    assert "1 patients" not in describe_seen(0, 1)


def test_several_controls_are_them() -> None:
    groups = {name: entry(0.5, 0.4, 0.6) for name in ("model", "mean_brightness", "standard_deviation")}
    differences = {"mean_brightness": WORSE, "standard_deviation": WORSE}
    assert "what does not beat them has shown nothing." in describe_outcome(
        groups, subject="model", differences=differences
    )


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        (PATCHES, "1 patch with a lesion (1 patient) against 2,000 normal patches (2 patients)"),
        (IMAGES, "1 image labelled positive (1 patient) against 2,000 images labelled negative (2 patients)"),
    ],
)
def test_one_is_no_plural(sides, words):
    found = entry(0.9, 0.8, 1.0, n_positive=1, n_negative=2000, n_positive_patients=1, n_negative_patients=2)
    assert describe_sides(found, sides) == words


READING = {
    "wei2018": entry(0.83, 0.79, 0.87),
    "mean_brightness": entry(0.85, 0.80, 0.90),
    "standard_deviation": entry(0.7, 0.6, 0.8),
}
INSIDE = {"wei2018": entry(0.55, 0.45, 0.62)}
FEW = {"wei2018": entry(0.83, 0.79, 0.87, n_negative_patients=3)}


@pytest.mark.parametrize(
    ("whole", "tissue", "against", "said", "unsaid"),
    [
        pytest.param(
            READING,
            INSIDE,
            (Estimate(0.99, 0.98, 1.0), Estimate(0.52, 0.4, 0.6)),
            (
                "66 % of which are air",
                "0.830 (0.790 to 0.870); the paper prints 0.84, inside that interval.",
                "these are not beaten by it: mean_brightness (0.850).",
                "Against air alone the network has 0.990 (0.980 to 1.000), against all other negatives 0.520",
                "What it tells apart there is tissue from air.",
                "With patches of tissue as negatives it has 0.550 (0.450 to 0.620).",
            ),
            ("standard_deviation", "outside"),
            id="air-explains-it",
        ),
        pytest.param(
            {**READING, "wei2018": entry(0.6, 0.5, 0.7)},
            INSIDE,
            (Estimate(0.7, 0.5, 0.8), Estimate(0.52, 0.4, 0.6)),
            ("the paper prints 0.84, outside that interval.",),
            ("tissue from air", "inside that interval"),
            id="air-explains-nothing",
        ),
        pytest.param(
            READING,
            INSIDE,
            None,
            ("inside that interval",),
            ("Against air alone", "tissue from air"),
            id="no-air-at-all",
        ),
        pytest.param(FEW, INSIDE, None, ("Too few patients to tell where",), ("AUROC of 0.830", "beaten"), id="few"),
        pytest.param(READING, FEW, None, ("Too few patients to tell where",), ("beaten",), id="few-with-tissue"),
    ],
)
def test_where_a_published_figure_comes_from_is_said_as_far_as_it_is_known(whole, tissue, against, said, unsaid):
    differences = {"mean_brightness": ALIKE, "standard_deviation": BETTER}
    told = describe_readings(whole, tissue, differences=differences, air=0.66, against=against, published=0.84)
    for words in said:
        assert words in told
    for words in unsaid:
        assert words not in told
