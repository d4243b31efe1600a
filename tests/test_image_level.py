"""Images told apart by their assessment: who is compared with whom."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from unary.evaluation.image_level import compare_images
from unary.evaluation.roc import EvaluationError, ScoreError
from unary.profiles import DEFAULT

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


def compare(case: dict[str, object], **options: object) -> dict[str, object]:
    return compare_images(
        case["scores"],
        **{key: case[key] for key in case if key != "scores"},
        comparisons=COMPARISONS,
        **options,
        rng=np.random.default_rng(0),
        resamples=100,
    )  # type: ignore[arg-type, return-value]


def test_areas_equal_scikit_learn_on_the_stated_images() -> None:
    case = draw_images()
    found = compare(case)
    calcified = np.array(["calcification" in own for own in case["groups"]])  # type: ignore[attr-defined]
    digit = np.array([each[0] if each else "" for each in case["assessments"]])  # type: ignore[union-attr, attr-defined]
    sides = {
        "birads_1_against_5": (digit == "1", digit == "5"),
        "birads_1_against_3_to_6": (digit == "1", np.isin(digit, ["3", "4", "5", "6"])),
        "calcifications_2_against_5": ((digit == "2") & calcified, (digit == "5") & calcified),
    }
    assert set(found) == set(sides) == {comparison.name for comparison in COMPARISONS}
    for name, (negative, positive) in sides.items():
        kept = negative | positive
        estimate = found[name]
        assert estimate.value == pytest.approx(roc_auc_score(positive[kept], case["scores"][kept]))  # type: ignore[index, attr-defined]
        assert estimate.low < estimate.value < estimate.high  # type: ignore[attr-defined]


def test_a_comparison_without_one_side_is_absent() -> None:
    case = draw_images()
    case["assessments"] = ["1" if each == "2" else each for each in case["assessments"]]  # type: ignore[attr-defined]
    assert set(compare(case)) == {"birads_1_against_5", "birads_1_against_3_to_6"}
    case["assessments"] = [None] * 400
    assert compare(case) == {}


def test_runs_are_averaged_and_those_with_one_side_left_out() -> None:
    one, other = draw_images(1), draw_images(2)
    case = {
        key: [*one[key], *other[key], {"assessments": "1", "groups": ()}.get(key, 0.0)]  # type: ignore[misc]
        for key in one
    }
    case["patients"] = [str(each) for each in case["patients"]]
    found = compare(case, runs=np.repeat([0, 1, 2], [400, 400, 1]))
    for name in (comparison.name for comparison in COMPARISONS):
        mean = np.mean([compare(each)[name].value for each in (one, other)])  # type: ignore[attr-defined]
        assert found[name].value == pytest.approx(mean)  # type: ignore[attr-defined]


def test_misshapen_input_is_refused() -> None:
    case = draw_images()
    for key in ("assessments", "patients", "groups"):
        with pytest.raises(EvaluationError, match="as many"):
            compare({**case, key: case[key][:-1]})  # type: ignore[index]
    with pytest.raises(ScoreError, match="NaN"):
        compare({**case, "scores": np.full(400, np.nan)})
