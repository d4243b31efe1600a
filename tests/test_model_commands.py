"""`unary fit` and `unary calibrate` when things go wrong: nothing is lost, and every message says what to do."""

import dataclasses
import errno
import json

import pytest

from unary.cli.main import main
from unary.datasets.manifest import write_manifest
from unary.models import bundle
from unary.models.bundle import read_model

FAST = ["--size-px", "64", "--stride-px", "32"]
LEARNED = [*FAST, "--detector", "wei2018", "--epochs", "2", "--batch-size", "40", "--widths", "2,4"]


def choose(manifest, first, last):
    names = sorted({row.patient_id for row in manifest.rows})[first:last]
    return manifest.select(tuple(row for row in manifest.rows if row.patient_id in names))


@pytest.fixture(scope="module")
def sets(normals, tmp_path_factory):
    """Return manifests of two normal patients, which are too few to hold any out, and of four others."""
    folder = tmp_path_factory.mktemp("sets")
    for name, part in (("few", choose(normals, 0, 2)), ("others", choose(normals, 2, 6))):
        write_manifest(part, folder / f"{name}.csv")
    return folder


@pytest.fixture(scope="module")
def fitted(sets):
    assert main(["fit", str(sets / "few.csv"), "--out", str(sets / "model"), *FAST, "--detector", "laplacian"]) == 0
    return sets / "model"


@pytest.fixture
def full(monkeypatch):
    """Return what fills the disk before ``model.json`` is written, and makes room again."""
    real = bundle.write_durably

    def write(path, content):
        if path.name == bundle.MODEL_FILE:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(bundle, "write_durably", write)
    return lambda: monkeypatch.setattr(bundle, "write_durably", real)


def test_a_full_disk_loses_no_training(sets, tmp_path, full, capsys, monkeypatch):
    words = ["fit", str(sets / "few.csv"), "--out", str(tmp_path / "model"), *LEARNED]
    assert main(words) == 2
    said = capsys.readouterr().err
    (state,) = tmp_path.glob("model.checkpoint.*")
    assert "the model could not be written (No space left on device)" in said
    assert f"No training is lost: its state is in {state}" in said
    assert "run the same command again" in said
    (tmp_path / f".4711.{state.name}").write_bytes(b"half a checkpoint of a process that was killed")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".4711.prepared.tif").write_bytes(b"half a store of it")
    full()
    monkeypatch.setattr("unary.training.engine.save_checkpoint", None)  # nothing is trained again
    assert main([*words, "--store", str(tmp_path / "store")]) == 0
    assert read_model(tmp_path / "model").detector.history.losses
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "store"], "what was left over is gone"
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [".unary.lock", "prepared.tif"]


def test_a_full_disk_loses_no_calibration(fitted, sets, full, capsys):
    before = {path.name: path.read_bytes() for path in fitted.iterdir() if path.name != ".unary.lock"}
    assert main(["calibrate", str(fitted), str(sets / "others.csv")]) == 2
    assert "a model that was there before is there unchanged" in capsys.readouterr().err
    assert (fitted / "model.json").read_bytes() == before["model.json"]
    assert read_model(fitted).calibration is None


def test_fit_and_calibrate_say_who_was_held_out(fitted, sets, tmp_path, capsys, caplog):
    assert main(["fit", str(sets / "few.csv"), "--out", str(tmp_path / "a"), *FAST, "--detector", "laplacian"]) == 0
    assert "nobody is held out, since 5 patients or more are needed for that, not 2" in caplog.text
    said = capsys.readouterr().out
    assert "Nobody was held out. The model is not calibrated: nothing is guaranteed" in said
    assert "held-out" not in said
    assert "operating point" not in said
    assert main(["calibrate", str(fitted), str(sets / "others.csv"), "--out", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "calibrated on 8 images of 4 normal patients" in said
    assert "an estimate" in said
    assert "cannot be told" not in said
    assert "what was there before" not in said


def test_calibration_in_place_says_what_it_cannot_tell_and_where_the_model_before_is(
    fitted, sets, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("UNARY_PATIENT_KEY", str(tmp_path / "another" / "key"))
    before = (fitted / "model.json").read_bytes()
    assert main(["calibrate", str(fitted), str(sets / "others.csv")]) == 0
    said = capsys.readouterr().out
    assert "whether the model has seen these patients cannot be told here: the key for patients" in said
    (kept,) = fitted.glob("model-*.json")
    assert f"what was there before: {kept}" in said
    assert kept.read_bytes() == before
    assert read_model(fitted).calibration.overlap == "unknown"
    assert main(["calibrate", str(fitted), str(sets / "others.csv")]) == 0
    assert len(list(fitted.glob("model-*.json"))) == 1, "the same calibration is not another version"
    kept.replace(fitted / "model.json")
    assert read_model(fitted).calibration is None


def test_nothing_that_fitting_leaves_names_a_patient(normals, tmp_path):
    named = [dataclasses.replace(row, patient_id=f"Doe^Jane {row.patient_id}") for row in normals.rows]
    write_manifest(normals.select(tuple(named)), tmp_path / "fit.csv")
    left = tmp_path / "left"
    words = ["fit", str(tmp_path / "fit.csv"), "--out", str(left / "model"), "--store", str(left / "store"), *LEARNED]
    assert main(words) == 0
    files = [path for path in left.rglob("*") if path.is_file()]
    assert {"model.json", "prepared.tif"} <= {path.name for path in files}
    for path in files:
        assert "Doe" not in str(path)
        assert b"Doe^Jane" not in path.read_bytes()
        assert not any(row.image_id.encode() in path.read_bytes() for row in named)
    document = json.loads((left / "model" / "model.json").read_text())
    assert document["provenance"]["seen"]["count"] == 6


def test_wrong_options_of_a_fusion_are_answered_by_right_ones(sets, tmp_path, capsys):
    begin = ["fit", str(sets / "few.csv"), "--out", str(tmp_path / "model"), "--detector", "fusion"]
    assert main([*begin, "--steps", "3"]) == 2
    assert "is one of these meant: --blind-spot-steps, --segmentation-steps?" in capsys.readouterr().err
    assert main([*begin, "--segmentation-steps", "3"]) == 2
    said = capsys.readouterr().err
    assert "--parts, clusters=1,blind_spot=1,mass=0.7,prominence=0.7,segmentation=1" in said
    assert not (tmp_path / "model").exists()


def test_a_place_where_nothing_can_be_kept_is_told_before_images_are_read(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unary.models.fitting.collect_patches", None)
    (tmp_path / "file").write_text("")
    words = ["fit", str(sets / "few.csv"), "--out", str(tmp_path / "file" / "model"), *FAST, "--detector", "laplacian"]
    assert main(words) == 2
    assert "nothing can be written there" in capsys.readouterr().err
    words = ["fit", str(sets / "few.csv"), "--out", str(tmp_path / "m"), "--store", str(tmp_path / "file"), *FAST]
    assert main(words) == 2
    assert f"{tmp_path / 'file'}: nothing can be written there" in capsys.readouterr().err
    words = ["fit", str(sets / "few.csv"), "--out", str(tmp_path / "m"), "--store", str(tmp_path / "m" / "s"), *FAST]
    assert main(words) == 2
    assert "need a folder outside that of the model" in capsys.readouterr().err
    assert main(["calibrate", str(tmp_path / "typo"), str(sets / "others.csv")]) == 2
    assert not (tmp_path / "typo").exists()
