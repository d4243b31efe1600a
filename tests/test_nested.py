import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from nested import choose_nested, divide_cells, divide_lesion_patients, list_runs, summarise_cells
from nested_runs import ImageResult
from nested_variants import FIRST, VARIANTS, Variant

from unary.evaluation.matching import Match, Target
from unary.records import ManifestRow

OUTLINE = np.asarray([[0, 0], [0, 9], [9, 9], [9, 0]], float)


def make_image(patient, *, normal, score, image="a"):
    """Two false findings in a normal image; a mass and a cluster that score so in another."""
    row = ManifestRow(
        None, f"{patient}{image}", patient, "negative" if normal else "positive", assessment="1" if normal else "5"
    )
    groups = () if normal else ("mass", "calcification")
    targets = tuple(
        Target(group, (place,), (), OUTLINE, 1.0, group != "mass", False) for place, group in enumerate(groups)
    )
    contains = {group: np.asarray([not normal, False]) for group in ("mass", "calcification")}
    match = Match(targets, tuple((1,) for _ in targets), {1: score} if targets else {1: score, 2: score})
    return ImageResult(row, normal, match, score, np.asarray([score, 0.0]), np.asarray([False, False]), contains)


def make_runs(scores):
    """Two folds of two normal patients each; lesion patients by name and variant, all with normals at 1 to 4."""
    runs = {}
    for name, by_patient in scores.items():
        for fold in range(2):
            normals = [make_image(f"n{fold}{k}", normal=True, score=1.0 + k + fold) for k in range(2)]
            lesions = [make_image(patient, normal=False, score=score) for patient, score in by_patient.items()]
            runs[0, fold, name] = normals + lesions
    return runs


def test_a_choice_is_made_without_those_it_is_judged_on():
    # Both are told apart by the first two patients alone, and the other two say the opposite.
    runs = make_runs({"x": {"a": 9, "b": 9, "c": 0, "d": 0}, "y": {"a": 0, "b": 0, "c": 9, "d": 9}})
    lesion_folds = {0: {"a": 0, "b": 0, "c": 1, "d": 1}}
    cells = [(0, fold, group) for fold in range(2) for group in range(2)]
    chosen = choose_nested(runs, cells, lesion_folds)
    assert {cell: name for cell, name in chosen.items() if cell[2] == 0} == {(0, 0, 0): "y", (0, 1, 0): "y"}
    assert {cell: name for cell, name in chosen.items() if cell[2] == 1} == {(0, 0, 1): "x", (0, 1, 1): "x"}
    divided = divide_cells(runs, cells, chosen, lesion_folds)
    for (_, fold, group), images in divided.items():
        assert {image.row.patient_id for image in images if image.normal} == {f"n{fold}0", f"n{fold}1"}
        assert {lesion_folds[0][image.row.patient_id] for image in images if not image.normal} == {group}
    # So everything that was chosen for is missed, where the best variant of either half would find all.
    figures = summarise_cells(divided, resamples=50)
    assert figures["masses"].value == 0
    assert figures["clusters, BI-RADS 5"].value == 0
    best = divide_cells(runs, cells, {cell: "xy"[cell[2]] for cell in cells}, lesion_folds)
    assert summarise_cells(best, resamples=50)["masses"].value == 1


def test_the_figures_are_those_of_the_cells():
    runs = make_runs({"x": {"a": 9.0, "b": 1.5}})
    cells = {(0, 0, 0): runs[0, 0, "x"]}
    found = list_runs(cells)
    patches = found["calcification patches, BI-RADS 5"][0]
    assert patches.positive.sum() == 2
    assert sorted(patches.scores[~patches.positive]) == [0, 0, 1, 2]
    figures = summarise_cells(cells, resamples=50)
    # Of the pairs with normal patches 0, 0, 1, 2 the lesion at 9 wins four and that at 1.5 three.
    assert figures["calcification patches, BI-RADS 5"].value == pytest.approx(7 / 8)
    assert figures["masses"].value == 1  # two normal images allow two false findings, which score 2
    assert figures["images, BI-RADS 1 against 5"].value == pytest.approx(3 / 4)


def test_patients_with_lesions_are_spread_evenly():
    runs = make_runs({"x": {f"p{number}": 5.0 for number in range(9)}})
    folds = divide_lesion_patients(runs, seed=0, count=3)
    assert sorted(np.bincount(list(folds.values()))) == [3, 3, 3]
    assert set(folds) == {f"p{number}" for number in range(9)}
    assert divide_lesion_patients(runs, seed=0, count=3) == folds


def test_variants_are_named_once_and_add_up():
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    assert FIRST in names
    one = Variant("z", (("p", 1.0), ("q", 0.5)))
    assert one.combine({"p": np.asarray([1.0, np.nan]), "q": np.asarray([4.0, 1.0])}).tolist()[0] == 3
