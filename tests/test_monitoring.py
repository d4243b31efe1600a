"""Watching scanners: what is read of results, what is noticed, what is not, and a clear word for all that is odd."""

import dataclasses
import json

import numpy as np
import pydicom
import pytest

from unary.cli.main import main
from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.clinic.monitoring import monitor_results
from unary.datasets.phantom import PhantomConfig, build_phantom, write_phantom
from unary.errors import UnaryError
from unary.evaluation.monitoring import Observation, watch
from unary.evaluation.monitoring_limits import MonitorLimits, read_limits
from unary.models.bundle import read_model
from unary.outputs.monitoring_report import write_monitoring
from unary.records import NOTICE

POINT = {"name": "1", "false_alarm_rate": 0.1, "patients": 99}
SECRETS = ("Canary", "20260314", "P-4711", "STATION-9")


def write_image(path, seed, **elements):
    config = PhantomConfig(rows=384, cols=320)
    phantom = build_phantom(config, rng=np.random.default_rng(seed))
    write_phantom(phantom, path, image_id=path.stem, patient_id="P-4711", seed=seed)
    dataset = pydicom.dcmread(path)
    known = {
        "PatientName": "Canary^Bird", "StationName": "STATION-9", "AcquisitionDate": "20260314", "ExposureInuAs": 81500,
        "KVP": 29, "BodyPartThickness": 54, "SoftwareVersions": ["7.1", "3"],
    }  # fmt: skip
    for name, value in (known | elements).items():
        if value is None:
            dataset.pop(name, None)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def results(model_folder, tmp_path_factory):
    """Six images: sound, other software, no headers, from the future, from before digital ones, nonsense in numbers."""
    folder = tmp_path_factory.mktemp("images")
    write_image(folder / "a.dcm", 1)
    write_image(folder / "b.dcm", 2, SoftwareVersions="7.2", AcquisitionDate="20260401")
    names = ("StationName", "DeviceSerialNumber", "Manufacturer", "ManufacturerModelName", "AcquisitionDate")
    gone = dict.fromkeys(
        (*names, "ContentDate", "SeriesDate", "StudyDate", "ExposureInuAs", "KVP", "BodyPartThickness")
    )
    write_image(folder / "c.dcm", 3, **gone)
    write_image(folder / "d.dcm", 4, AcquisitionDate="29991231")
    write_image(folder / "e.dcm", 5, AcquisitionDate="19700101", ExposureInuAs=None, Exposure=82)
    write_image(folder / "f.dcm", 6, KVP=-1, BodyPartThickness=9999)
    out = tmp_path_factory.mktemp("results")
    model = read_model(model_folder)
    detect_files(model, [folder], out / "r", DetectConfig(dicom=()), model_folder=model_folder, progress=False)
    return out


def read(folder, name):
    return json.loads((folder / "r" / name / "result.json").read_text())


def test_a_result_says_how_its_image_was_acquired_and_nothing_of_the_patient(results):
    found = read(results, "a")
    facts = found["acquisition"]
    known = {"manufacturer": "unary", "model_name": "synthetic phantom", "software": "7.1, 3", "exposure_mas": 81.5}
    assert facts | known == facts
    assert facts | {"kvp": 29, "thickness_mm": 54, "month": "2026-03", "intent": "FOR PRESENTATION"} == facts
    assert read(results, "b")["acquisition"]["station"] == facts["station"] != None  # noqa: E711
    assert read(results, "e")["acquisition"]["exposure_mas"] == 82
    odd = read(results, "f")["acquisition"]
    assert (odd["kvp"], odd["thickness_mm"]) == (None, None)
    assert 0 < found["tissue"]["dark"] < found["tissue"]["level"] < found["tissue"]["bright"]
    for name in "abcdef":
        text = (results / "r" / name / "result.json").read_text()
        assert not [secret for secret in SECRETS if secret in text.replace('"path"', "")]


