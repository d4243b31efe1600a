import dataclasses
import logging

import numpy as np
import pytest

import unary.models.commissioning
from unary.errors import CalibrationError, SplitError
from unary.images.reading import read_image
from unary.models.bundle import hash_patients
from unary.models.commissioning import add_detection, calibrate_model
from unary.models.detection import examine_image, require_settings
from unary.models.pipeline import FitConfig, fit
from unary.patches.grid import GridConfig
from unary.records import Lesion

QUICK = FitConfig("laplacian", grid=GridConfig(64, 32))


def patients_of(manifest):
    return sorted({row.patient_id for row in manifest.rows})


def choose(manifest, patients):
    return manifest.select(tuple(row for row in manifest.rows if row.patient_id in patients))


@pytest.fixture(scope="module")
def fitted(normals):
    """Fitted on two patients, which are too few to hold any out."""
    return fit(choose(normals, patients_of(normals)[:2]), QUICK, progress=False)


@pytest.fixture(scope="module")
def others(normals):
    """The four normal patients that were not trained on."""
    return choose(normals, patients_of(normals)[2:])


def test_too_few_patients_give_no_operating_points_and_say_so(normals, caplog):
    with caplog.at_level(logging.WARNING):
        model = fit(choose(normals, patients_of(normals)[:2]), QUICK, progress=False)
    assert model.detection.calibration is None
    assert np.isfinite(model.detection.level)
    assert "no operating points" in caplog.text
    assert "unary calibrate" in caplog.text


def test_enough_patients_are_held_out_and_set_operating_points(normals):
    model = fit(normals, QUICK, progress=False)
    assert model.detection.calibration.patients == 2
    assert [point.name for point in model.detection.calibration.operating_points] == ["0.1", "0.5", "1", "2"]
    assert model.detection.domain.manufacturers == ("unary",)
    assert model.detection.domain.bits == (12,)


def test_a_calibration_is_what_its_images_score(fitted, others):
    model = calibrate_model(fitted, others, progress=False)
    assert fitted.detection.calibration is None, "the model given stays as it is"
    calibration = require_settings(model).calibration
    assert calibration.patients == 4
    scores = [examine_image(fitted, read_image(row.path)).candidates.image_score for row in others.rows]
    assert np.allclose(calibration.scores, np.sort(scores))
    assert np.allclose(calibration.weights, 0.5)
    for score in scores:
        assert 0.2 <= calibration.find_p_value(score) <= 1
    again = calibrate_model(model, choose(others, patients_of(others)[:2]), progress=False)
    assert require_settings(again).calibration.patients == 2, "a former calibration is replaced"


def test_positives_and_unknown_labels_are_refused(fitted, phantoms, others):
    with pytest.raises(CalibrationError, match=r"6 of 18 images .* positive or unlabelled .*--only negative"):
        calibrate_model(fitted, phantoms)
    unknown = tuple(dataclasses.replace(row, label=None) for row in others.rows)
    with pytest.raises(CalibrationError, match="8 of 8"):
        calibrate_model(fitted, others.select(unknown))


def test_seen_patients_are_refused(fitted, normals):
    with pytest.raises(SplitError, match=r"2 patient\(s\) .* --allow-seen"):
        calibrate_model(fitted, normals, progress=False)
    calibration = calibrate_model(fitted, normals, allow_seen=True, progress=False).detection.calibration
    assert calibration.patients == 6
    assert not any(point.promised for point in calibration.operating_points)
    assert {point.false_alarm_rate for point in calibration.operating_points} == {1.0}


def test_benign_lesions_and_incomplete_annotations_are_not_normal(fitted, others, caplog):
    first, second = patients_of(others)[:2]
    rows = [dataclasses.replace(row, complete=row.patient_id != first) for row in others.rows]
    benign = next(row.image_id for row in rows if row.patient_id == second)
    lesion = Lesion(benign, "Calcification", "point", ((5.0, 5.0),))
    with caplog.at_level(logging.WARNING):
        manifest = dataclasses.replace(others, rows=tuple(rows), lesions=(lesion,))
        model = calibrate_model(fitted, manifest, progress=False)
    assert "3 images hold benign lesions" in caplog.text
    assert len(model.detection.calibration.scores) == 5
    assert model.detection.calibration.patients == 3
    assert sorted(model.detection.calibration.weights) == [0.5] * 4 + [1.0]
    few = dataclasses.replace(manifest, rows=tuple(row for row in rows if row.patient_id in (first, second)))
    with pytest.raises(CalibrationError, match="at least two patients"):
        calibrate_model(fitted, few, progress=False)


def test_images_that_cannot_be_used_are_skipped_by_name(fitted, others, tmp_path, caplog, monkeypatch):
    (tmp_path / "broken.dcm").write_bytes(b"no image")
    broken = dataclasses.replace(others.rows[0], path=tmp_path / "broken.dcm", image_id="broken")
    real = unary.models.commissioning.examine_image
    empty = others.rows[1].path

    def examine(model, image):
        examined = real(model, image)
        if image.path == empty:
            return dataclasses.replace(examined, anomaly_map=np.full_like(examined.anomaly_map, np.nan))
        return examined

    monkeypatch.setattr(unary.models.commissioning, "examine_image", examine)
    with caplog.at_level(logging.WARNING):
        model = calibrate_model(fitted, others.select((broken, *others.rows[1:])), progress=False)
    assert "broken.dcm" in caplog.text
    assert f"{empty.name}: no pixel of it could be scored" in caplog.text
    assert len(model.detection.calibration.scores) == len(others.rows) - 2
    assert all(patient not in caplog.messages for patient in patients_of(others))


def test_the_level_comes_from_images_spread_over_the_rows(fitted, others, monkeypatch):
    read = []
    real = unary.models.commissioning.read_row

    def remember(row):
        read.append(row.image_id)
        return real(row)

    monkeypatch.setattr(unary.models.commissioning, "read_row", remember)
    monkeypatch.setattr(unary.models.commissioning, "_LEVEL_IMAGES", 3)
    model = add_detection(fitted, others.rows, progress=False)
    ids = [row.image_id for row in others.rows]
    assert read == [ids[0], ids[4], ids[7]]
    assert model.detection.calibration is None
    with pytest.raises(CalibrationError, match="no training image"):
        add_detection(fitted, [], progress=False)


def test_no_patient_identifier_is_kept(fitted, others, tmp_path):
    model = calibrate_model(fitted, others, progress=False)
    model.save(tmp_path / "model")
    text = (tmp_path / "model" / "model.json").read_text()
    assert not any(patient in text for patient in patients_of(others))
    assert not any(patient in text for patient in hash_patients(patients_of(others)))
