"""Archives in shards: what is written, what is done again, and what nothing can spoil."""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import unary
from unary.cli.main import main
from unary.clinic.archive import ArchiveConfig, detect_archive
from unary.clinic.batch_detection import DetectConfig, detect_files
from unary.clinic.engines import EngineConfig
from unary.clinic.monitoring import monitor_results
from unary.clinic.shard_results import read_results
from unary.clinic.shards import ShardRow, cut_shards
from unary.clinic.stored_figures import (
    calibrate_from_results,
    evaluate_from_results,
    match_manifest,
    require_same_scoring,
)
from unary.datasets.manifest import read_listing, read_manifest, write_manifest
from unary.errors import UnaryError
from unary.evaluation.evaluate import evaluate
from unary.evaluation.summary import document_summary, summarise_evaluation
from unary.models.bundle import read_model, write_model
from unary.models.calibrating import calibrate_model

HERE = EngineConfig(workers=0)
MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def archive(phantoms, tmp_path_factory):
    """Return the path of a manifest of the phantoms, with their lesions."""
    path = tmp_path_factory.mktemp("archive") / "M.csv"
    write_manifest(phantoms, path)
    return path


def run(manifest, out, model_folder, *, size=4, **options):
    config = ArchiveConfig(**{"engine": HERE, "shard_size": size, **options})
    return detect_archive(manifest, out, config, model_folder=model_folder, moment=MOMENT, progress=False)


@pytest.fixture(scope="module")
def plain(archive, model_folder, tmp_path_factory):
    """Return a folder, not to be written to, of results that this process made."""
    out = tmp_path_factory.mktemp("plain") / "out"
    summary = run(archive, out, model_folder)
    assert (summary.images, summary.examined, summary.failed) == (18, 18, 0)
    assert summary.shards > 2
    return out


def read_bytes(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted((out / "shards").rglob("*"))
        if path.is_file()
    }


def read_all(out):
    results = read_results(out)
    return [results.read(table) for table in ("images", "findings", "candidates", "patches")]


def list_names(out):
    return [each["name"] for each in json.loads((out / "run.json").read_text())["shards"]]


def test_shards_are_cut_where_the_rows_say_and_not_by_their_number():
    rows = [ShardRow(f"i{number}", f"/a/{number}.dcm") for number in range(3000)]
    cut = cut_shards(rows, 50)
    assert [row for shard in cut for row in shard] == rows
    assert all(25 <= len(shard) < 100 for shard in cut[:-1])
    assert 40 < len(rows) / len(cut) < 60
    for changed in (rows[:1500] + rows[1501:], [*rows[:700], ShardRow("new", "/b/new.dcm"), *rows[700:]], rows[:-1]):
        again = cut_shards(changed, 50)
        assert [row for shard in again for row in shard] == changed
        assert len(set(again) - set(cut)) <= 3
    assert [len(shard) for shard in cut_shards(rows[:3], 1)] == [1, 1, 1]


def test_the_tables_hold_what_result_json_says(plain, archive, phantoms, model_folder, tmp_path):
    rows = phantoms.rows[:3] + phantoms.rows[-3:]
    detect_files(
        read_model(model_folder),
        [row.path for row in rows],
        tmp_path / "files",
        DetectConfig(dicom=()),
        model_folder=model_folder,
        moment=MOMENT,
        progress=False,
    )
    results = read_results(plain)
    images = {row["image"]: row for row in results.read("images").to_pylist()}
    assert list(images) == [row.image_id for row in phantoms.rows]
    findings = results.read("findings").to_pylist()
    names = ("laterality", "view", "study", "instance", "image_score", "image_p_value", "scored_share", "notes")
    for row in rows:
        told = json.loads((tmp_path / "files" / row.path.stem / "result.json").read_text())
        found = images[row.image_id]
        assert [found[name] for name in names] == [told[name] for name in names]
        assert found["sha256"] == told["made_from"]["sha256"]
        assert {name: found[f"tissue_{name}"] for name in told["tissue"]} == told["tissue"]
        assert {name: found[name] for name in told["acquisition"]} == told["acquisition"]
        own = [each for each in findings if each["image"] == row.image_id]
        assert [each["score"] for each in own] == [each["score"] for each in told["findings"]]
        assert [[each[side] for side in ("r0", "c0", "r1", "c1")] for each in own] == [
            each["box"] for each in told["findings"]
        ]
    metadata = results.read("images").schema.metadata
    assert metadata[b"unary.table_version"] == b"1"
    assert b"diagnosis" in metadata[b"unary.notice"]
    assert results.read("patches", ["score"]).num_columns == 1
    assert unary.read_results(str(plain)).shards == results.shards
    with pytest.raises(UnaryError, match="no table 'people'; there are images"):
        results.read("people")


