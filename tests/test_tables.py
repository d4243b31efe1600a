"""Results as Arrow and pandas: fixed schemas, the same numbers, the same memory where it is promised."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pyarrow
import pytest

import unary
from unary.errors import MissingPackageError
from unary.evaluation.evaluate import evaluate
from unary.evaluation.evaluated_image import build_outcomes
from unary.evaluation.froc import froc_curve
from unary.evaluation.lesion_query import list_queries
from unary.evaluation.metrics import list_figures
from unary.models.bundle import read_model
from unary.outputs import tables
from unary.outputs.evaluation_report import write_evaluation
from unary.records import NOTICE

KINDS = [kind for kind in vars(tables).values() if isinstance(kind, tables.TableKind)]


@pytest.fixture(scope="module")
def model(model_folder):
    return read_model(model_folder)


@pytest.fixture(scope="module")
def examined(model, phantoms):
    image = unary.read_image(next(row.path for row in phantoms.rows if row.label == "positive"))
    return unary.score(model, image), unary.detect(model, image, operating_point=2)


@pytest.fixture(scope="module")
def evaluation(model, phantoms):
    rows = [row for row in phantoms.rows if row.label == "positive"][:3]
    rows += [row for row in phantoms.rows if row.label == "negative"][:3]
    return evaluate(model, phantoms.select(tuple(rows)), allow_seen=True, progress=False)


def _address(column, at=1):
    assert column.num_chunks == 1
    return column.chunk(0).buffers()[at].address


def test_patches_are_the_memory_of_the_scores(examined):
    scored = examined[0]
    table = scored.to_arrow()
    assert table.column_names == ["row", "col", "score"]
    assert _address(table["score"]) == scored.scores.ctypes.data
    assert np.array_equal(np.stack([table["row"], table["col"]], axis=1), scored.origins)
    assert table.schema.field("row").metadata[b"unit"] == b"pixels of the working grid"
    assert table.schema.metadata[b"unary.table"] == b"patches"
    assert np.shares_memory(pyarrow.Tensor.from_numpy(scored.anomaly_map).to_numpy(), scored.anomaly_map)
    assert table.schema.metadata[b"unary.notice"] == NOTICE.encode()


def test_a_frame_is_the_memory_of_the_table(examined):
    pytest.importorskip("pandas", reason="data frames need the extra tables")
    scored = examined[0]
    frame = scored.to_frame()
    assert np.shares_memory(frame["score"].to_numpy(), scored.scores)
    assert not frame["score"].to_numpy().flags.writeable
    table = scored.to_arrow()
    row = tables.convert_to_frame(table)["row"].to_numpy()
    assert row.__array_interface__["data"][0] == _address(table["row"])
    assert np.array_equal(frame[["row", "col"]].to_numpy(), scored.origins)


def test_findings_keep_their_columns_and_gaps(examined):
    pytest.importorskip("pandas", reason="data frames need the extra tables")
    detection = examined[1]
    found = detection.findings
    assert len(found) >= 2
    table = detection.to_arrow("first")
    assert table.schema.equals(tables.FINDINGS.build_schema(), check_metadata=True)
    assert table["image"].to_pylist() == ["first"] * len(found)
    assert table["score"].to_pylist() == [finding.score for finding in found]
    assert table["kind"].to_pylist() == [finding.kind for finding in found]
    assert table.schema.field("area_mm2").metadata[b"unit"] == b"mm2"
    frame = detection.to_frame()
    assert tuple(frame.loc[0, ["r0", "c0", "r1", "c1"]]) == found[0].box
    assert frame["diameter_mm"].tolist() == [finding.diameter_mm for finding in found]
    assert frame["image"].isna().all()
    unknown = dataclasses.replace(found[0], p_value=None, area_mm2=None)
    table = dataclasses.replace(detection, findings=(unknown,)).to_arrow()
    assert table["p_value"].null_count == table["area_mm2"].null_count == 1
    empty = dataclasses.replace(detection, findings=()).to_arrow()
    assert (empty.num_rows, empty.schema) == (0, table.schema)


def test_findings_of_several_images_are_one_table(examined):
    detection = examined[1]
    nothing = dataclasses.replace(detection, findings=())
    table = unary.tabulate_findings({"a": detection, "b": nothing, "c": detection})
    count = len(detection.findings)
    assert table["image"].to_pylist() == ["a"] * count + ["c"] * count
    assert table["rank"].to_pylist() == [finding.rank for finding in detection.findings] * 2
    assert unary.tabulate_findings({}).schema.equals(tables.FINDINGS.build_schema(), check_metadata=True)


def test_other_libraries_take_results_as_they_are(examined):
    scored, detection = examined
    assert pyarrow.table(scored).equals(scored.to_arrow())
    assert pyarrow.table(detection).equals(detection.to_arrow())


def test_scores_of_a_test_set_name_no_patient(evaluation):
    scores = evaluation.patches
    table = tables.tabulate_scores(scores)
    for name, values in scores.scores.items():
        assert _address(table[f"score_{name}"]) == values.ctypes.data
        assert table.schema.field(f"score_{name}").metadata[b"unit"] == f"of {name}".encode()
    assert table["image"].to_pylist() == scores.image.tolist()
    assert table["positive"].to_pylist() == scores.positive.tolist()
    assert table["group_calcification"].to_pylist() == scores.groups["calcification"].tolist()
    patient = table["patient"].to_numpy()
    same = scores.patient[:, None] == scores.patient[None, :]
    assert np.array_equal(patient[:, None] == patient[None, :], same)
    assert patient.min() == 0
    assert patient.max() == len(np.unique(scores.patient)) - 1
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.drop_columns("image").schema) as writer:
        writer.write_table(table.drop_columns("image"))
    assert not any(name.encode() in sink.getvalue() for name in np.unique(scores.patient).tolist())


def test_curves_are_those_of_the_evaluation(evaluation, model):
    reading = model.profile.reading
    table = tables.tabulate_froc(evaluation, reading)
    groups = table["group"].to_pylist()
    assert "all" in groups
    curve = froc_curve(build_outcomes(evaluation.evaluated, list_queries(reading)["all"]))
    chosen = table.filter(pyarrow.compute.equal(table["group"].cast("string"), "all"))
    for name, values in zip(("false_rate", "sensitivity", "threshold"), curve, strict=True):
        assert np.array_equal(chosen[name].to_numpy(), values)
    lesionless = dataclasses.replace(
        evaluation, evaluated=tuple(image for image in evaluation.evaluated if image.normal)
    )
    assert tables.tabulate_froc(lesionless, reading).num_rows == 0


def test_figures_are_those_of_metrics_json(evaluation, model, tmp_path):
    write_evaluation(evaluation, model, tmp_path, resamples=50, progress=False)
    document = json.loads((tmp_path / "metrics.json").read_text())
    table = tables.tabulate_metrics(document)
    found = {row["name"]: row for row in table.to_pylist()}
    own = document["detectors"]["laplacian"]["all"]
    auroc = found["detectors/laplacian/all/auroc"]
    assert auroc["value"] == own["auroc"]
    assert [auroc["low"], auroc["high"]] == (own["auroc_ci95"] or [None, None])
    froc = document["detection"]["froc"]["all"]
    assert found["detection/froc/all/sensitivity/0.5"]["value"] == froc["sensitivity"]["0.5"]
    assert found["detection/counts/images"]["value"] == 6
    numbers = json.dumps(document["detectors"]) + json.dumps(document["detection"])
    assert all(json.dumps(row["value"]).removesuffix(".0") in numbers for row in found.values())


def test_intervals_are_found_beside_their_figures():
    entry = {
        "average_precision": 0.5,
        "average_precision_ci95": None,
        "sensitivity_at_specificity": {"0.90": 0.7, "0.95": 0.6},
        "sensitivity_ci95": {"0.90": [0.6, 0.8], "0.95": None},
        "expected_is_guaranteed": True,
    }
    found = {figure.path[-1]: figure for figure in list_figures({"detectors": {"x": entry}, "meta": {"seed": 3}})}
    assert list(found) == ["average_precision", "0.90", "0.95"]
    assert (found["0.90"].low, found["0.90"].high) == (0.6, 0.8)
    assert found["0.95"].low is None
    assert found["average_precision"].high is None


def test_a_calibration_becomes_tables(model):
    calibration = model.calibration
    points = tables.tabulate_points(calibration).to_pylist()
    assert points == [dataclasses.asdict(point) for point in calibration.operating_points]
    images = tables.tabulate_normal_images(calibration)
    assert images["score"].to_pylist() == list(calibration.scores)
    assert sum(images["weight"].to_pylist()) == pytest.approx(calibration.patients)
    assert images["patches"].to_pylist() == [image.patch_count for image in calibration.images]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_says_what_its_columns_hold(kind):
    schema = kind.build_schema()
    assert schema.names == kind.names
    assert all(schema.field(name).metadata[b"about"] for name in kind.names)
    assert schema.metadata[b"unary.table_version"] == str(kind.version).encode()
    assert kind.build({name: [] for name in kind.names}).num_rows == 0


def test_frames_name_the_extra_that_they_need(examined, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for result in examined:
        assert result.to_arrow().num_rows > 0
        with pytest.raises(MissingPackageError, match=r"pip install 'unary\[tables\]'"):
            result.to_frame()


def test_the_kinds_are_known_without_arrow():
    code = "import sys, unary.outputs.tables; assert not {'pyarrow', 'pandas', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
