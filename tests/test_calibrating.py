import dataclasses
import logging

import numpy as np
import pytest

import unary.models.calibrating
from unary.errors import CalibrationError, DetectorError, SplitError
from unary.images.reading import read_image
from unary.models.calibrating import calibrate_model
from unary.models.examination import examine_image
from unary.models.findings import FindingsConfig
from unary.models.fitting import FitConfig, fit
from unary.models.patients import read_key
from unary.records import Lesion

QUICK = FitConfig(size_px=64, stride_px=32)


def patients_of(manifest):
    return sorted({row.patient_id for row in manifest.rows})


def choose(manifest, patients):
    return manifest.select(tuple(row for row in manifest.rows if row.patient_id in patients))


@pytest.fixture(scope="module")
def fitted(normals):
    """Fitted on two patients, which are too few to hold any out."""
    return fit(choose(normals, patients_of(normals)[:2]), QUICK, detector="laplacian", progress=False)


@pytest.fixture(scope="module")
def others(normals):
    """The four normal patients that were not trained on."""
    return choose(normals, patients_of(normals)[2:])


def test_a_calibration_is_what_its_images_score(fitted, others):
    model = calibrate_model(fitted, others, progress=False)
    assert fitted.calibration is None, "the model given stays as it is"
    calibration = model.calibration
    assert calibration.patients == 4
    scores = [examine_image(fitted, read_image(row.path)).candidates.image_score for row in others.rows]
    assert np.allclose(calibration.scores, np.sort(scores))
    assert np.allclose(calibration.weights, 0.5)
    for score in scores:
        assert 0.2 <= calibration.find_p_value(score) <= 1
    again = calibrate_model(model, choose(others, patients_of(others)[:2]), progress=False)
    assert again.calibration.patients == 2, "a former calibration is replaced"


def test_positives_and_unknown_labels_are_refused(fitted, phantoms, others):
    with pytest.raises(CalibrationError, match=r"6 of 18 images .* positive or unlabelled .*--only negative"):
        calibrate_model(fitted, phantoms)
    unknown = tuple(dataclasses.replace(row, label=None) for row in others.rows)
    with pytest.raises(CalibrationError, match="8 of 8"):
        calibrate_model(fitted, others.select(unknown))


def test_seen_patients_are_refused(fitted, normals):
    with pytest.raises(SplitError, match=r"fitted on 2 patients .* --allow-seen"):
        calibrate_model(fitted, normals, progress=False)
    calibration = calibrate_model(fitted, normals, allow_seen=True, progress=False).calibration
    assert calibration.patients == 6
    assert not any(point.guaranteed for point in calibration.operating_points)
    assert {point.false_alarm_rate for point in calibration.operating_points} == {1.0, None}


def test_benign_lesions_and_incomplete_annotations_are_not_normal(fitted, others, caplog):
    first, second = patients_of(others)[:2]
    rows = [dataclasses.replace(row, complete=row.patient_id != first) for row in others.rows]
    benign = next(row.image_id for row in rows if row.patient_id == second)
    lesion = Lesion(benign, "Calcification", "point", ((5.0, 5.0),))
    with caplog.at_level(logging.WARNING):
        manifest = dataclasses.replace(others, rows=tuple(rows), lesions=(lesion,))
        model = calibrate_model(fitted, manifest, progress=False)
    assert "3 images hold benign lesions" in caplog.text
    assert len(model.calibration.scores) == 5
    assert model.calibration.patients == 3
    assert sorted(model.calibration.weights) == [0.5] * 4 + [1.0]
    few = dataclasses.replace(manifest, rows=tuple(row for row in rows if row.patient_id in (first, second)))
    with pytest.raises(CalibrationError, match="at least two patients"):
        calibrate_model(fitted, few, progress=False)