def test_a_rerun_does_nothing_and_says_so(archive, plain, model_folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*.parquet")}
    words = ["detect", str(model_folder), str(archive), "--out", str(plain), "--engine", "processes"]
    assert main([*words, "--workers", "2"]) == 0
    said = capsys.readouterr().out
    assert "(18 of 18 worked on before), 0 files without a result" in said
    assert "0 made now" in said
    assert "not for diagnosis" in said.lower()
    assert {path: path.stat().st_mtime_ns for path in plain.rglob("*.parquet")} == before


def test_a_worker_killed_in_the_middle_changes_nothing(archive, plain, model_folder, tmp_path):
    out = tmp_path / "out"
    killed = []

    def kill():
        while not list(out.glob("shards/*/record.json")):
            time.sleep(0.02)
        victim = multiprocessing.active_children()[0]
        os.kill(victim.pid, signal.SIGKILL)
        killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    summary = run(archive, out, model_folder, engine=EngineConfig(workers=2))
    thread.join()
    assert killed
    assert summary.lost == 0
    assert read_bytes(out) == read_bytes(plain)
    assert not (out / ".unary.partial").exists()
    assert multiprocessing.active_children() == []


def test_a_run_killed_in_the_middle_is_gone_on_with(archive, plain, model_folder, tmp_path):
    out = tmp_path / "out"
    words = ["detect", str(model_folder), str(archive), "--out", str(out), "--engine", "processes", "--workers", "1"]
    command = [sys.executable, "-m", "unary.cli", *words, "--shard-size", "4"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while not list(out.glob("shards/*/record.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.kill()
    assert json.loads((out / "run.json").read_text())["state"] == "running"
    done = {path: path.stat().st_mtime_ns for path in out.glob("shards/*/record.json")}
    moment = json.loads(next(iter(done)).read_text())["moment"]
    summary = run(archive, out, model_folder)
    assert 0 < summary.kept < 18
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    tables = {name: content for name, content in read_bytes(out).items() if name.endswith(".parquet")}
    assert tables == {name: content for name, content in read_bytes(plain).items() if name.endswith(".parquet")}
    moments = {json.loads(path.read_text())["moment"] for path in out.glob("shards/*/record.json")}
    assert moments == {moment}  # of the run that had begun them
    document = json.loads((out / "run.json").read_text())
    assert document["state"] == "finished"
    assert [each["state"] for each in document["earlier_runs"]] == ["killed"]


def damage_short(folder):
    path = folder / "patches.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def damage_one_byte(folder):
    content = bytearray((folder / "images.parquet").read_bytes())
    content[200] ^= 1
    (folder / "images.parquet").write_bytes(content)


def damage_record(folder):
    (folder / "record.json").write_text((folder / "record.json").read_text().replace('"rows": ', '"rows": 1'))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_short, "patches.parquet is .* bytes long, not"),
        (damage_one_byte, "images.parquet is not what was written"),
        (damage_record, "no whole record"),
        (lambda folder: (folder / "findings.parquet").unlink(), "findings.parquet is missing"),
        (lambda folder: (folder / "record.json").unlink(), "no whole record"),
    ],
)
def test_a_damaged_shard_is_named_and_made_anew(archive, plain, model_folder, tmp_path, damage, told):
    out = tmp_path / "out"
    shutil.copytree(plain, out)
    name = list_names(out)[1]
    damage(out / "shards" / name)
    with pytest.raises(UnaryError, match=f"{name}.*the command that wrote it makes it anew"):
        read_all(out)
    summary = run(archive, out, model_folder)
    assert summary.made == 1
    (remark,) = summary.remarks
    assert remark.startswith(f"1 damaged shard made anew: {name} (")
    assert read_bytes(out) == read_bytes(plain)
    assert re.search(told, remark)


def test_a_manifest_that_changes_has_only_what_is_new_examined(archive, plain, phantoms, model_folder, tmp_path):
    out = tmp_path / "out"
    shorter = tmp_path / "shorter.csv"
    write_manifest(phantoms.select(phantoms.rows[:5] + phantoms.rows[6:]), shorter)
    run(shorter, out, model_folder)
    before = set(list_names(out))
    summary = run(archive, out, model_folder)
    now = set(list_names(out))
    assert list_names(out) == list_names(plain)
    assert summary.shards - summary.made == len(before & now) > 0
    assert any("the manifest has changed since the last run" in remark for remark in summary.remarks)
    assert any(
        remark.startswith(f"{len(before - now)} shard") and "of former manifests" in remark
        for remark in summary.remarks
    )
    assert read_results(out).read("images").equals(read_results(plain).read("images"))
    again = run(shorter, out, model_folder)  # nothing of it was lost
    assert again.made == 0
    assert read_results(out).read("images").num_rows == 17


def test_bad_images_are_rows_with_reasons(phantoms, model_folder, tmp_path, capsys):
    good = phantoms.rows[0].path
    (tmp_path / "cut.dcm").write_bytes(good.read_bytes()[:9000])
    (tmp_path / "text.dcm").write_text("no image")
    (tmp_path / "folder.dcm").mkdir()
    lines = [
        f"good,{good},",
        "gone,gone.dcm,",
        "cut,cut.dcm,",
        "text,text.dcm,",
        "folder,folder.dcm,",
        f"twice,{good},",
    ]
    (tmp_path / "M.csv").write_text("image_id,path,spacing_mm\n" + "\n".join(lines) + "\n")
    words = ["detect", str(model_folder), str(tmp_path / "M.csv"), "--out", str(tmp_path / "out")]
    assert main([*words, "--engine", "processes", "--workers", "0"]) == 3
    said = capsys.readouterr().out
    assert "in 1 image (0 of 5 worked on before), 4 files without a result" in said
    rows = {row["image"]: row for row in read_results(tmp_path / "out").read("images").to_pylist()}
    assert {name: row["reason"] for name, row in rows.items()} == {
        "good": None,
        "gone": "NOT_READABLE",
        "cut": rows["cut"]["reason"],
        "text": "NOT_READABLE",
        "folder": "NOT_READABLE",
    }
    assert rows["cut"]["reason"] in unary.errors.REASONS
    assert rows["gone"]["detail"] == "cannot be opened (No such file or directory)"
    table = (tmp_path / "out" / "failures.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["image", "gone", "cut", "text", "folder"]
    (tmp_path / "gone.dcm").write_bytes(good.read_bytes())
    assert main([*words, "--engine", "processes", "--workers", "0"]) == 3
    assert "6 of" not in capsys.readouterr().out
    assert main([*words, "--engine", "processes", "--workers", "0", "--retry"]) == 3
    rows = {row["image"]: row for row in read_results(tmp_path / "out").read("images").to_pylist()}
    assert rows["gone"]["reason"] is None
    assert rows["gone"]["image_score"] == rows["good"]["image_score"]
    (tmp_path / "bad.csv").write_text("path\nno.dcm\n")
    assert main([*words[:2], str(tmp_path / "bad.csv"), "--out", str(tmp_path / "o2"), "--engine=processes"]) == 2


def test_objects_and_maps_are_those_of_a_folder_of_files(archive, phantoms, model_folder, tmp_path):
    pytest.importorskip("highdicom")
    manifest = tmp_path / "M.csv"
    write_manifest(phantoms.select(phantoms.rows[-2:]), manifest)
    detect = DetectConfig(dicom=("report", "segmentation"), maps=True)
    summary = run(manifest, tmp_path / "out", model_folder, detect=detect)
    assert summary.missing_dicom == 0
    paths = [row.path for row in phantoms.rows[-2:]]
    options = {"model_folder": model_folder, "moment": MOMENT, "progress": False}
    detect_files(read_model(model_folder), paths, tmp_path / "files", detect, **options)
    for row in phantoms.rows[-2:]:
        (folder,) = (tmp_path / "out").glob(f"shards/*/images/{row.image_id}")
        expected = {path.name: path.read_bytes() for path in (tmp_path / "files" / row.path.stem).iterdir()}
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        told, known = (json.loads(each.pop("result.json")) for each in (found, expected))
        assert found == expected
        assert {"report.dcm", "map.tiff", "segmentation.dcm"} <= set(found)
        assert told["findings"] == known["findings"]
    names = list_names(tmp_path / "out")
    (tmp_path / "out" / "shards" / names[0] / "images" / row.image_id / "report.dcm").unlink()
    assert run(manifest, tmp_path / "out", model_folder, detect=detect).made == 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--operating-point", "2"], "another operating point \\(1, now 2\\)"),
        (["--accept", "IMPLANT"], "another accept"),
        (["--shard-size", "7"], "cut by --shard-size 4"),
        (["--dicom", "cad_report"], "objects of studies are not made by shards"),
        (["--address", "auto"], "go with the engine 'ray' alone"),
        (["--gpus-per-worker", "1"], "go with the engine 'ray' alone"),
    ],
)
def test_a_folder_of_other_options_is_refused(archive, plain, model_folder, capsys, more, told):
    before = read_bytes(plain)
    words = ["detect", str(model_folder), str(archive), "--out", str(plain), "--engine", "processes"]
    assert main([*words, *more]) == 2
    assert re.search(told, capsys.readouterr().err)
    assert read_bytes(plain) == before


