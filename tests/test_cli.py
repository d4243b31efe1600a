import csv
import json
import shutil

import numpy as np
import pytest
import tifffile

from unary.cli.main import main
from unary.datasets.manifest import write_manifest

FAST = ["--detector", "wei2018", "--epochs", "2", "--batch-size", "20", "--size-px", "64", "--stride-px", "32"]


@pytest.fixture(scope="module")
def workspace(phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    write_manifest(phantoms, folder / "all.csv")
    return folder


@pytest.fixture(scope="module")
def fitted(workspace):
    train, test = str(workspace / "train.csv"), str(workspace / "test.csv")
    assert main(["split", str(workspace / "all.csv"), "--train", train, "--test", test, "--held-out", "0.4"]) == 0
    assert main(["fit", train, "--out", str(workspace / "model"), *FAST]) == 0
    return workspace


def test_fit_leaves_a_model_and_no_checkpoint(fitted):
    assert {path.name for path in (fitted / "model").iterdir()} == {"model.json", "weights.safetensors"}
    assert not list(fitted.glob("*.checkpoint"))


def test_evaluate_writes_one_schema(fitted, capsys):
    out = fitted / "evaluation"
    assert main(["evaluate", str(fitted / "model"), str(fitted / "test.csv"), "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"wei2018", "laplacian", "mean_brightness", "standard_deviation"} == set(metrics["detectors"])
    found = metrics["detectors"]["wei2018"]["all"]
    assert {"auroc", "auroc_ci95", "average_precision", "sensitivity_at_specificity"} <= set(found)
    assert f"{found['auroc']:.3f}" in capsys.readouterr().out
    assert "image" in metrics["detectors"]["wei2018"]
    assert (out / "scores.parquet").stat().st_size > 0
    assert "not for diagnosis" in (out / "report.html").read_text().lower()


def test_score_skips_bad_files_keeps_results_and_resumes(fitted, phantoms, tmp_path, capsys):
    inputs = tmp_path / "in"
    (inputs / "deeper").mkdir(parents=True)
    for row in phantoms.rows[:2]:
        shutil.copy(row.path, inputs / f"{row.image_id}.dcm")
    shutil.copy(phantoms.rows[2].path, inputs / "deeper" / "third.dcm")
    (inputs / "bad.dcm").write_bytes(phantoms.rows[0].path.read_bytes()[:9000])
    out = tmp_path / "out"
    arguments = ["score", str(fitted / "model"), str(inputs), "--out", str(out)]
    assert main(arguments) == 3
    assert "3 images scored, 0 done before, 1 skipped" in capsys.readouterr().out
    assert "bad.dcm" in (out / "failures.csv").read_text()
    names = [row["image"] for row in csv.DictReader((out / "summary.csv").read_text().splitlines())]
    assert sorted(names) == sorted([*(row.image_id for row in phantoms.rows[:2]), "deeper__third"])
    for name in names:
        with (out / name / "scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        anomaly_map = tifffile.imread(out / name / "map.tiff")
        assert anomaly_map.dtype == np.float32
        assert anomaly_map.shape == (384, 320)
        assert json.loads((out / name / "result.json").read_text())["summary"]["patches"] == len(rows)
        assert (out / name / "overlay.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shutil.rmtree(out / names[0])
    assert main(arguments) == 3
    assert "1 images scored, 2 done before, 1 skipped" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["fit", "{all}", "--out", "{tmp}/m", *FAST], "positive or unlabelled"),
        (["fit", "{tmp}/none.csv", "--out", "{tmp}/m"], "none.csv"),
        (["fit", "{train}", "--out", "{tmp}/m", "--detector", "wei2018", "--epochs", "0"], "positive"),
        (["fit", "{train}", "--out", "{tmp}/m", "--min-tissue", "2"], "min_tissue"),
        (["fit", "{train}", "--out", "{here}"], "holds no model"),
        (["score", "{tmp}", "x.dcm", "--out", "{tmp}/o"], "model.json"),
        (["score", "{model}", "{tmp}/gone.dcm", "--out", "{tmp}/o"], "gone.dcm"),
        (["score", "{model}", "{tmp}", "--out", "{tmp}/o"], "no image"),
        (["evaluate", "{model}", "{all}", "--out", "{tmp}/e"], "training set"),
        (["manifest", "inbreast", "{tmp}", "--out", "{tmp}/m.csv"], "{tmp}"),
        (["manifest", "mias", "{tmp}", "--annotation", "x", "--out", "{tmp}/m.csv"], "--annotation"),
        (["reproduce", "wei2018", "--data", "{tmp}", "--out", "{tmp}/r"], "{tmp}"),
        (["reproduce", "mnist", "--data", "{tmp}", "--out", "{tmp}/r"], "{tmp}"),
        (["bench", "--data", "{all}", "--out", "{tmp}/b", "--detectors", "laplacian,zzz"], "'zzz'; there are "),
        (["bench", "--data", "{all}", "--out", "{tmp}/b", "--folds", "1"], "at least 2 folds"),
        (["bench", "--data", "{all}", "--out", "{tmp}/b", "--folds", "9"], "at least 9 patients, there are 6"),
        (["bench", "--data", "{tmp}", "--out", "{tmp}/b"], "{tmp}"),
        (["bench", "--data", "{all}", "--out", "{tmp}/b", "--annotation", "x"], "--annotation"),
    ],
)
def test_bad_input_gets_one_clear_line(arguments, cause, fitted, tmp_path, capsys):
    places = {
        "here": fitted,
        "tmp": tmp_path,
        "all": fitted / "all.csv",
        "train": fitted / "train.csv",
        "model": fitted / "model",
    }
    assert main([part.format(**places) for part in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("unary: error: ")
    assert cause.format(**places) in error


def test_bench_compares_the_detectors_asked_for(workspace, tmp_path, capsys):
    command = ["bench", "--data", str(workspace / "all.csv"), "--out", str(tmp_path / "bench")]
    assert main([*command, "--detectors", "laplacian, mean_brightness", "--folds", "2", "--note", "A proxy."]) == 0
    printed = capsys.readouterr().out
    assert "Not for diagnosis" in printed
    stored = json.loads((tmp_path / "bench" / "metrics.json").read_text())
    assert set(stored["detectors"]) == {"laplacian", "mean_brightness"}
    assert f"{stored['detectors']['laplacian']['all']['auroc']:.3f}" in printed
    assert len(stored["meta"]["folds"]) == 2
    names = {path.name for path in (tmp_path / "bench").iterdir()}
    assert {"metrics.json", "scores.parquet", "bench.md", "bench.json", "report.html", "runs"} <= names
    assert "A proxy." in (tmp_path / "bench" / "bench.md").read_text()


def test_interruption_is_told_and_resumable(fitted, monkeypatch, capsys):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("unary.models.pipeline.fit", interrupt)
    assert main(["fit", str(fitted / "train.csv"), "--out", str(fitted / "other"), *FAST]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_version_and_counts(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert "Not for diagnosis" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", "wei2018", "--data", "x", "--out", "y", "--runs", "0"])
    assert caught.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_missing_and_broken_images_are_skipped_and_counted(fitted, phantoms, tmp_path, capsys):
    lines = (fitted / "train.csv").read_text().splitlines()
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(phantoms.rows[0].path.read_bytes()[:7000])
    blanks = "," * (lines[0].count(",") - 3)
    extra = [f"{broken},b,pb,negative{blanks}", f"{tmp_path}/gone.dcm,g,pg,negative{blanks}"]
    manifest = tmp_path / "some.csv"
    manifest.write_text("\n".join([*lines, *extra]))
    assert main(["fit", str(manifest), "--out", str(tmp_path / "m"), *FAST, "--detector", "laplacian"]) == 3
    assert "2 images of the manifest were skipped" in capsys.readouterr().err
    assert json.loads((tmp_path / "m" / "model.json").read_text())["provenance"]["skipped"] == 2
    manifest.write_text("\n".join([lines[0], extra[1]]))
    assert main(["fit", str(manifest), "--out", str(tmp_path / "n"), *FAST]) == 2


def test_the_fusions_need_memory_and_say_so(fitted, tmp_path, capsys):
    arguments = ["fit", str(fitted / "train.csv"), "--out", str(tmp_path / "m"), "--store", str(tmp_path / "store")]
    assert main(arguments) == 2
    assert "fusion is trained from memory alone" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
