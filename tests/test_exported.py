"""Exported models: graphs that say what their detectors say, checked, run without torch, refused when damaged."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_detectors import SIZE, find_origins, fit_detector, make_view

from unary.cli.main import main
from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.detectors import DETECTORS
from unary.detectors.graphs import build_graph, smooth_out, windows
from unary.detectors.protocol import View
from unary.errors import BundleError, DetectorError, MissingPackageError
from unary.models.bundle import MODEL_FILE, hash_content, read_model, write_model
from unary.models.examination import examine_image
from unary.models.export_parity import LIMIT, STEP_LIMIT, STEP_SHARE, Parity
from unary.models.exported import GRAPH_FILE, ExportedConfig, ExportedDetector
from unary.models.exporting import export_model
from unary.models.fitting import FitConfig, fit
from unary.models.probe import choose_picture, draw_picture
from unary.records import NOTICE
from unary.training.threads import using_threads

pytestmark = pytest.mark.usefixtures("few_templates")

pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnxruntime is not installed")

EXPORTABLE = [name for name in DETECTORS if name != "nearest_neighbour"]
DOCS = Path(__file__).parents[1] / "docs" / "export.md"


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory):
    """Return the folder, not to be written to, of the exported model of `model_folder`."""
    out = tmp_path_factory.mktemp("exported") / "laplacian"
    export_model(model_folder, out)
    return out


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def export_detector(detector, name="fusion"):
    muscle = ExportedConfig(name, SIZE, muscle=True)
    return ExportedDetector(muscle, build_graph(detector, SIZE).SerializeToString())


def measure(detector, graph, view):
    """The largest differences of map and scores, relative to the largest value, and the share of the map beyond."""
    origins = find_origins(view, 24)
    mine, theirs = (each.examine(view, origins, size_px=SIZE) for each in (detector, graph))
    assert np.array_equal(np.isnan(mine.anomaly_map), np.isnan(theirs.anomaly_map))
    away = np.abs(mine.anomaly_map - theirs.anomaly_map) / np.nanmax(np.abs(mine.anomaly_map))
    scores = np.abs(mine.scores - theirs.scores).max(initial=0) / np.abs(mine.scores).max(initial=1e-30)
    return float(np.nanmax(away)), scores, float((away > LIMIT).mean())


@pytest.mark.parametrize("name", EXPORTABLE)
def test_a_graph_says_what_its_detector_says(name):
    detector = fit_detector(name)
    exact = smooth_out(detector)
    views = [make_view(7), *([make_view(7, (66, 70))] if name == "fusion" else [])]  # in the smaller one mass is silent
    graph = export_detector(exact or detector)
    for view in views:
        found = measure(exact or detector, graph, view)
        assert max(found[:2]) <= LIMIT
    if exact is not None and name != "fusion_prior":  # as it is written, with numbers rounded to bfloat16
        found = measure(detector, export_detector(detector), views[0])
        assert max(found[:2]) <= STEP_LIMIT
        assert found[2] <= STEP_SHARE


@pytest.mark.parametrize("name", ["blind_spot", "wei2018", "mass"])
def test_threads_change_nothing_and_no_patches_are_needed(name):
    """Windows that overlap are added up without a race: onnxruntime's own loses some of what threads add at once."""
    graph, view = export_detector(fit_detector(name)), make_view(3, (600, 400))
    answers = []
    for threads in (1, 2, 3, 4):
        with using_threads(threads):
            answers.append(graph.examine(view, find_origins(view), size_px=SIZE))
    for other in answers[1:]:
        assert np.array_equal(answers[0].anomaly_map, other.anomaly_map, equal_nan=True)
        assert np.array_equal(answers[0].scores, other.scores)
    nothing = graph.examine(view, np.zeros((0, 2), np.int32), size_px=SIZE)
    assert nothing.scores.shape == (0,)
    assert np.array_equal(nothing.anomaly_map, answers[0].anomaly_map, equal_nan=True)
    assert graph.examine(view, find_origins(view), size_px=SIZE, with_map=False).anomaly_map is None