def test_scanners_and_months_are_told_and_what_is_odd_is_said(results, tmp_path):
    monitoring = monitor_results([results])
    by_count = sorted(monitoring.scanners, key=lambda scanner: scanner.images)
    assert [scanner.images for scanner in by_count] == [1, 5]
    nameless, scanner = by_count
    assert nameless.name == "unknown"
    months = [month.month for month in scanner.months]
    assert months[0] == "2026-03"
    assert "2999-12" not in months
    assert "1970-01" not in months
    notices = "\n".join(monitoring.notices)
    for words in ("no date of acquisition", "after it was examined", "acquired before 2000", "one month alone"):
        assert words in notices
    assert ("2026-04", "software", "7.2") in scanner.changes
    lines = write_monitoring(monitoring, tmp_path / "out")
    for name in ("report.html", "monitoring.json", "months.csv"):
        text = (tmp_path / "out" / name).read_text()
        assert not [secret for secret in SECRETS if secret in text]
        assert NOTICE in text or name == "months.csv"
    assert lines[-1].endswith("report.html")


def test_damaged_foreign_and_doubled_results_are_left_out_by_name(results, model_folder, tmp_path):
    import shutil

    shutil.copytree(results / "r", tmp_path / "all" / "r")
    shutil.copytree(results / "r" / "a", tmp_path / "all" / "again" / "a")
    edited = tmp_path / "all" / "r" / "b" / "result.json"
    edited.write_text(edited.read_text().replace('"findings": [', '"findings": [ ', 1).replace("7.2", "7.9"))
    (tmp_path / "all" / "r" / "c" / "result.json").write_text("{")
    (tmp_path / "all" / "junk").mkdir()
    (tmp_path / "all" / "junk" / "result.json").write_text("[1]")
    other = fit_other(model_folder, tmp_path)
    image = write_image(tmp_path / "z.dcm", 9)
    detect_files(other[0], [image], tmp_path / "older", DetectConfig(dicom=()), model_folder=other[1], progress=False)
    newest = tmp_path / "older" / "z" / "result.json"
    assert json.loads(newest.read_text())["moment"] >= read(results, "a")["moment"]
    monitoring = monitor_results([tmp_path / "all"])
    notices = "\n".join(monitoring.notices)
    assert "damaged, edited" in notices
    assert "3 results" in notices
    assert "the same file content once more" in notices
    assert sum(scanner.images for scanner in monitoring.scanners) == 4
    both = monitor_results([tmp_path / "all", tmp_path / "older"])
    assert any("another model or operating point" in notice for notice in both.notices)
    for wrong in (tmp_path / "none", tmp_path / "all" / "junk"):
        with pytest.raises(UnaryError, match=r"no such folder|no result of `unary detect`"):
            monitor_results([wrong])


def fit_other(model_folder, tmp_path):
    model = read_model(model_folder)
    folder = tmp_path / "other"
    dataclasses.replace(model, provenance=dataclasses.replace(model.provenance, seed=5)).save(folder)
    return read_model(folder), folder


def draw(count, rng, *, start=0, alarm=0.05, images=2, **shifts):
    """Studies of two images each, thirty studies a month."""
    found = []
    for number in range(start, start + count):
        month = f"{2026 + number // 360}-{number // 30 % 12 + 1:02d}"
        rate = rng.beta(alarm * 2, (1 - alarm) * 2)  # images of a patient resemble each other
        for each in range(images):
            values = {
                "image_score": rng.gamma(3) + shifts.get("score", 0),
                "level": rng.normal(1500, 200) * shifts.get("gain", 1),
                "noise": rng.normal(0.02, 0.003) * shifts.get("noise", 1),
                "contrast": rng.normal(0.6, 0.08) * shifts.get("curve", 1),
                "exposure_mas": rng.normal(80, 15),
            }
            order = ("", f"{number:05d}-{each}")
            found.append(Observation("A", str(number), month, order, bool(rng.random() < rate), values, {}))
    return found


def test_nothing_is_noticed_where_nothing_changes():
    signals = 0
    for seed in range(10):
        signals += len(watch(draw(360, np.random.default_rng(seed)), {}, POINT, MonitorLimits()).signals)
    assert signals <= 2  # 3,600 studies, one false signal in 5,000


@pytest.mark.parametrize(
    ("shift", "what"), [({"gain": 1.1}, "level"), ({"noise": 1.2}, "noise"), ({"curve": 0.8}, "contrast")]
)
def test_a_drift_is_noticed_soon_and_named(shift, what):
    noticed = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        stream = [*draw(300, rng), *draw(150, rng, start=300, **shift)]
        found = watch(stream, {}, POINT, MonitorLimits()).signals
        noticed += any(each.kind == "change" and each.what == what and each.month >= "2026-11" for each in found)
    assert noticed == 5


