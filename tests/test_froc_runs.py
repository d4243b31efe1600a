"""The folds and runs of ``benchmarks/froc.py``: whole patients, and nothing lost on disk."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from unary.errors import SplitError
from unary.evaluation.evaluate import evaluate
from unary.evaluation.evaluated_image import build_outcomes
from unary.evaluation.lesion_query import list_queries
from unary.profiles import DEFAULT

FOLDS = 6  # of six patients with normal images: five are left to fit and calibrate on


@pytest.fixture
def froc_runs(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("froc_runs")


@pytest.mark.parametrize(("count", "seed"), [(2, 0), (3, 0), (3, 1), (6, 5)])
def test_folds_hold_out_whole_patients_and_test_every_normal_once(froc_runs, phantoms, count, seed):
    folds = froc_runs.draw_image_folds(phantoms, count=count, seed=seed)
    normal = {row.image_id for row in phantoms.rows if row.label == "negative"}
    tested = [row.image_id for fold in folds for row in fold.test if row.image_id in normal]
    assert sorted(tested) == sorted(normal)
    for fold in folds:
        assert {row.image_id for row in fold.fit} <= normal
        assert not {row.patient_id for row in fold.fit} & {row.patient_id for row in fold.test}
        assert {row.image_id for row in fold.test} >= {row.image_id for row in phantoms.rows} - normal
    sizes = [sum(row.image_id in normal for row in fold.test) for fold in folds]
    assert max(sizes) - min(sizes) <= 2


def test_too_many_folds_are_refused(froc_runs, phantoms):
    with pytest.raises(SplitError, match="at least 7 patients, there are 6"):
        froc_runs.draw_image_folds(phantoms, count=7, seed=0)


def test_a_kept_run_is_read_and_equals_what_was_evaluated(froc_runs, phantoms, tmp_path, monkeypatch):
    fold = froc_runs.draw_image_folds(phantoms, count=FOLDS, seed=0)[0]
    plan = froc_runs.Plan("laplacian", 0, 0, FOLDS, 1, 0.4)
    data_hash = froc_runs.hash_manifest(phantoms)
    first = froc_runs.run_plan(phantoms, fold, plan, tmp_path, data_hash=data_hash)
    (folder,) = (tmp_path / "models").iterdir()
    model = froc_runs.read_model(folder)
    fresh = evaluate(model, phantoms.select(fold.test), progress=False)
    points = model.calibration.operating_points
    assert first.points == tuple(point for point in points if point.unit == "finding")
    for one, other in zip(first.images, fresh.evaluated, strict=True):
        assert one.findings == other.findings
        assert one.match.hits == other.match.hits
        assert (one.row, one.normal, one.image_score) == (other.row, other.normal, other.image_score)
    for query in list_queries(DEFAULT.reading).values():
        assert build_outcomes(first.images, query) == build_outcomes(fresh.evaluated, query)

    def refuse(*_arguments, **_options):
        raise AssertionError("this was done before")

    monkeypatch.setattr(froc_runs, "fit", refuse)
    monkeypatch.setattr(froc_runs, "evaluate", refuse)
    again = froc_runs.run_plan(phantoms, fold, plan, tmp_path, data_hash=data_hash)
    assert [image.findings for image in again.images] == [image.findings for image in first.images]
    with pytest.raises(AssertionError, match="done before"):
        froc_runs.run_plan(phantoms, fold, plan, tmp_path, data_hash="other data")


def test_the_tables_are_printed_with_one_json_line_last(froc_runs, phantoms, tmp_path, monkeypatch, capsys):
    froc = importlib.import_module("froc")
    from unary.datasets.manifest import write_manifest

    write_manifest(phantoms, tmp_path / "all.csv")
    arguments = ["froc.py", "--data", str(tmp_path / "all.csv"), "--out", str(tmp_path / "out"), "--folds", str(FOLDS)]
    monkeypatch.setattr("sys.argv", [*arguments, "--seeds", "0", "--detectors", "laplacian", "--held-out", "0.4"])
    monkeypatch.setattr(froc, "draw_image_folds", lambda *a, **k: froc_runs.draw_image_folds(*a, **k)[:2])
    froc.main()
    lines = capsys.readouterr().out.splitlines()
    printed = json.loads(lines[-1])
    stored = json.loads((tmp_path / "out" / "froc.json").read_text())
    assert printed["sensitivities"] == stored["sensitivities"]
    clusters = next(row for row in stored["sensitivities"] if row["group"].startswith("calcification clusters"))
    assert clusters["n_normal_images"] == 4
    assert 0 <= clusters["sensitivity"]["1"] <= clusters["hit_by_any"] <= 1
    assert {row["point"] for row in stored["false_alarms"]} == {"0.1", "0.5", "1", "2"}
    pictures = list((tmp_path / "out").glob("*.png"))
    assert {"froc-masses.png", "alarms-laplacian-fold0.png"} <= {path.name for path in pictures}
    assert np.isfinite([row["auroc"] for row in stored["pixels"]]).all()