def test_a_view_without_tissue_has_no_answer():
    view = make_view(3)
    empty = View(np.zeros_like(view.pixels), np.zeros_like(view.mask))
    found = export_detector(fit_detector("prominence")).examine(empty, np.zeros((0, 2), np.int32), size_px=SIZE)
    assert np.isnan(found.anomaly_map).all()


def test_parts_that_are_silent_are_named(exported):
    detector = read_model(exported).detector
    assert detector.config == ExportedConfig("laplacian", 128)
    assert detector.least_side_px == 0


def test_what_is_exported_examines_as_the_model(model_folder, exported, phantoms, tmp_path):
    model, other = read_model(model_folder), read_model(exported)
    assert other.calibration == model.calibration
    assert (other.level, other.preparation, other.grid, other.profile) == (
        model.level, model.preparation, model.grid, model.profile
    )  # fmt: skip
    picture = draw_picture(choose_picture(model))
    mine, theirs = examine_image(model, picture), examine_image(other, picture)
    assert theirs.image_score == pytest.approx(mine.image_score, rel=LIMIT)
    files = [row.path for row in phantoms.rows if row.label == "positive"][:2]
    for folder, applied in ((model_folder, model), (exported, other)):
        detect_files(applied, files, tmp_path / applied.detector.__class__.__name__, DetectConfig(dicom=()),
                     model_folder=folder, progress=False)  # fmt: skip
    for path in files:
        one, two = (
            json.loads((tmp_path / kind / path.stem / "result.json").read_text())["findings"]
            for kind in ("Laplacian", "ExportedDetector")
        )
        assert [finding["box"] for finding in one] == [finding["box"] for finding in two]
        assert [finding["score"] for finding in one] == pytest.approx([finding["score"] for finding in two], rel=LIMIT)


def test_the_command_line_runs_it_without_torch(exported, phantoms, tmp_path):
    path = next(row.path for row in phantoms.rows if row.label == "positive")
    script = (
        "import sys\nfrom unary.cli.main import main\n"
        "status = main(sys.argv[1:])\n"
        "assert status == 0, status\n"
        "assert not {'torch', 'onnx', 'onnxscript'} & set(sys.modules)\n"
    )
    command = ["detect", str(exported), str(path), "--out", str(tmp_path / "out"), "--dicom", "none"]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert NOTICE in done.stdout
    assert (tmp_path / "out" / path.stem / "findings.csv").is_file()


