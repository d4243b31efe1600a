import argparse
import csv
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pytest
import tifffile

from unary.cli.examples import EXAMPLES, FIRST_STEPS
from unary.cli.main import COMMANDS, build_parser, main
from unary.cli.options import add_config_options, find_options, read_config_options
from unary.datasets.manifest import read_manifest, write_manifest
from unary.detectors import DETECTORS, find_detector_class
from unary.errors import UnaryError
from unary.files import locking
from unary.records import NOTICE

SMALL = ["--detector", "laplacian", "--size-px", "64", "--stride-px", "32"]
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
    (weights,) = (fitted / "model").glob("weights-*.safetensors")
    assert {path.name for path in (fitted / "model").iterdir()} == {
        ".unary.lock",
        "MODEL_CARD.md",
        "model.json",
        weights.name,
    }
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
        result = json.loads((out / name / "result.json").read_text())
        assert result["summary"]["patches"] == len(rows)
        points = {point["name"]: point["threshold"] for point in result["operating_points"]}
        assert set(rows[0]) == {"row", "col", "size_px", "score", *(f"above_{name}" for name in points)}
        for point, threshold in points.items():
            marks = [str(int(float(row["score"]) > threshold)) for row in rows]
            assert [row[f"above_{point}"] for row in rows] == marks
        assert (out / name / "overlay.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shutil.rmtree(out / names[0])
    assert main(arguments) == 3
    assert "1 image scored, 2 done before, 1 skipped" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    timed = {
        out / "run.json",
        out / ".unary.lock",
        out / ".unary.files",
        out / names[0] / "result.json",
    }  # which tell when they were made
    assert before.keys() == after.keys()
    assert {path for path in before if before[path] != after[path]} <= timed


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["fit", "{all}", "--out", "{tmp}/m", *FAST], "positive or unlabelled"),
        (["fit", "{tmp}/none.csv", "--out", "{tmp}/m"], "none.csv"),
        (["fit", "{train}", "--out", "{tmp}/m", "--detector", "wei2018", "--epochs", "0"], "--epochs: epochs must be"),
        (["fit", "{train}", "--out", "{tmp}/m", "--detector", "wei2018", "--epochs", "3.5"], "--epochs needs a whole"),
        (
            ["fit", "{train}", "--out", "{tmp}/m", "--blind-spot-learning-rate", "inf"],
            "--blind-spot-learning-rate needs",
        ),
        (["fit", "{train}", "--out", "{tmp}/m", "--min-tissue", "2"], "--min-tissue: min_tissue must lie in [0, 1]"),
        (["fit", "{train}", "--out", "{tmp}/m", "--min-tissue", "nan"], "--min-tissue needs a finite number"),
        (["fit", "{train}", "--out", "{tmp}/m", "--mask", "breast"], "--mask needs one of bright_region, none"),
        (["fit", "{train}", "--out", "{tmp}/m", "--window", "5"], "--window needs two finite numbers, as LOW,HIGH"),
        (["fit", "{train}", "--out", "{tmp}/m", "--window", "-9,-10"], "--window: "),
        (["fit", "{train}", "--out", "{tmp}/m", "--profile", "chest"], "there are mammography, general"),
        (["fit", "{train}", "--out", "{tmp}/m", "--detector", "zzz"], "no detector is called 'zzz'; there are fusion"),
        (["fit", "{train}", "--out", "{tmp}/m", "--detector", "gone:Mine"], "no module 'gone'"),
        (["fit", "{train}", "--out", "{tmp}/m", "--detector", "unary.errors:UnaryError"], "is no detector: it has no"),
        (
            ["fit", "{train}", "--out", "{tmp}/m", "--epochs", "3"],
            "--epochs is no option of fusion; it belongs to wei2018",
        ),
        (["fit", "{train}", "--out", "{tmp}/m", "--detector", "wei2018", "--no-compiled", "--hole-px=3"], "blind_spot"),
        (["fit", "{train}", "--out", "{tmp}/m", "--parts", "laplacian"], "--parts needs names with a number"),
        (["fit", "{train}", "--out", "{tmp}/m", "--segmentation-steps", "3"], "--segmentation-steps: "),
        (["fit", "{train}", "--out", "{tmp}/m", "--blind-spot-device", "cuda:77"], "--blind-spot-device: torch cannot"),
        (["fit", "{train}", "--out", "{tmp}/m", "--blind-spot-device", "warp"], "--blind-spot-device: "),
        (["fit", "{train}", "--out", "{model}", *FAST], "--overwrite"),
        (["fit", "{train}", "--out", "{here}"], "holds no model"),
        (["score", "{tmp}", "x.dcm", "--out", "{tmp}/o"], "model.json"),
        (["score", "{model}", "{tmp}/gone.dcm", "--out", "{tmp}/o"], "gone.dcm"),
        (["score", "{model}", "{tmp}", "--out", "{tmp}/o", "--spacing-mm", "0"], "--spacing-mm must be positive"),
        (["detect", "{model}", "{tmp}", "--out", "{tmp}/o", "--timeout-s", "0"], "--timeout-s: timeout_s must be"),
        (["send", "{tmp}", "--dimse", "PACS@localhost:104"], "no .dcm file"),
        (["detect", "{model}", "", "--out", "{tmp}/o"], "an empty text in place of a path"),
        (["score", "{model}", "{tmp}", "--out="], "an empty text in place of a path"),
        (["split", "{all}", "--train", "{tmp}/t", "--test", "{tmp}/e", "--seed", "-1"], "--seed needs a whole number"),
        (["split", "{all}", "--train", "{tmp}/t", "--test", "{tmp}/e", "--held-out", "inf"], "--held-out needs"),
        (["calibrate", "{model}", "{all}", "--out", "{model}"], "--overwrite"),
        (["check", "{tmp}", "--profile", "chest"], "there are mammography, general"),
        (["score", "{model}", "{tmp}", "--out", "{tmp}/o"], "no image"),
        (["evaluate", "{model}", "{all}", "--out", "{tmp}/e"], "--allow-seen"),
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

    monkeypatch.setattr("unary.models.fitting.fit", interrupt)
    assert main(["fit", str(fitted / "train.csv"), "--out", str(fitted / "other"), *FAST]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_version_and_counts(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert "Not for diagnosis" in capsys.readouterr().out
    assert main(["reproduce", "wei2018", "--data", "x", "--out", "y", "--runs", "0"]) == 2
    assert "--runs needs a whole number of at least 1" in capsys.readouterr().err


def test_options_that_a_command_does_not_have_are_refused(capsys):
    for arguments in (
        ["reproduce", "mnist", "--data", "x", "--out", "y", "--size-px", "3"],
        ["reproduce", "mnist", "--data", "x", "--out", "y", "--mask", "none"],
        ["reproduce", "cifar10", "--data", "x", "--out", "y", "--note", "z"],
        ["detect", "m", "x", "--out", "y", "--stride-px", "3"],
        ["fit", "x", "--out", "y", "--nothing-has-this", "3"],
        ["score", "m", "x", "--out", "y", "--epochs", "3"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert f"unrecognized arguments: {arguments[-2]}" in capsys.readouterr().err


def test_missing_and_broken_images_are_skipped_and_counted(fitted, phantoms, tmp_path, capsys):
    lines = (fitted / "train.csv").read_text().splitlines()
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(phantoms.rows[0].path.read_bytes()[:7000])
    blanks = "," * (lines[0].count(",") - 3)
    extra = [f"{broken},b,pb,negative{blanks}", f"{tmp_path}/gone.dcm,g,pg,negative{blanks}"]
    manifest = tmp_path / "some.csv"
    manifest.write_text("\n".join([*lines, *extra]))
    assert main(["fit", str(manifest), "--out", str(tmp_path / "m"), *SMALL]) == 3
    assert "2 images of the manifest were skipped" in capsys.readouterr().err
    assert json.loads((tmp_path / "m" / "model.json").read_text())["provenance"]["skipped"] == 2
    manifest.write_text("\n".join([lines[0], extra[1]]))
    assert main(["fit", str(manifest), "--out", str(tmp_path / "n"), *FAST]) == 2


def test_help_of_all_commands_needs_nothing_heavy():
    code = (
        "import sys\nfrom unary.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'pydicom', 'scipy', 'skimage', 'matplotlib') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
    for command in COMMANDS:
        assert command.name in ended.stdout


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_help_without_none(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "default: None" not in capsys.readouterr().out


@pytest.mark.parametrize("name", DETECTORS)
def test_help_of_fit_shows_the_options_of_one_detector_and_what_they_do(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100000")
    with pytest.raises(SystemExit):
        main(["fit", "--detector", name, "--help"])
    shown = capsys.readouterr().out
    options = list(find_options(find_detector_class(name)().config))
    for option in options:
        assert f"  {option.flag}" in shown
        assert option.help, f"{option.flag} is not described"
    assert "--held-out" in shown
    others = {option.flag for other in DETECTORS for option in find_options(find_detector_class(other)().config)} - {
        option.flag for option in options
    }
    if any(option.path[-1] == "device" for option in options):  # one word for those of all parts
        others -= {"--device"}
    assert not [flag for flag in others if f"  {flag} " in shown or f"  {flag}," in shown]


def test_a_profile_brings_its_detector(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--profile", "general", "--help"])
    assert "options of nearest_neighbour" in capsys.readouterr().out


def test_a_model_is_replaced_only_when_that_is_asked_for(fitted, tmp_path, capsys):
    arguments = ["fit", str(fitted / "train.csv"), "--out", str(tmp_path / "m"), *SMALL]
    assert main(arguments) == 0
    before = (tmp_path / "m" / "model.json").read_bytes()
    assert main([*arguments, "--seed", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "m" / "model.json").read_bytes() == before
    assert main([*arguments, "--seed", "1", "--overwrite"]) == 0
    assert (tmp_path / "m" / "model.json").read_bytes() != before


def test_what_is_asked_for_is_what_is_fitted(fitted, tmp_path):
    arguments = ["fit", str(fitted / "train.csv"), "--out", str(tmp_path / "m"), *SMALL, "--profile", "general"]
    own = ["--strongest", "3", "--sigmas-px", "1,2.5", "--window", "-5,900", "--mask", "none", "--min-tissue", "0.25"]
    assert main([*arguments, *own]) == 0
    document = json.loads((tmp_path / "m" / "model.json").read_text())
    assert document["profile"]["name"] == "general"
    assert document["state"]["config"] == {"sigmas_px": [1.0, 2.5], "neighbourhood_px": 16.0, "strongest": 3}
    assert document["preparation"]["mask"] == "none"
    assert (document["preparation"]["intensity"], document["preparation"]["window"]) == ("window", [-5.0, 900.0])
    assert document["grid"] == {"size_px": 64, "stride_px": 32, "min_tissue": 0.25}


MINE = '''
from dataclasses import dataclass
from unary.detectors.laplacian import Laplacian

@dataclass(frozen=True, eq=False)
class Mine(Laplacian):
    """A detector of one's own."""
'''


@pytest.mark.parametrize("command", ["evaluate", "bench", "reproduce"])
def test_a_report_replaces_no_foreign_file_and_no_other_process_s(fitted, tmp_path, capsys, command):
    words = {
        "evaluate": [str(fitted / "model"), str(fitted / "test.csv")],
        "bench": ["--data", str(fitted / "test.csv")],
        "reproduce": ["wei2018", "--data", str(tmp_path)],
    }[command]
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text('{"mine": 1}')
    assert main([command, *words, "--out", str(out)]) == 2
    assert "metrics.json: unary has not written it" in capsys.readouterr().err
    assert (out / "metrics.json").read_text() == '{"mine": 1}'
    (out / "metrics.json").unlink()
    with locking(out):
        assert main([command, *words, "--out", str(out)]) == 2
    assert "in use by" in capsys.readouterr().err


def test_a_detector_of_one_s_own_lies_in_the_working_directory(fitted, tmp_path):
    (tmp_path / "own_detector.py").write_text(MINE)
    unary = [sys.executable.replace("python3", "python").rpartition("/")[0] + "/unary"]
    arguments = ["fit", str(fitted / "train.csv"), "--out", "m", "--detector", "own_detector:Mine"]
    sizes = ["--size-px", "64", "--stride-px", "32", "--strongest", "4"]
    image = read_manifest(fitted / "train.csv").rows[0].path
    for command in ([*arguments, *sizes], ["score", "m", str(image), "--out", "scores"]):
        ended = subprocess.run(unary + command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended.stderr
    document = json.loads((tmp_path / "m" / "model.json").read_text())
    assert document["detector"] == "own_detector:Mine"


@dataclass(frozen=True)
class Inner:
    """Of the inner kind.

    Attributes
    ----------
    steps, rate
        Used together: 100 % of them.
    """

    steps: int = 5
    rate: float = 0.5

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be positive, got {self.steps}")


@dataclass(frozen=True)
class Outer:
    """One of everything.

    Attributes
    ----------
    name
        A word
        on two lines.
    mode
        Which.

    Other
    """

    name: str = "a"
    mode: Literal["x", "y"] = "x"
    fast: bool = True
    limit: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    span: tuple[float, float] = (0.5, 1.5)
    parts: tuple[tuple[str, float], ...] = (("p", 1.0),)
    untold: dict = field(default_factory=dict)
    training: Inner = Inner()
    deep_part: Inner = Inner(steps=9)


def parse_outer(words):
    parser = argparse.ArgumentParser()
    add_config_options(parser, Outer())
    return read_config_options(parser.parse_args(words), Outer())


def test_options_of_a_config_have_its_names_types_defaults_and_descriptions(capsys):
    flags = {option.flag: option for option in find_options(Outer())}
    assert list(flags) == [
        "--name", "--mode", "--fast", "--limit", "--sizes", "--span", "--parts", "--steps", "--rate",
        "--deep-part-steps", "--deep-part-rate",
    ]  # fmt: skip
    assert flags["--name"].help == "A word on two lines."
    assert flags["--mode"].help == "Which."
    assert flags["--rate"].help == flags["--steps"].help == "Used together: 100 % of them."
    with pytest.raises(SystemExit):
        parse_outer(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "100 % of them. (default: 9)" in shown
    assert "(default: 1,2)" in shown
    assert "(default: p=1.0)" in shown
    assert "None" not in shown


def test_options_of_a_config_give_that_config():
    assert parse_outer([]) == Outer()
    words = ["--name", "b", "--mode", "y", "--no-fast", "--limit", "7", "--sizes", "3,4,5", "--span=-1,2e3"]
    words += ["--parts", "q=2,r=0.5", "--steps", "6", "--deep-part-rate", "0.25"]
    expected = Outer("b", "y", False, 7, (3, 4, 5), (-1.0, 2000.0), (("q", 2.0), ("r", 0.5)))
    given = parse_outer(words)
    assert (given.training, given.deep_part) == (Inner(6), Inner(9, 0.25))
    assert given == replace(expected, training=Inner(6), deep_part=Inner(9, 0.25))
    assert parse_outer(["--limit", "none"]).limit is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--limit", "x"], "--limit needs a whole number, or none, not 'x'"),
        (["--mode", "z"], "--mode needs one of x, y, not 'z'"),
        (["--sizes", "1,2.5"], "--sizes needs whole numbers separated by commas, not '1,2.5'"),
        (["--span", "1"], "--span needs two finite numbers, as LOW,HIGH, not '1'"),
        (["--span", "1,nan"], "--span needs two finite numbers"),
        (["--parts", "q"], "--parts needs names with a number"),
        (["--rate=-inf"], "--rate needs a finite number, not '-inf'"),
        (["--steps", "0", "--rate", "1"], "--steps: steps must be positive, got 0"),
        (["--deep-part-steps", "0"], "--deep-part-steps: steps must be positive, got 0"),
    ],
)
def test_a_wrong_value_is_told_by_the_option_s_name(words, told):
    with pytest.raises(UnaryError) as caught:
        parse_outer(words)
    assert str(caught.value).startswith(told)


def test_a_field_that_is_an_option_already_is_told():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode")
    with pytest.raises(UnaryError, match="mode of Outer would be the option --mode"):
        add_config_options(parser, Outer())


def test_unary_alone_shows_every_command_and_the_first_steps(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command.name} " in shown
        assert command.help in shown
    assert "others:" not in shown
    for step in FIRST_STEPS:
        assert step in shown
    assert NOTICE in shown


def test_every_command_has_an_example_that_it_understands():
    assert set(EXAMPLES) == {command.name for command in COMMANDS}
    for example in (*EXAMPLES.values(), *FIRST_STEPS):
        program, *words = example.split()
        assert program == "unary"
        parser, own = build_parser(words)
        assert parser.parse_args(words).run is not None
        assert own is not None


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["detct", "m", "x"], "did you mean detect?"),
        (["zzz"], "there are manifest"),
        (["detect", "m", "x", "--ouut", "y"], "no option --ouut; did you mean --out?"),
        (["fit", "x", "--out", "y", "--blind-spot-step=3"], "did you mean --blind-spot-steps?"),
    ],
)
def test_a_slip_of_the_finger_is_told_with_what_was_meant(words, meant, capsys):
    assert main(words) == 2
    assert meant in capsys.readouterr().err


def test_how_much_is_told(fitted, phantoms, tmp_path, caplog):
    caplog.set_level(logging.NOTSET, logger="unary")  # and have it so again afterwards
    image = str(phantoms.rows[0].path)
    for level, told in (("--verbose", True), ("--quiet", False)):
        out = tmp_path / level[2:]
        caplog.clear()
        assert main(["detect", str(fitted / "model"), image, "--dicom", "none", "--out", str(out), level]) == 0
        assert (f"results will be in {out}" in caplog.text) is told
    missing = str(tmp_path / "missing.dcm")
    caplog.clear()
    out = str(tmp_path / "none")
    assert main(["detect", str(fitted / "model"), image, missing, "--dicom", "none", "--out", out, "--quiet"]) == 3
    assert not caplog.text
    assert (tmp_path / "none" / "failures.csv").read_text().count("missing.dcm") > 0