def test_images_that_cannot_be_used_are_skipped_by_name(fitted, others, tmp_path, caplog, monkeypatch):
    (tmp_path / "broken.dcm").write_bytes(b"no image")
    broken = dataclasses.replace(others.rows[0], path=tmp_path / "broken.dcm", image_id="broken")
    real = unary.models.calibrating.examine_image
    empty = others.rows[1].path

    def examine(model, image):
        examined = real(model, image)
        if image.path == empty:
            nothing = dataclasses.replace(examined.candidates, scores=np.zeros(0), highest=None)
            return dataclasses.replace(examined, candidates=nothing)
        return examined

    monkeypatch.setattr(unary.models.calibrating, "examine_image", examine)
    with caplog.at_level(logging.WARNING):
        model = calibrate_model(fitted, others.select((broken, *others.rows[1:])), progress=False)
    assert "broken.dcm" in caplog.text
    assert f"{empty.name}: no pixel of it could be scored" in caplog.text
    assert len(model.calibration.scores) == len(others.rows) - 2
    assert all(patient not in caplog.messages for patient in patients_of(others))


def test_a_patch_level_point_is_what_patches_of_the_normals_score(fitted, others):
    model = calibrate_model(fitted, others, progress=False)
    point = model.calibration.find_operating_point("patch_0.95")
    assert (point.unit, point.rate, point.false_alarm_rate) == ("patch", 0.05, None)
    above = [
        float((examine_image(fitted, read_image(row.path)).scores > point.threshold).mean()) for row in others.rows
    ]
    assert point.measured_rate == pytest.approx(np.mean(above))
    assert point.measured_rate <= 0.05
    assert model.calibration.find_operating_point("patch_0.99").threshold >= point.threshold


def test_a_normal_image_counts_with_its_strongest_findings(fitted, others):
    many = dataclasses.replace(fitted, level=0.5 * fitted.level, findings=FindingsConfig(merge_mm=0.5))
    point = calibrate_model(many, others, progress=False).calibration.find_operating_point("1")
    scored = [examine_image(many, read_image(row.path)) for row in others.rows]
    assert max(len(one.candidates.scores) for one in scored) > 8
    above = [(one.candidates.scores[:8] > point.threshold).sum() for one in scored]
    assert point.measured_rate == pytest.approx(np.mean(above))


def test_images_in_memory_calibrate_like_files(fitted, others):
    images = [read_image(row.path) for row in others.rows]
    model = calibrate_model(fitted, images, progress=False)
    assert model.calibration.patients == len(images), "each of a patient of its own"
    assert set(model.calibration.scores) == set(calibrate_model(fitted, others, progress=False).calibration.scores)


def test_no_patient_identifier_is_kept(fitted, others, tmp_path):
    model = calibrate_model(fitted, others, progress=False)
    model.save(tmp_path / "model")
    text = (tmp_path / "model" / "model.json").read_text()
    assert not any(patient in text for patient in patients_of(others))
    assert not any(patient in text for patient in read_key().hash_patients(patients_of(others)))


def test_a_library_that_fails_on_one_image_ends_nothing_and_notes_are_told(fitted, others, caplog, monkeypatch):
    real = unary.models.calibrating.read_row

    def read(row):
        if row == others.rows[0]:
            raise IndexError("of patient Doe")
        return dataclasses.replace(real(row), notes=("the film is inverted",) if row == others.rows[1] else ())

    monkeypatch.setattr(unary.models.calibrating, "read_row", read)
    model = calibrate_model(fitted, others, progress=False)
    assert len(model.calibration.images) == len(others.rows) - 1
    assert f"skipped: {others.rows[0].path}: an unexpected IndexError" in caplog.text
    assert "Doe" not in caplog.text
    assert f"noted: {others.rows[1].path}: the film is inverted" in caplog.text


def test_a_detector_that_fails_is_no_fault_of_an_image(fitted, others):
    broken = dataclasses.replace(fitted, detector=dataclasses.replace(fitted.detector, size_px=31))
    with pytest.raises(DetectorError, match="fitted for patches of 31 px"):
        calibrate_model(broken, others, progress=False)


def test_one_patient_is_refused_before_images_are_read(fitted, others, monkeypatch):
    monkeypatch.setattr(unary.models.calibrating, "read_row", None)
    with pytest.raises(CalibrationError, match=r"at least two patients .*, there are 1"):
        calibrate_model(fitted, choose(others, patients_of(others)[:1]), progress=False)