def test_a_folder_of_another_model_or_command_is_refused(archive, plain, phantoms, model_folder, tmp_path):
    other = tmp_path / "model"
    write_model(dataclasses.replace(read_model(model_folder), calibration=None), other)
    with pytest.raises(UnaryError, match=r"holds results of another model .*choose another folder"):
        run(archive, plain, other)
    path, options = phantoms.rows[0].path, {"model_folder": model_folder, "progress": False}
    detect_files(read_model(model_folder), [path], tmp_path / "files", DetectConfig(dicom=()), **options)
    with pytest.raises(UnaryError, match=r"run\.json: it is there, and not of an archive's results"):
        run(archive, tmp_path / "files", model_folder)
    with pytest.raises(UnaryError, match="this version of unary has not written it"):
        detect_files(read_model(model_folder), [path], plain, DetectConfig(dicom=()), **options)


def test_two_runs_into_one_folder(archive, plain, model_folder):
    from unary.clinic.storage import Store

    with Store(str(plain)).holding(), pytest.raises(UnaryError, match="in use by another process"):
        run(archive, plain, model_folder)


def test_options_of_archives_need_an_engine(archive, model_folder, tmp_path, capsys):
    words = ["detect", str(model_folder), str(archive), "--out", str(tmp_path / "out")]
    assert main([*words, "--workers", "2"]) == 2
    assert "--workers goes with --engine processes or ray alone" in capsys.readouterr().err
    assert main([*words[:-1], "s3://bucket/out"]) == 2
    assert "a URL goes with --engine" in capsys.readouterr().err
    assert main([*words[:2], str(archive.parent), *words[3:], "--engine", "processes"]) == 2
    assert "--engine goes over one manifest" in capsys.readouterr().err


