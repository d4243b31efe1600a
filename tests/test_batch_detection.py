"""`unary detect` from files to results, on phantoms."""

import csv
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile

import unary
from unary.cli.main import main
from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.clinic.batch_scoring import score_files
from unary.errors import ImageError
from unary.images.reading import read_image
from unary.models.bundle import read_model, write_model
from unary.models.examination import examine_image
from unary.models.fitting import FitConfig, fit
from unary.training.threads import using_threads


@pytest.fixture(scope="module")
def lesional(phantoms):
    """Return the row of an image with calcifications."""
    names = {lesion.image_id for lesion in phantoms.lesions if lesion.name.startswith("Calc")}
    return next(row for row in phantoms.rows if row.image_id in names)


def read_result(folder):
    return json.loads((folder / "result.json").read_text())


def list_files(folder):
    """Return the names of what is in a folder, but for what the page of results shows, which `result.json` names."""
    views = read_result(folder)["views"]
    shown = {views["whole"], views["map"], *(place["file"] for place in views["places"])}
    names = {path.name for path in folder.iterdir()}
    assert shown <= names
    return sorted(names - shown)


def test_a_planted_cluster_is_found_in_every_output(model_folder, phantoms, lesional, tmp_path):
    out = tmp_path / "out"
    arguments = ["detect", str(model_folder), str(lesional.path), "--out", str(out), "--maps", "--operating-point", "2"]
    assert main(arguments) == 0
    (folder,) = [path for path in out.iterdir() if path.is_dir()]
    assert list_files(folder) == [
        "capture.dcm",
        "findings.csv",
        "findings.png",
        "heat_map.png",
        "map.tiff",
        "report.dcm",
        "result.json",
        "segmentation.dcm",
    ]
    result = read_result(folder)
    points = np.concatenate([lesion.points for lesion in phantoms.lesions_of(lesional.image_id)])
    box = result["findings"][0]["box"]
    assert ((points >= box[:2]) & (points < box[2:])).all(axis=1).any()
    assert "guaranteed" in result["guarantee"] or "estimate" in result["guarantee"]
    assert "not for diagnosis" in result["notice"].lower()
    with (folder / "findings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [found["score"] for found in result["findings"]]
    segments = pydicom.dcmread(folder / "segmentation.dcm")
    assert len(segments.SegmentSequence) == len(rows)
    source = pydicom.dcmread(lesional.path)
    assert pydicom.dcmread(folder / "report.dcm").StudyInstanceUID == source.StudyInstanceUID


def test_score_and_detect_give_the_same_map_and_image_score(model_folder, lesional, tmp_path):
    outs = [tmp_path / "scored", tmp_path / "detected"]
    assert main(["score", str(model_folder), str(lesional.path), "--out", str(outs[0])]) == 0
    assert main(["detect", str(model_folder), str(lesional.path), "--out", str(outs[1]), "--maps", "--dicom=none"]) == 0
    scored, detected = (out / lesional.path.stem for out in outs)
    expected = examine_image(read_model(model_folder), read_image(lesional.path))
    for folder in (scored, detected):
        assert np.array_equal(tifffile.imread(folder / "map.tiff"), expected.anomaly_map, equal_nan=True)
        assert read_result(folder)["image_score"] == expected.image_score
        assert read_result(folder)["summary"]["image_score"] == expected.image_score
    assert (scored / "map.tiff").read_bytes() == (detected / "map.tiff").read_bytes()
    with (scored / "scores.csv").open(newline="") as file:
        assert [float(row["score"]) for row in csv.DictReader(file)] == expected.scores.tolist()


def test_a_model_that_is_not_calibrated_marks_no_patch(normals, lesional, tmp_path):
    model = fit(normals, FitConfig(held_out=0.0), detector="laplacian", progress=False)
    write_model(model, tmp_path / "model")
    score_files(model, [lesional.path], tmp_path / "out", model_folder=tmp_path / "model", progress=False)
    folder = tmp_path / "out" / lesional.path.stem
    with (folder / "scores.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["row", "col", "size_px", "score"]
    assert read_result(folder)["operating_points"] == []
    assert set(read_result(folder)["summary"]) == {"image", "image_score", "patches", "out_of_domain"}


def test_results_of_a_general_model_speak_of_no_breast(normals, lesional, tmp_path):
    model = fit(normals, FitConfig(held_out=0.5, size_px=64), detector="laplacian", profile="general", progress=False)
    write_model(model, tmp_path / "model")
    kinds = "report,segmentation,capture,heat_map,presentation"
    plain = pydicom.dcmread(lesional.path)
    plain.SOPClassUID = plain.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    plain.Modality, plain.StudyDescription = "DX", "Thorax"
    plain.save_as(tmp_path / "film.dcm")
    arguments = ["detect", str(tmp_path / "model"), str(tmp_path / "film.dcm"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--maps", "--dicom", kinds]) == 0
    files = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".dcm", ".json", ".csv")]
    assert len([path for path in files if path.suffix == ".dcm"]) == 5
    for path in files:
        assert not [word for word in (b"mammo", b"breast") if word in path.read_bytes().lower()], path.name


def read_folder(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_rerun_keeps_and_a_redone_result_has_the_same_bytes_of_the_same_moment(model_folder, lesional, tmp_path):
    path, folder = tmp_path / "image.dcm", tmp_path / "out" / "image"
    shutil.copy(lesional.path, path)
    model = read_model(model_folder)
    zone = timezone(timedelta(hours=5, minutes=30))
    moments = [datetime(2026, 1, day, 23, 59, tzinfo=zone) for day in (1, 2)]

    def run(moment):
        detect_files(model, [path], tmp_path / "out", model_folder=model_folder, moment=moment, progress=False)
        return read_folder(folder)

    before = run(moments[0])
    assert run(moments[1]) == before, "what is there keeps its moment"
    shutil.rmtree(folder)
    assert run(moments[0]) == before
    report = pydicom.dcmread(folder / "report.dcm")
    assert (report.ContentDate, report.ContentTime[:4], report.TimezoneOffsetFromUTC) == ("20260101", "2359", "+0530")
    shutil.rmtree(folder)
    later = run(moments[1])
    assert later.keys() == before.keys()
    assert pydicom.dcmread(folder / "report.dcm").ContentDate == "20260102"
    assert pydicom.dcmread(folder / "report.dcm").SOPInstanceUID != report.SOPInstanceUID
    assert read_result(folder)["moment"] == "2026-01-02T23:59:00+05:30"


def test_operating_points_keep_more_or_fewer_findings(model_folder, phantoms, tmp_path):
    paths = [row.path for row in phantoms.rows[-4:]]
    counts = []
    for name, typed in (("0.1", "0.1"), ("0.5", ".50"), ("1", "1.0"), ("2", "2")):
        assert main(["detect", str(model_folder), *map(str, paths), "--out", str(tmp_path / name), "--dicom", "none",
                     "--operating-point", typed]) == 0  # fmt: skip
        results = [read_result(folder) for folder in sorted((tmp_path / name).iterdir()) if folder.is_dir()]
        assert {result["operating_point"]["name"] for result in results} == {name}
        assert all(
            found["score"] > result["operating_point"]["threshold"]
            for result in results
            for found in result["findings"]
        )
        counts.append(sum(len(result["findings"]) for result in results))
    assert counts == sorted(counts)


def test_broken_files_are_named_and_the_rest_goes_on(model_folder, lesional, tmp_path, capsys):
    (tmp_path / "broken.dcm").write_bytes(lesional.path.read_bytes()[:2000])
    shutil.copy(lesional.path, tmp_path / "good.dcm")
    inputs = [str(tmp_path / name) for name in ("broken.dcm", "good.dcm")]
    assert main(["detect", str(model_folder), *inputs, "--out", str(tmp_path / "out")]) == 3
    with (tmp_path / "out" / "failures.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["file"].endswith("broken.dcm")
    assert row["reason"] in ("CORRUPT_PIXELS", "NOT_READABLE", "NOT_AN_IMAGE")
    assert "1 file without a result (failures.csv says why)" in capsys.readouterr().out
    assert (tmp_path / "out" / "good" / "report.dcm").exists()
    assert main(["detect", str(model_folder), inputs[1], "--out", str(tmp_path / "sound")]) == 0
    assert "failures.csv" not in capsys.readouterr().out


def test_bad_files_of_every_kind_among_sound_ones_have_their_reasons(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from batch_failures import write_files, write_small_model

    (tmp_path / "in").mkdir()
    folder, sound = write_small_model(tmp_path)
    expected = write_files(tmp_path / "in", sound, 28, each=1)
    config = DetectConfig(dicom=())
    summary = detect_files(
        read_model(folder), [tmp_path / "in"], tmp_path / "out", config, model_folder=folder, progress=False
    )
    assert {failure.file: failure.reason for failure in summary.failed} == expected
    assert (len(expected), len(summary.done)) == (25, 3)


def test_files_without_spacing_need_a_word_and_then_have_sizes(model_folder, normals, lesional, tmp_path):
    model = fit(normals, FitConfig(held_out=0.0), detector="laplacian", progress=False)
    model = dataclasses.replace(model, preparation=dataclasses.replace(model.preparation, working_spacing_mm=0.3))
    write_model(model, tmp_path / "coarse")
    dataset = pydicom.dcmread(lesional.path)
    for keyword in ("ImagerPixelSpacing", "PixelSpacing"):
        if keyword in dataset:
            del dataset[keyword]
    dataset.save_as(tmp_path / "no_spacing.dcm")
    assert read_image(tmp_path / "no_spacing.dcm").spacing_mm is None
    summary = detect_files(
        model, [tmp_path / "no_spacing.dcm"], tmp_path / "out", model_folder=tmp_path / "coarse", progress=False
    )
    (failure,) = summary.failed
    assert failure.reason == "NO_SPACING"
    with pytest.raises(ImageError, match="pixel spacing") as caught:
        unary.detect(model, tmp_path / "no_spacing.dcm")
    assert caught.value.reason == "NO_SPACING"
    assert unary.detect(model, tmp_path / "no_spacing.dcm", spacing_mm=0.2).findings
    summary = detect_files(
        model,
        [tmp_path / "no_spacing.dcm"],
        tmp_path / "out",
        DetectConfig(spacing_mm=0.2),
        model_folder=tmp_path / "coarse",
        progress=False,
    )
    assert summary.done == ("no_spacing",)
    result = read_result(tmp_path / "out" / "no_spacing")
    findings, note = result["findings"], result["notes"][-1]
    assert findings
    assert note == "the pixel spacing of 0.2 mm was given by hand, and sizes rest on it: none can be read"
    assert note.encode() in (tmp_path / "out" / "no_spacing" / "report.dcm").read_bytes()
    assert all(found["diameter_mm"] > 0 for found in findings)
    assert all(found["p_value"] is None for found in findings)  # this one is not calibrated


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_end_leaves_what_is_done_and_says_so(model_folder, phantoms, tmp_path, capsys, monkeypatch, end):
    paths = [str(row.path) for row in phantoms.rows[:3]]
    before, calls = signal.getsignal(end), []

    def examine_then_end(model, image):
        calls.append(image)
        if len(calls) == 2:
            os.kill(os.getpid(), end)
        return examine_image(model, image)

    monkeypatch.setattr("unary.clinic.batch_detection.examine_image", examine_then_end)
    arguments = ["detect", str(model_folder), *paths, "--out", str(tmp_path / "out"), "--dicom", "none"]
    with using_threads(1):
        assert main(arguments) == 130
    assert signal.getsignal(end) == before
    told = capsys.readouterr().err
    assert "what was done is there, and summary.csv lists it" in told
    assert "run the same command again to go on" in told
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == folders == {phantoms.rows[0].path.stem}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "interrupted"
    assert main(arguments) == 0
    assert "3 images (1 of them done before)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["no SOP Instance UID", "a library's error", "a full disk"])
def test_where_dicom_objects_cannot_be_made_findings_are_kept_with_a_word_why(
    model_folder, lesional, tmp_path, capsys, monkeypatch, kind
):
    dataset = pydicom.dcmread(lesional.path)
    if kind == "no SOP Instance UID":
        del dataset.SOPInstanceUID
    dataset.save_as(tmp_path / "image.dcm", enforce_file_format=False)
    errors = {"a library's error": KeyError("Canary^Tweety"), "a full disk": OSError(errno.ENOSPC, "No space left")}
    if kind in errors:

        def fail(path, detection, run, folder, **options):
            (folder / "report.dcm").write_bytes(b"half")
            raise errors[kind]

        monkeypatch.setattr("unary.outputs.dicom.writing.write_dicom_results", fail)
    status = main(["detect", str(model_folder), str(tmp_path / "image.dcm"), "--out", str(tmp_path / "out")])
    told = capsys.readouterr()
    if kind == "a full disk":
        assert status == 2
        assert "no more results can be written (No space left); 0 are there" in told.err
        return
    assert status == 0
    folder = tmp_path / "out" / "image"
    assert list_files(folder) == ["findings.csv", "findings.png", "result.json"]
    missing = read_result(folder)["dicom_missing"]
    assert ("SOPInstanceUID" if kind == "no SOP Instance UID" else "an unexpected KeyError (") in missing
    assert f"image: DICOM results are missing: {missing}" in told.err
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["dicom_missing"] == missing
    assert "Canary" not in told.err + told.out + missing


def test_an_unknown_operating_point_and_kind_are_refused(model_folder, lesional, tmp_path, capsys):
    base = ["detect", str(model_folder), str(lesional.path), "--out", str(tmp_path / "out")]
    assert main([*base, "--operating-point", "7"]) == 2
    assert "0.1, 0.5, 1, 2" in capsys.readouterr().err
    assert main([*base, "--dicom", "hologram"]) == 2
    assert "hologram" in capsys.readouterr().err


def test_check_and_calibrate_on_the_command_line(model_folder, phantoms, lesional, tmp_path, capsys):
    from unary.datasets.manifest import write_manifest

    (tmp_path / "text.dcm").write_text("no image")
    answer = tmp_path / "answers.json"
    inputs = [str(lesional.path), str(tmp_path / "text.dcm")]
    assert main(["check", *inputs, "--model", str(model_folder), "--json", str(answer)]) == 3
    document = json.loads(answer.read_text())
    assert [entry["accepted"] for entry in document["files"]] == [True, False]
    capsys.readouterr()
    negatives = phantoms.select(tuple(row for row in phantoms.rows if row.label == "negative"))
    write_manifest(negatives, tmp_path / "normals.csv")
    arguments = ["calibrate", str(model_folder), str(tmp_path / "normals.csv"), "--out", str(tmp_path / "model")]
    assert main(arguments) == 2
    assert "--allow-seen" in capsys.readouterr().err
    assert main([*arguments, "--allow-seen"]) == 0
    assert "operating point 0.5" in capsys.readouterr().out
    assert (tmp_path / "model" / "model.json").exists()


def test_a_patient_name_reaches_no_log_and_no_table(model_folder, lesional, tmp_path):
    dataset = pydicom.dcmread(lesional.path)
    dataset.PatientName, dataset.PatientID = "Canary^Tweety", "CANARY77"
    dataset.save_as(tmp_path / "image.dcm")
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "image.dcm").read_bytes()[:3000])
    command = [sys.executable, "-m", "unary.cli", "detect", str(model_folder), str(tmp_path / "image.dcm"),
               str(tmp_path / "cut.dcm"), "--out", str(tmp_path / "out")]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 3
    texts = [ended.stdout, ended.stderr]
    texts += [path.read_text() for path in Path(tmp_path / "out").rglob("*") if path.suffix in (".json", ".csv")]
    assert not [text for text in texts if "canary" in text.lower()]
    assert str(pydicom.dcmread(tmp_path / "out" / "image" / "report.dcm").PatientID) == "CANARY77"  # the PACS needs it
