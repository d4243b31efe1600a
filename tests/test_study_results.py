"""The objects of studies that `unary detect` writes, on phantoms."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pydicom
import pytest
from PIL import Image as Picture
from test_outputs_dicom import find_errors
from test_outputs_dicom_study import codes, texts

from unary.cli.main import main
from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.clinic.pacs_files import select_files
from unary.clinic.study_results import write_study_results
from unary.datasets.folder import list_files
from unary.errors import UnaryError
from unary.models.bundle import identify_model, read_model, write_model
from unary.models.examination import choose_point
from unary.models.fitting import FitConfig, fit
from unary.outputs.dicom import STUDY_KINDS
from unary.outputs.dicom import cad_report as cad
from unary.outputs.dicom import study_summary as summing
from unary.outputs.dicom.run import Run

KINDS = ("report", *STUDY_KINDS)
MOMENT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
CANARY = "KANARIE"


@pytest.fixture
def study(phantoms, tmp_path):
    """Return a folder with the images of one abnormal patient, and of them two that have no result."""
    folder = tmp_path / "in"
    folder.mkdir()
    paths = [row.path for row in phantoms.rows if row.patient_id == phantoms.rows[-1].patient_id]
    for path in paths:
        shutil.copy(path, folder)
    implant = pydicom.dcmread(paths[0])
    implant.SOPInstanceUID = implant.file_meta.MediaStorageSOPInstanceUID = f"{implant.SOPInstanceUID[:-2]}91"
    implant.BreastImplantPresent = "YES"
    implant.save_as(folder / "implant.dcm", enforce_file_format=True)
    cut = pydicom.dcmread(paths[0])
    cut.SOPInstanceUID = cut.file_meta.MediaStorageSOPInstanceUID = f"{cut.SOPInstanceUID[:-2]}92"
    cut.PixelData = cut.PixelData[:-2000]
    cut.save_as(folder / "cut.dcm", enforce_file_format=True)
    return folder


def run(model_folder, inputs, out, *, moment=MOMENT, kinds=KINDS):
    model = read_model(model_folder)
    config = DetectConfig(dicom=kinds)
    return detect_files(model, inputs, out, config, model_folder=model_folder, moment=moment, progress=False)


def find_studies(out):
    return sorted(path for path in out.iterdir() if path.name.startswith("study-"))


def test_a_study_has_its_objects_with_every_image_that_was_examined_refused_and_failed(model_folder, study, tmp_path):
    Picture.new("L", (300, 300)).save(study / "film.png")  # in no study
    summary = run(model_folder, [study], tmp_path / "out")
    assert {failure.reason for failure in summary.failed} >= {"IMPLANT", "CORRUPT_PIXELS"}
    (folder,) = find_studies(tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["cad_report.dcm", "study.json", "study_summary.dcm"]
    record = json.loads((folder / "study.json").read_text())
    assert sorted((image["state"], image["reason"]) for image in record["images"]) == [
        ("examined", ""),
        ("examined", ""),
        ("failed", "CORRUPT_PIXELS"),
        ("refused", "IMPLANT"),
    ]
    for kind in STUDY_KINDS:
        assert find_errors(folder / f"{kind}.dcm") == []
    report, told = (pydicom.dcmread(folder / f"{kind}.dcm") for kind in STUDY_KINDS)
    source = pydicom.dcmread(next(study.glob("P*.dcm")))
    assert report.StudyInstanceUID == told.StudyInstanceUID == source.StudyInstanceUID
    assert codes(report, cad.DETECTIONS) == [cad.SOME_SUCCEEDED.value]
    assert sorted(codes(told, summing.STATE)) == ["EXAMINED", "EXAMINED", "FAILED", "REFUSED"]
    assert any(text.startswith("refused, IMPLANT: the breast has an implant") for text in texts(told, summing.REASON))
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/result.json")]
    assert len(codes(report, cad.FINDING)) == sum(len(result["findings"]) for result in results) > 0
    tracked = {
        str(pydicom.dcmread(tmp_path / "out" / result["summary"]["image"] / "report.dcm").StudyInstanceUID)
        for result in results
    }
    assert tracked == {str(source.StudyInstanceUID)}
    stored = (folder / "study.json").read_text() + (tmp_path / "out" / "run.json").read_text()
    assert str(source.StudyInstanceUID) not in stored


def read_objects(out):
    return {path.name: path.read_bytes() for folder in find_studies(out) for path in folder.glob("*.dcm")}


def test_a_rerun_makes_the_same_objects_and_another_image_other_ones(model_folder, study, tmp_path):
    out = tmp_path / "out"
    hidden = tmp_path / "later.dcm"
    shutil.move(study / "implant.dcm", hidden)
    run(model_folder, [study], out)
    before = read_objects(out)
    assert len(before) == 2
    run(model_folder, [study], out, moment=MOMENT + timedelta(days=1))
    assert read_objects(out) == before
    (folder,) = find_studies(out)
    (folder / "cad_report.dcm").write_bytes(b"damaged")
    run(model_folder, [study], out, moment=MOMENT + timedelta(days=2))
    assert read_objects(out) == before, "what is damaged is made anew, the same"
    shutil.move(hidden, study)
    run(model_folder, [study], out, moment=MOMENT + timedelta(days=3))
    after = read_objects(out)
    assert all(after[name] != before[name] for name in before)
    assert pydicom.dcmread(folder / "study_summary.dcm").ContentDate == "20260203"  # of the results, not of the failure


def test_a_study_without_any_result_has_a_summary_and_keeps_it(model_folder, study, tmp_path):
    for path in study.glob("P*.dcm"):
        path.unlink()
    run(model_folder, [study], tmp_path / "out")
    before = read_objects(tmp_path / "out")
    (folder,) = find_studies(tmp_path / "out")
    report = pydicom.dcmread(folder / "cad_report.dcm")
    assert codes(report, cad.DETECTIONS) == [cad.NONE_SUCCEEDED.value]
    assert (report.ContentDate, report.ContentTime[:6]) == ("20260203", "040506")
    run(model_folder, [study], tmp_path / "out", moment=MOMENT + timedelta(days=1))
    assert read_objects(tmp_path / "out") == before


def test_objects_of_a_study_are_sent_and_are_no_images(model_folder, study, tmp_path):
    out = study / "results"  # inside the input
    run(model_folder, [study], out)
    sent = [parcel.path.stem for parcel in select_files([out]).parcels]
    assert sorted(sent) == ["cad_report", "report", "report", "study_summary"]
    images, left_out = list_files(study)
    assert not [path for path in images if out in path.parents]
    assert find_studies(out)[0] in left_out["unary's own results"]


def test_two_patients_with_one_study_identifier_have_objects_of_their_own(model_folder, study, tmp_path):
    for path in (study / "implant.dcm", study / "cut.dcm"):
        path.unlink()
    path = next(study.glob("P*.dcm"))
    other = pydicom.dcmread(path)
    other.PatientID = CANARY
    other.save_as(path, enforce_file_format=True)
    run(model_folder, [study], tmp_path / "out")
    folders = find_studies(tmp_path / "out")
    patients = {str(pydicom.dcmread(folder / "study_summary.dcm").PatientID) for folder in folders}
    assert len(folders) == len(patients) == 2
    assert CANARY in patients


def test_what_unary_has_not_written_is_left_alone_and_told(model_folder, study, tmp_path):
    out = tmp_path / "out"
    run(model_folder, [study], out)
    (folder,) = find_studies(out)
    (folder / "study.json").unlink()
    before = read_objects(out)
    (study / "cut.dcm").unlink()
    summary = run(model_folder, [study], out)
    assert read_objects(out) == before
    assert any("unary has not written it" in remark for remark in summary.remarks)


def test_results_of_another_model_are_not_told_of(model_folder, study, tmp_path):
    run(model_folder, [study], tmp_path / "out", kinds=("report",))
    model = read_model(model_folder)
    point = choose_point(model, None)
    known = Run(identify_model(model, model_folder), model.profile.codes, MOMENT)
    paths = sorted(study.glob("*.dcm"))
    stranger = replace(known, identity=replace(known.identity, sha256="0" * 64))
    states = []
    for by in (known, stranger):
        (found,) = write_study_results(tmp_path / "out", paths, by, point).studies
        record = json.loads((found.folder / "study.json").read_text())
        states.append([image["state"] for image in record["images"]].count("examined"))
    assert states == [2, 0]


def test_the_command_writes_them_and_a_general_model_has_no_cad_report(model_folder, normals, study, tmp_path, capsys):
    arguments = ["detect", str(model_folder), str(study), "--out", str(tmp_path / "out"), "--dicom"]
    assert main([*arguments, "cad_report,study_summary"]) == 3
    (folder,) = find_studies(tmp_path / "out")
    assert (folder / "cad_report.dcm").exists()
    assert not list((tmp_path / "out").glob("P*/*.dcm"))
    model = fit(normals, FitConfig(held_out=0.5, size_px=64), detector="laplacian", profile="general", progress=False)
    write_model(model, tmp_path / "general")
    capsys.readouterr()
    assert (
        main(["detect", str(tmp_path / "general"), str(study), "--out", str(tmp_path / "no"), "--dicom=cad_report"])
        == 2
    )
    assert "a CAD report is of mammograms; this model's profile is 'general'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown kind 'cad'"):
        DetectConfig(dicom=("cad",))
    with pytest.raises(UnaryError, match="CAD report"):
        detect_files(
            model, [study], tmp_path / "no", DetectConfig(dicom=("cad_report",)), model_folder=tmp_path / "general"
        )