def test_workers_are_told_a_place_that_holds_in_any_folder(archive, model_folder, tmp_path, monkeypatch):
    told = []

    def work(settings, shards, config):
        told.append(settings.out)
        yield from ()

    monkeypatch.setattr("unary.clinic.archive.run_engine", work)
    monkeypatch.chdir(tmp_path)
    for out in ("relative", Path("path"), "memory://place/of/results"):
        run(archive, out, model_folder)
    assert told == [f"{tmp_path}/relative", f"{tmp_path}/path", "memory://place/of/results"]


def test_nothing_can_be_written(archive, model_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnaryError, match="nothing can be written there"):
        run(archive, tmp_path / "file" / "out", model_folder)


def test_stored_results_evaluate_as_images_do(archive, plain, model_folder):
    model, listing, results = read_model(model_folder), read_listing(archive), read_results(plain)
    require_same_scoring(results, model_folder)
    manifest = match_manifest(listing, results)
    assert manifest == read_manifest(archive)
    expected = evaluate(model, manifest, allow_seen=True, progress=False)
    found = evaluate_from_results(model, manifest, results, allow_seen=True)
    assert found.data_hash == expected.data_hash
    assert found.seen == expected.seen
    for one, other in ((found.patches, expected.patches), (found.images, expected.images)):
        assert np.array_equal(one.scores[model.name], other.scores[model.name])
        assert np.array_equal(one.positive, other.positive)
        assert list(one.groups) == list(other.groups)
        assert all(np.array_equal(one.groups[name], other.groups[name]) for name in one.groups)
        assert set(one.scores) == {model.name}
    points, reading = model.calibration.operating_points, model.profile.reading
    documents = [
        document_summary(summarise_evaluation(each, points, reading=reading, resamples=50, progress=False))
        for each in (found, expected)
    ]
    assert documents[1].pop("pixels")
    assert documents[0].pop("pixels") == {}
    assert documents[0] == documents[1]
    for one, other in zip(found.evaluated, expected.evaluated, strict=True):
        assert one.findings == other.findings
        assert one.match.hits == other.match.hits


