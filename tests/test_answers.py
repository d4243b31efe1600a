"""What commands answer to a script, and what they would do without doing it."""

import json
from pathlib import Path

import pytest

from unary.cli.main import main
from unary.datasets.manifest import read_manifest, write_manifest
from unary.records import NOTICE


@pytest.fixture(scope="module")
def folder(phantoms, tmp_path_factory):
    """Return a folder with two images, one file that is none, and the manifest of the images."""
    made = tmp_path_factory.mktemp("inputs")
    rows = phantoms.rows[:2]
    for row in rows:
        (made / row.path.name).write_bytes(row.path.read_bytes())
    (made / "broken.dcm").write_bytes(b"no image")
    write_manifest(phantoms.select(rows), made.parent / "two.csv")
    return made


def ask(capsys, *words):
    """Run a command with ``--json -``; return its exit status, its answer, and its words."""
    status = main([*map(str, words), "--json", "-"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out), captured.err


def list_files(place):
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))


@pytest.mark.parametrize("command", ["score", "detect"])
def test_a_plan_writes_nothing_and_says_what_a_run_then_does(command, folder, model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = [command, model_folder, folder, "--out", out, *(["--dicom", "none"] if command == "detect" else [])]
    status, plan, told = ask(capsys, *words, "--dry-run")
    assert (status, plan["dry_run"], plan["notice"]) == (3, True, NOTICE)
    assert (plan["examine"], plan["keep"], plan["refused"]) == (2, 0, {"NOT_READABLE": 1})
    assert "2 images would be examined, 0 done before, 1 refused. Nothing was written." in told
    assert list_files(tmp_path) == []

    status, made, _ = ask(capsys, *words)
    assert status == 3
    planned = {Path(each["path"]).stem: each["fate"] for each in plan["files"]}
    assert {row["image"]: "examine" for row in made["images"]} | {
        Path(each["file"]).stem: "refuse" for each in made["without_result"]
    } == planned
    assert all(row["made"] for row in made["images"])

    before = list_files(tmp_path)
    _, again, _ = ask(capsys, *words, "--dry-run")
    assert (again["examine"], again["keep"]) == (0, 2)
    assert list_files(tmp_path) == before
    _, kept, _ = ask(capsys, *words)
    assert [row["made"] for row in kept["images"]] == [False, False]


def test_a_plan_is_refused_as_the_run_would_be(folder, model_folder, tmp_path, capsys):
    assert main(["score", str(model_folder), str(folder), "--out", str(tmp_path)]) == 3
    capsys.readouterr()
    assert main(["detect", str(model_folder), str(folder), "--out", str(tmp_path), "--dry-run"]) == 2
    assert "holds results of `unary score`" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert main(["score", str(model_folder), str(folder), "--out", str(tmp_path / "file/x"), "--dry-run"]) == 2
    assert "nothing can be written there" in capsys.readouterr().err


def test_the_plan_of_an_archive_counts_shards_that_are_left(folder, model_folder, tmp_path, capsys):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'unary[ray]'")
    words = ["detect", model_folder, folder.parent / "two.csv", "--out", tmp_path / "out"]
    words += ["--engine", "processes", "--workers", "0", "--shard-size", "1"]
    status, plan, _ = ask(capsys, *words, "--dry-run")
    assert (status, plan["images"], plan["images_left"], plan["damaged"]) == (0, 2, 2, {})
    assert list_files(tmp_path) == []
    status, made, _ = ask(capsys, *words)
    assert (status, made["images"], made["examined"], made["without_result"]) == (0, 2, 2, 0)
    report = ["evaluate", str(model_folder), str(tmp_path / "none.csv"), "--out", str(tmp_path / "out")]
    assert main(report) == 2
    assert "none.csv" in capsys.readouterr().err, "an archive has no page that a report would replace"
    _, again, _ = ask(capsys, *words, "--dry-run")
    assert (again["images_left"], again["shards_left"], again["shards"]) == (0, 0, plan["shards"])


def test_fit_says_from_what_it_would_learn_and_what_it_learned(normals, tmp_path, capsys):
    write_manifest(normals, tmp_path / "M.csv")
    words = ["fit", tmp_path / "M.csv", "--out", tmp_path / "model", "--detector", "laplacian"]
    status, plan, told = ask(capsys, *words, "--dry-run")
    patients = {row.patient_id for row in normals.rows}
    assert (status, plan["images"], plan["patients"]) == (0, len(normals.rows), len(patients))
    assert f"laplacian would learn from {len(normals.rows)} images of {len(patients)} patients" in told
    assert list_files(tmp_path) == ["M.csv"]
    status, made, _ = ask(capsys, *words)
    assert (status, made["images"] > 0, made["model"]["detector"]) == (0, True, "laplacian")
    status, calibrated, _ = ask(capsys, "calibrate", made["out"], tmp_path / "M.csv", "--allow-seen")
    assert (status, bool(calibrated["operating_points"])) == (0, True)


def test_send_says_what_it_would_send_and_calls_nobody(folder, tmp_path, capsys):
    image = next(path for path in sorted(folder.iterdir()) if path.name != "broken.dcm")
    words = ["send", image, folder / "broken.dcm", "--dimse", "NOBODY@localhost:1"]
    status, plan, _ = ask(capsys, *words, "--dry-run")
    assert (status, plan["files"]) == (3, [{"path": str(image)}])
    assert [each["path"] for each in plan["not_sent"]] == [str(folder / "broken.dcm")]
    status, sent, _ = ask(capsys, *words, "--attempts", "1")
    assert (status, sent["stored"], sent["files"][0]["stored"]) == (2, 0, False)


def test_an_answer_goes_into_a_file_beside_the_words(folder, tmp_path, capsys):
    assert main(["check", str(folder), "--json", str(tmp_path / "sub" / "answer.json")]) == 3
    found = json.loads((tmp_path / "sub" / "answer.json").read_text())
    assert (found["accepted"], found["refused"]) == (2, {"NOT_READABLE": 1})
    assert "2 accepted" in capsys.readouterr().out


def test_a_folder_is_of_one_command_though_both_write_a_report(folder, model_folder, phantoms, tmp_path, capsys):
    labelled = [[row for row in phantoms.rows if row.label == label][:2] for label in ("negative", "positive")]
    write_manifest(phantoms.select(tuple(labelled[0] + labelled[1])), tmp_path / "M.csv")
    detect = ["detect", str(model_folder), str(folder), "--dicom", "none", "--out"]
    evaluate = ["evaluate", str(model_folder), str(tmp_path / "M.csv"), "--allow-seen", "--out"]
    assert main([*detect, str(tmp_path / "found")]) == 3
    assert main([*evaluate, str(tmp_path / "found")]) == 2
    assert "it holds results of `unary detect`" in capsys.readouterr().err
    assert main([*evaluate, str(tmp_path / "report")]) == 0
    assert main([*detect, str(tmp_path / "report")]) == 2
    assert "report.html: it is there" in capsys.readouterr().err
    shown = sorted((tmp_path / "report" / "pictures").iterdir())
    assert main([*evaluate[:3], "--out", str(tmp_path / "report")]) == 2, "without --allow-seen"
    assert sorted((tmp_path / "report" / "pictures").iterdir()) == shown != [], (
        "a refusal leaves the former report whole"
    )


def test_a_manifest_has_the_spacing_that_files_do_not_state(folder, tmp_path, capsys):
    for name in ("normal", "abnormal"):
        (tmp_path / "in" / name).mkdir(parents=True)
    image = next(path for path in sorted(folder.iterdir()) if path.name != "broken.dcm")
    (tmp_path / "in" / "normal" / "a.dcm").write_bytes(image.read_bytes())
    status = main(["manifest", "folder", str(tmp_path / "in"), "--out", str(tmp_path / "M.csv"), "--spacing-mm", "0.3"])
    assert (status, read_manifest(tmp_path / "M.csv").rows[0].spacing_mm) == (0, 0.3)
    assert main(["manifest", "folder", str(tmp_path), "--out", str(tmp_path / "N.csv"), "--spacing-mm", "0"]) == 2
    assert "--spacing-mm must be positive" in capsys.readouterr().err
