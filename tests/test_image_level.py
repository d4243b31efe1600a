"""Images told apart by their assessment: who is compared with whom."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from unary.evaluation.evaluated_image import EvaluatedImage
from unary.evaluation.image_level import BY_LABEL, compare_images
from unary.evaluation.matching import Match, Target
from unary.evaluation.roc import ScoreError
from unary.profiles import DEFAULT
from unary.records import ManifestRow

COMPARISONS = DEFAULT.reading.comparisons
CATEGORIES = ["1", "2", "3", "4", "4a", "4b", "4c", "5", "6", None]


def draw_images(seed: int = 0, count: int = 400) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    assessments = [CATEGORIES[place] for place in rng.integers(len(CATEGORIES), size=count)]
    severity = np.array([CATEGORIES.index(each) for each in assessments])
    return {
        "scores": rng.normal(size=count) + 0.2 * severity,
        "assessments": assessments,
        "patients": np.arange(count) // 4,
        "groups": [("mass", "calcification") if own else ("mass",) for own in rng.random(count) < 0.5],
    }


def build_image(
    score: float | None, assessment: str | None, patient: object, groups: tuple[str, ...]
) -> EvaluatedImage:
    label = "positive" if assessment in ("4c", "5", "6") else "negative" if assessment == "1" else None
    row = ManifestRow(None, "i", str(patient), label, assessment=assessment)
    targets = tuple(Target(group, (), (), np.empty((0, 2)), 1.0, cluster=False, single=False) for group in groups)
    match = Match(targets, ((),) * len(targets), {})
    return EvaluatedImage(row, False, (), match, score, None, patch_scores=np.zeros(1))


def compare(case: dict[str, object], **options: object) -> dict[str, object]:
    columns = [case[key] for key in ("scores", "assessments", "patients", "groups")]
    images = [build_image(*each) for each in zip(*columns, strict=True)]  # type: ignore[call-overload]
    return compare_images(
        [*images, build_image(None, "5", "unscored", ("mass",))],
        reading=DEFAULT.reading,
        rng=np.random.default_rng(0),
        resamples=100,
        **options,  # type: ignore[arg-type]
    )


def test_areas_equal_scikit_learn_on_the_stated_images() -> None:
    case = draw_images()
    found = compare(case)
    calcified = np.array(["calcification" in own for own in case["groups"]])  # type: ignore[attr-defined]
    digit = np.array([each[0] if each else "" for each in case["assessments"]])  # type: ignore[union-attr, attr-defined]
    sides = {
        "birads_1_against_5": (digit == "1", digit == "5"),
        "birads_1_against_3_to_6": (digit == "1", np.isin(digit, ["3", "4", "5", "6"])),
        "calcifications_2_against_5": ((digit == "2") & calcified, (digit == "5") & calcified),
        BY_LABEL: (digit == "1", np.isin(np.array(case["assessments"]), ["4c", "5", "6"])),
    }
    assert set(found) == set(sides) == {BY_LABEL, *(comparison.name for comparison in COMPARISONS)}
    for name, (negative, positive) in sides.items():
        kept = negative | positive
        estimate = found[name].auroc
        assert (found[name].negatives, found[name].positives) == (negative.sum(), positive.sum())
        patients = [len(np.unique(case["patients"][side])) for side in (negative, positive)]  # type: ignore[index]
        assert [found[name].negative_patients, found[name].positive_patients] == patients
        assert estimate.value == pytest.approx(roc_auc_score(positive[kept], case["scores"][kept]))  # type: ignore[index, attr-defined]
        assert estimate.low < estimate.value < estimate.high  # type: ignore[attr-defined]


def test_a_comparison_without_one_side_is_absent() -> None:
    case = draw_images()
    case["assessments"] = ["1" if each == "2" else each for each in case["assessments"]]  # type: ignore[attr-defined]
    assert set(compare(case)) == {"birads_1_against_5", "birads_1_against_3_to_6", BY_LABEL}
    case["assessments"] = [None] * 400
    assert compare(case) == {}


def test_runs_are_averaged_and_those_with_one_side_left_out() -> None:
    one, other = draw_images(1), draw_images(2)
    case = {
        key: [*one[key], *other[key], {"assessments": "1", "groups": ()}.get(key, 0.0)]  # type: ignore[misc]
        for key in one
    }
    case["patients"] = [str(each) for each in case["patients"]]
    found = compare(case, runs=np.repeat([0, 1, 2], [400, 400, 2]))
    for name in (comparison.name for comparison in COMPARISONS):
        mean = np.mean([compare(each)[name].auroc.value for each in (one, other)])  # type: ignore[attr-defined]
        assert found[name].auroc.value == pytest.approx(mean)  # type: ignore[attr-defined]


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ScoreError, match="NaN"):
        compare({**draw_images(), "scores": np.full(400, np.nan)})
