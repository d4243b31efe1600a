"""The runs of ``benchmarks/simulated.py``: nothing of a held-out patient is learned; kept is what was found."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from unary.datasets.simulated.plans import LESION_CLASSES
from unary.datasets.simulated.tissue import measure_tissue
from unary.patches.collection import read_row
from unary.patches.preparation import PreparationConfig, enlarge, prepare_image

CLASSES = ("round_cluster", "irregular_mass")


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("simulated_runs")


@pytest.fixture
def table(monkeypatch, runs):
    return importlib.import_module("simulated")


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(runs, table, phantoms, tmp_path):
    plan = runs.Plan("laplacian", 0, 0, 3, CLASSES, 2)
    first = runs.run_plan(phantoms, plan, tmp_path, data_hash="a" * 64)
    (kept,) = (tmp_path / "answers").iterdir()
    whole = kept.read_text()
    kept.write_text(whole[: len(whole) - len(whole.splitlines()[-1]) // 2])  # a line cut off
    again = runs.run_plan(phantoms, plan, tmp_path, data_hash="a" * 64)
    assert kept.read_text() == whole
    for one, other in zip(first, again, strict=True):
        assert (one.kind, one.outcome, one.untouched, one.plans) == (
            other.kind,
            other.outcome,
            other.untouched,
            other.plans,
        )
        assert np.array_equal(one.patch_scores, other.patch_scores)
    fold = runs.draw_image_folds(phantoms, count=3, seed=0)[0]
    patients = {answer.outcome.patient for answer in first}
    assert patients
    assert not patients & {row.patient_id for row in fold.fit}
    lesional = [answer for answer in first if answer.kind is not None]
    assert {answer.kind for answer in lesional} == set(CLASSES)
    for answer in lesional:
        assert len(answer.outcome.target_scores) == len(answer.plans) == len(answer.untouched.target_scores)
        assert not answer.outcome.false_scores
    rows = list(table.list_figures({"laplacian": [first]}, CLASSES))
    assert [row["lesions"] for row in rows] == list(CLASSES)
    for row in rows:
        own = [answer for answer in lesional if answer.kind == row["lesions"]]
        assert row["n_lesions"] == sum(len(answer.plans) for answer in own)
        assert 0 <= row["sensitivity"]["0.5"] <= row["sensitivity"]["1"] <= row["sensitivity"]["2"] <= 1
    assert rows[0]["patch_auroc"] > 0.6, "the Laplacian must see round calcifications, but for the faintest"


def test_equal_seeds_put_equal_lesions_into_an_image(runs, phantoms):
    row = next(row for row in phantoms.rows if row.label == "negative")
    image = read_row(row)
    prepared = prepare_image(image, PreparationConfig())
    tissue = measure_tissue(image.pixels, enlarge(prepared.mask, prepared), image.spacing_mm[0])
    for kind in LESION_CLASSES:
        one, found = runs.insert_lesions(image, tissue, kind, 2, seed=(0, 5), image_id="a")
        two, _ = runs.insert_lesions(image, tissue, kind, 2, seed=(0, 5), image_id="a")
        assert np.array_equal(one.pixels, two.pixels)
        assert found, kind
        untouched = ~np.logical_or.reduce([lesion.changed for lesion in found])
        assert np.array_equal(one.pixels[untouched], image.pixels[untouched])
        assert (one.pixels != image.pixels).any()
        assert one.pixels.max() <= image.value_range[1]