def test_the_command_line_exports_and_tells_the_differences(model_folder, phantoms, tmp_path, capsys):
    path = phantoms.rows[0].path
    missing = tmp_path / "missing.dcm"
    status = main(["export", str(model_folder), "--out", str(tmp_path / "out"), "--images", str(path), str(missing)])
    told = capsys.readouterr()
    assert status == 3
    assert "missing.dcm" in told.err
    assert len(re.findall(r"map \d\.\de-\d\d, patch scores \d\.\de.\d\d.*same findings", told.out)) == 2
    assert NOTICE in told.out
    assert json.loads((tmp_path / "out" / MODEL_FILE).read_text())["parity"]["images"] == 2
    assert main(["export", str(model_folder), "--out", str(tmp_path / "out")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", str(model_folder), "--out", str(tmp_path / "out"), "--overwrite"]) == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    assert main(["export", str(model_folder), "--out", str(tmp_path / "other")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_graph_that_says_something_else_is_not_written(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "_FLOOR", 2e-4)
    with pytest.raises(BundleError, match=r"nothing is written.*\n?.*the test picture: map"):
        export_model(model_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_close_is_said_by_all_differences():
    close = Parity("a", 9e-5, 1e-6, 1e-7, 0.0)
    assert close.is_close
    for name in ("map", "scores", "image_score"):
        assert not dataclasses.replace(close, **{name: 1.1e-4}).is_close
    rounded = dataclasses.replace(close, map=5e-3, exact=1e-6)
    assert rounded.is_close
    for change in ({"exact": 1.1e-4}, {"map": 9e-3}, {"beyond": 2e-3}):
        assert not dataclasses.replace(rounded, **change).is_close


def test_what_cannot_be_exported_says_why(normals, tmp_path):
    model = fit(normals, FitConfig(held_out=0), detector="nearest_neighbour", profile="general", progress=False)
    write_model(model, tmp_path / "model")
    with pytest.raises(DetectorError, match="keeps its normal pictures"):
        export_model(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()

    class Own:
        """Not unary's."""

    with pytest.raises(DetectorError, match="its author"):
        build_graph(Own(), SIZE)


def test_an_exported_model_is_applied_alone(exported, tmp_path):
    model = read_model(exported)
    with pytest.raises(DetectorError, match="fit the detector and export it"):
        model.detector.fit(None, None)
    with pytest.raises(DetectorError, match="not written as a model again"):
        write_model(model, tmp_path / "model")
    with pytest.raises(BundleError, match="an exported model already"):
        export_model(exported, tmp_path / "again")


def edit(folder, change, *, hashed=True):
    path = folder / MODEL_FILE
    content = json.loads(path.read_text()) | change
    if hashed:
        content["sha256"] = hash_content(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / GRAPH_FILE).write_bytes(b"0" * 100), r"graph\.onnx: not the graph"),
        (lambda folder: (folder / GRAPH_FILE).unlink(), r"graph\.onnx: the graph is missing"),
        (lambda folder: edit(folder, {"export_format": 2}), "another unary exported it"),
        (lambda folder: edit(folder, {"level": 0.0}, hashed=False), r"model\.json: .*edited"),
        (lambda folder: edit(folder, {"level": 1e9}), "level must be the last of peaks"),
        (lambda folder: edit(folder, {"foreign": 1}), "unknown field 'foreign'"),
    ],
)
def test_a_damaged_export_is_refused_by_name(copied, damage, said):
    damage(copied)
    with pytest.raises(BundleError, match=said):
        read_model(copied)


def test_without_onnxruntime_the_extra_is_named(exported, monkeypatch):
    model = read_model(exported)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"unary\[onnxruntime\]"):
        examine_image(model, draw_picture(choose_picture(model)))


def test_a_graph_says_where_it_comes_from_and_nothing_of_patients(model_folder, exported, normals):
    about = onnxruntime.InferenceSession(exported / GRAPH_FILE).get_modelmeta().custom_metadata_map
    model, document = read_model(model_folder), json.loads((exported / MODEL_FILE).read_text())
    assert about["unary.notice"] == document["notice"] == NOTICE
    for name in ("preparation", "grid", "calibration", "profile", "domain", "provenance", "level", "findings"):
        assert json.loads(about[f"unary.{name}"]) == document[name]
    assert document["provenance"]["data_hash"] == model.provenance.data_hash
    assert document["provenance"]["seen"] == {"count": model.provenance.seen.count, "hashes": [], "key": None}
    everything = (exported / GRAPH_FILE).read_bytes() + (exported / MODEL_FILE).read_bytes()
    patients = {row.patient_id for row in normals.rows} | set(model.provenance.seen.hashes)
    assert patients
    assert not any(patient.encode() in everything for patient in patients)


def test_the_script_of_the_docs_runs_the_graph(exported, tmp_path):
    script = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL).group(1)
    assert "unary" not in re.findall(r"^(?:import|from) (\w+)", script, re.MULTILINE)
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "run.py", exported], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = np.load(exported / "example.npz")["map"]
    row, col = np.unravel_index(np.nanargmax(expected), expected.shape)
    assert f"highest value {expected[row, col]:.4g} at row {row}, column {col}" in done.stdout
    assert NOTICE in done.stdout
    assert "as expected: True" in done.stdout