def test_too_many_alarms_break_the_guarantee_unless_disease_is_said_to_make_them():
    rng = np.random.default_rng(0)
    stream = draw(500, rng, alarm=0.3)
    (signal,) = [each for each in watch(stream, {}, POINT, MonitorLimits()).signals if each.kind == "guarantee"]
    assert "No prevalence is stated" in signal.said
    with_disease = watch(stream, {}, POINT, MonitorLimits(prevalence=0.25))
    assert not [each for each in with_disease.signals if each.kind == "guarantee"]
    nothing = watch(stream, {}, POINT | {"false_alarm_rate": 1.0}, MonitorLimits())
    assert nothing.scanners[0].guarantee is None
    test = watch(draw(100, rng), {}, POINT, MonitorLimits()).scanners[0].guarantee
    assert test.bound == 0.1
    assert 0.1 < test.tested < 0.2


def test_constancy_limits_come_from_the_baseline_and_a_phantom_that_changes_is_seen():
    rng = np.random.default_rng(3)
    stream = []
    for number in range(120):
        month = f"2026-{number // 20 + 1:02d}"
        level = rng.normal(1000, 5) * (1.1 if number == 100 else 1)
        stream.append(Observation("A", str(number), month, ("", f"{number:03d}"), False, {"level": level}, {}))
    limits = MonitorLimits(baseline=("2026-01", "2026-02"), average_run_length=2000)
    found = watch(stream, {}, POINT, limits, constancy=True)
    assert [(each.kind, each.what, each.month) for each in found.signals] == [("constancy", "level", "2026-06")]
    without = watch(stream, {}, POINT, MonitorLimits(), constancy=True)
    assert "no [baseline]" in without.notices[0]
    early = watch(stream, {}, POINT, MonitorLimits(baseline=("2025-01", "2025-02")), constancy=True)
    assert "has 0 image(s)" in early.notices[0]


def test_the_physicists_limits_are_applied_and_nothing_else(tmp_path):
    stream = draw(60, np.random.default_rng(1))
    path = tmp_path / "limits.toml"
    path.write_text("prevalence = 0.01\n[limits.exposure_mas]\nlow = 20\nhigh = 60\n[limits.alarm_rate]\nhigh = 0.9\n")
    found = watch(stream, {}, POINT, read_limits(path))
    assert {(each.kind, each.what) for each in found.signals} == {("limit", "exposure_mas")}
    assert len(found.signals) == 2
    assert not watch(stream, {}, POINT, MonitorLimits()).signals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "'x' is not known"),
        ("prevalence = 'a'", "prevalence must be a finite number"),
        ("prevalence = 1.5", "prevalence must lie"),
        ("false_alarm = 0", "false_alarm must lie"),
        ("[baseline]\nfirst = '2026-01'", "needs first and last"),
        ("[baseline]\nfirst = '2026-13'\nlast = '2026-14'", "two months"),
        ("[limits.dose]\nlow = 1", "'dose' is not followed"),
        ("[limits.kvp]\nlow = 30\nhigh = 20", "low must be below high"),
        ("[limits.kvp]\nmiddle = 3", "'middle'"),
        ("[limits.kvp]", "needs low, high, or both"),
        ("limits = 3", "are tables"),
        ("= =", "not a TOML file"),
    ],
)
def test_wrong_limits_are_refused_by_name(text, words, tmp_path):
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(UnaryError, match=words):
        read_limits(path)


def test_the_command_watches_and_needs_a_baseline_for_constancy(results, tmp_path, capsys):
    assert main(["monitor", str(results), "--out", str(tmp_path / "out")]) == 0
    assert NOTICE in capsys.readouterr().out
    assert main(["monitor", str(results), "--out", str(tmp_path / "out"), "--constancy"]) == 2
    assert "--constancy needs a baseline" in capsys.readouterr().err
    limits = tmp_path / "limits.toml"
    limits.write_text("[baseline]\nfirst = '2026-01'\nlast = '2026-03'\n")
    words = ["monitor", str(results), "--out", str(tmp_path / "out"), "--constancy", "--limits", str(limits)]
    assert main(words) == 0
    assert "no control limits" in capsys.readouterr().out  # one image is no baseline
    assert "Constancy of a phantom image" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "report.html").write_text("mine")
    assert main(["monitor", str(results), "--out", str(tmp_path / "own")]) == 2
    assert (tmp_path / "own" / "report.html").read_text() == "mine"