def test_stored_results_calibrate_as_images_do(archive, plain, phantoms, normals, model_folder, tmp_path):
    path = tmp_path / "N.csv"
    write_manifest(normals, path)
    model, results = read_model(model_folder), read_results(plain)
    manifest = match_manifest(read_listing(path), results)
    expected = calibrate_model(model, read_manifest(path), allow_seen=True, progress=False)
    found = calibrate_from_results(model, manifest, results, allow_seen=True)
    assert found.calibration == expected.calibration
    write_model(found, tmp_path / "model")
    require_same_scoring(results, tmp_path / "model")  # which may then evaluate by them
    p_values = {
        image.row.image_id: image.image_p_value
        for image in evaluate_from_results(
            found, match_manifest(read_listing(archive), results), results, allow_seen=True
        ).evaluated
    }
    image = phantoms.rows[0]
    assert (
        p_values[image.image_id]
        == unary.evaluate(expected, phantoms, allow_seen=True, progress=False).evaluated[0].image_p_value
    )


def test_results_of_another_model_are_refused(archive, plain, normals, tmp_path, capsys):
    model = unary.fit(normals, unary.FitConfig(held_out=0.5, size_px=64), detector="laplacian", progress=False)
    write_model(model, tmp_path / "other")
    words = [str(tmp_path / "other"), str(archive), "--out", str(tmp_path / "report")]
    assert main(["evaluate", *words, "--results", str(plain)]) == 2
    assert "its results are of another model" in capsys.readouterr().err


def test_the_command_line_says_what_is_absent(archive, plain, model_folder, tmp_path, capsys):
    words = [str(model_folder), str(archive), "--out", str(tmp_path / "report"), "--allow-seen"]
    assert main(["evaluate", *words, "--results", str(plain)]) == 0
    said = "figures by pixel, the baseline and the controls need the images"
    assert said in capsys.readouterr().out
    assert said in json.loads((tmp_path / "report" / "metrics.json").read_text())["meta"]["notices"][0]
    assert said in (tmp_path / "report" / "report.html").read_text()


def test_stored_results_watch_scanners_as_files_do(plain, phantoms, model_folder, tmp_path):
    paths, options = [row.path for row in phantoms.rows], {"model_folder": model_folder, "progress": False}
    detect_files(read_model(model_folder), paths, tmp_path / "files", DetectConfig(dicom=()), moment=MOMENT, **options)
    expected, found = monitor_results([tmp_path / "files"]), monitor_results([plain])
    assert repr(dataclasses.asdict(found)) == repr(dataclasses.asdict(expected))


def test_images_that_the_results_lack_are_named(plain, archive, model_folder, caplog):
    listing = read_listing(archive)
    rows = (dataclasses.replace(listing.manifest.rows[0], image_id="other", patient_id="P099"), *listing.manifest.rows)
    manifest = dataclasses.replace(listing.manifest, rows=rows)
    found = evaluate_from_results(read_model(model_folder), manifest, read_results(plain), allow_seen=True)
    assert [line.partition(":")[0] for line in found.skipped] == ["other"]
    assert "1 image without a result" in caplog.text


def test_parquet_says_nothing_of_when_or_by_whom(plain):
    path = next(plain.glob("shards/*/images.parquet"))
    metadata = pyarrow.parquet.read_metadata(path).metadata
    assert {key for key in metadata if key.startswith(b"unary")} == {
        b"unary.table", b"unary.table_version", b"unary.notice"
    }  # fmt: skip
