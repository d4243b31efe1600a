"""Following runs: the same numbers, one run over interruptions, no patient, and no work that waits for a store."""

from __future__ import annotations

import importlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import unary
from unary.cli.main import main
from unary.datasets.manifest import write_manifest
from unary.errors import MissingPackageError, TrainingError
from unary.evaluation.metrics import list_figures
from unary.files import hash_file
from unary.models.bundle import MODEL_FILE, read_model
from unary.training import engine, tracking
from unary.training.context import FitContext
from unary.training.engine import Rounds, train
from unary.training.tracking import Destination, open_tracker, parse_destination

SMALL = ["--size-px", "64", "--stride-px", "32", "--detector", "wei2018", "--widths", "2,4", "--batch-size", "40"]
MISSING = "runs are followed there with the extra of that name"


class Listener:
    """A tracker of one's own: what it is told."""

    def __init__(self):
        self.numbers, self.settings, self.tags, self.files = [], {}, {}, []

    def log_numbers(self, numbers, *, step=0):
        self.numbers += [(name, step, value) for name, value in numbers.items()]

    def log_settings(self, settings):
        self.settings |= settings

    def log_tags(self, tags):
        self.tags |= tags

    def log_file(self, path):
        self.files.append(path)


class Memory:
    """A store that keeps what is written, or fails so many times."""

    def __init__(self, run="one", failures=0):
        self.run, self.failures, self.written, self.ended = run, failures, [], None

    def _write(self, what):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to http://me:secret@host/api")
        self.written += what

    def write_numbers(self, numbers):
        self._write([(each.name, each.step, each.value) for each in numbers])

    def write_settings(self, settings):
        self._write(list(settings.items()))

    def write_tags(self, tags):
        self._write(list(tags.items()))

    def write_file(self, path):
        self._write([path.read_text()])

    def end(self, *, failed):
        self.ended = "failed" if failed else "finished"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(tracking, "_PAUSE_S", 0.01)
    monkeypatch.setattr(tracking, "_RETRY_S", 0.01)


@pytest.fixture
def store(monkeypatch, quick):
    memory = Memory()
    monkeypatch.setattr(tracking, "_open_store", lambda destination, name, run: memory)
    return memory


@pytest.fixture
def offline(monkeypatch):
    """Refuse every connection, and return the addresses that were asked for."""
    asked = []

    def refuse(self, address):
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def _learn(count, context):
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(network.parameters(), 0.1)

    def advance(rng, number):
        optimizer.zero_grad()
        loss = network(torch.tensor(rng.normal(size=(4, 2)), dtype=torch.float32)).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    rounds = Rounds("net", count, "step")
    return train(network, optimizer, advance, rounds, context, settings=[], data=None, measure=lambda: 2.0)


def test_losses_are_told_with_their_steps_and_again_after_a_resume(tmp_path):
    first, second = Listener(), Listener()
    losses, _ = _learn(3, FitContext(3, tmp_path / "state", progress=False, tracker=first))
    losses, measured = _learn(5, FitContext(3, tmp_path / "state", progress=False, tracker=second))
    told = [(step, value) for name, step, value in second.numbers if name == "loss/net"]
    assert told == list(enumerate(losses, 1))
    assert [value for name, _, value in second.numbers if name == "measured/net"] == list(measured)
    assert sorted(first.numbers) == sorted(each for each in second.numbers if each[1] <= 3)
    assert _learn(5, FitContext(3, progress=False))[0] == losses, "being followed changes nothing"


def test_what_is_told_is_written_in_order_and_once(store, tmp_path):
    state, note = tmp_path / "state.json", tmp_path / "note.txt"
    note.write_text("words")
    with open_tracker("tensorboard:x", name="a", state=state) as tracker:
        tracker.log_settings({"width": 3, "none": None})
        for step in (1, 2, 2, 1, 3):
            tracker.log_numbers({"loss": step / 2}, step=step)
        tracker.log_tags({"hash": "abc"})
        tracker.log_file(note)
    assert sorted(map(str, store.written)) == sorted(
        map(
            str,
            [
                ("width", "3"),
                ("none", "None"),
                ("loss", 1, 0.5),
                ("loss", 2, 1.0),
                ("loss", 3, 1.5),
                ("hash", "abc"),
                "words",
            ],
        )
    )
    assert [each[1] for each in store.written if each[0] == "loss"] == [1, 2, 3]
    assert store.ended == "finished"
    assert not state.exists()
    assert tracker.is_whole


def test_a_run_that_failed_is_gone_on_with(store, monkeypatch, tmp_path):
    state = tmp_path / "state.json"
    with open_tracker("tensorboard:x", name="a", state=state) as tracker:
        tracker.log_numbers({"loss": 1.0}, step=1)
        tracker.close(failed=True)
    assert store.ended == "failed"
    asked = []
    again = Memory()
    monkeypatch.setattr(tracking, "_open_store", lambda destination, name, run: asked.append(run) or again)
    with open_tracker("tensorboard:x", name="a", state=state) as tracker:
        for step in (1, 2):
            tracker.log_numbers({"loss": 1.0 * step}, step=step)
    assert asked == ["one"]
    assert again.written == [("loss", 2, 2.0)]
    other = Memory("two")
    monkeypatch.setattr(tracking, "_open_store", lambda destination, name, run: asked.append(run) or other)
    state.write_text(json.dumps({"destination": "tensorboard at x", "run": "one", "steps": {"loss": 1}}))
    with open_tracker("tensorboard:x", name="a", state=state) as tracker:
        tracker.log_numbers({"loss": 1.0}, step=1)
    assert other.written == [("loss", 1, 1.0)], "the run before is gone: all is written to the new one"
    for text in ('{"half', '{"destination": "tensorboard at y", "run": "one", "steps": {}}', "[]"):
        state.write_text(text)
        with open_tracker("tensorboard:x", name="a", state=state):
            pass
        assert asked[-1] is None


def test_a_store_that_comes_back_misses_nothing(store, caplog):
    store.failures = 3
    with open_tracker("mlflow:http://me:secret@host", name="a") as tracker:
        tracker.log_numbers({"loss": 1.0}, step=1)
        tracker.log_tags({"hash": "abc"})
        deadline = time.monotonic() + 10
        while store.failures and time.monotonic() < deadline:
            time.sleep(0.01)
    assert store.written == [("loss", 1, 1.0), ("hash", "abc")]
    assert tracker.is_whole
    (said,) = caplog.messages
    assert (
        "mlflow at http://host: the run cannot be followed there (ConnectionError: no route to http://host/api)" in said
    )
    assert "secret" not in said


def test_a_store_that_stays_away_is_named_once(store, caplog):
    store.failures = 10**6
    with open_tracker("mlflow", name="a") as tracker:
        for step in range(20):
            tracker.log_numbers({"loss": 1.0}, step=step)
    assert not tracker.is_whole
    assert store.ended is None
    assert len(caplog.messages) == 1


def test_a_store_that_does_not_answer_holds_up_nothing(monkeypatch, quick, caplog, tmp_path):
    answer = threading.Event()
    monkeypatch.setattr(tracking, "_open_store", lambda *_: answer.wait(60))
    monkeypatch.setattr(tracking, "_PATIENCE_S", 0.2)
    start = time.monotonic()
    with open_tracker("mlflow:http://host", name="a", state=tmp_path / "state") as tracker:
        losses, _ = _learn(200, FitContext(0, progress=False, tracker=tracker))
    assert time.monotonic() - start < 10
    answer.set()
    assert len(losses) == 200
    assert not tracker.is_whole
    assert caplog.messages == ["mlflow at http://host: the run cannot be followed there (no answer); the work goes on"]


def test_what_following_costs_is_measured(monkeypatch, capsys):
    pytest.importorskip("tensorboard", reason=MISSING)
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    module = importlib.import_module("tracking")
    found = module.main(["--rounds", "5", "--repeats", "1", "--only", "tensorboard"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"rounds": 5, **found}
    assert found["tensorboard"] > 0


def test_destinations_are_told_apart(monkeypatch):
    assert parse_destination("mlflow:/a/b.db") == Destination("mlflow", "sqlite:////a/b.db")
    assert parse_destination("mlflow:http://u:p@h:5000").location == "http://u:p@h:5000"
    assert str(parse_destination("mlflow:http://u:p@h:5000")) == "mlflow at http://h:5000"
    assert parse_destination("tensorboard:here:there").location == "here:there"
    for text in ("", "wandb", "mlflow2", ":x"):
        with pytest.raises(TrainingError, match="followed by mlflow or tensorboard"):
            parse_destination(text)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'unary\[mlflow\]'"):
        open_tracker("mlflow", name="a")


def test_nothing_is_imported_unless_it_is_asked_for():
    code = (
        "import sys, unary.models.fitting, unary.cli.models\n"
        "assert not {'mlflow', 'tensorboard', 'torch.utils.tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_fit_tells_a_tracker_of_ones_own_what_it_does(normals):
    listener = Listener()
    model = unary.fit(normals, unary.FitConfig(held_out=0.5), detector="laplacian", tracker=listener, progress=False)
    assert listener.settings["detector"] == "laplacian"
    assert listener.settings["fit.held_out"] == "0.5"
    assert listener.settings["grid.size_px"] == str(model.grid.size_px)
    found = {name: value for name, _, value in listener.numbers}
    for point in model.calibration.operating_points:
        assert found[f"operating_points/{point.name}/threshold"] == point.threshold
    assert found["data/patients"] == 6
    assert listener.tags["data_hash"] == model.provenance.data_hash
    _names_no_patient(json.dumps([listener.settings, listener.tags, listener.numbers]), normals)


def _names_no_patient(text, manifest):
    for row in manifest.rows:
        assert row.patient_id not in text
        assert row.image_id not in text
        assert str(row.path) not in text


@pytest.fixture
def interrupt(monkeypatch):
    """Have training stop after its second checkpoint, until it is told to go on."""
    keep, kept = engine.save_checkpoint, []

    def save(*arguments):
        keep(*arguments)
        kept.append(1)
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "save_checkpoint", save)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages that MLflow stands on
@pytest.mark.parametrize("kind", ["mlflow", "tensorboard"])
def test_a_fit_is_one_run_and_an_evaluation_says_what_metrics_json_says(
    kind, normals, phantoms, tmp_path, monkeypatch, interrupt, offline, capsys
):
    pytest.importorskip(kind, reason=MISSING)
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("MLFLOW"):
            monkeypatch.delenv(name)
    write_manifest(normals.select(normals.rows[:6]), tmp_path / "normals.csv")
    rows = (*normals.rows[:2], *[row for row in phantoms.rows if row.label == "positive"][:3])
    write_manifest(phantoms.select(rows), tmp_path / "test.csv")
    words = ["fit", "normals.csv", "--out", "model", *SMALL, "--epochs", "4", "--track", kind, "--track-files"]
    assert main(words) == 130
    assert (tmp_path / "model.checkpoint.tracking").is_file()
    assert main(words) == 0
    assert "followed as fit-model" in capsys.readouterr().out
    assert not list(tmp_path.glob("model.checkpoint*"))
    out = tmp_path / "evaluation"
    assert main(["evaluate", "model", "test.csv", "--out", str(out), "--allow-seen", "--track", kind]) == 0
    document = json.loads((out / "metrics.json").read_text())
    (fit, evaluation), texts = {"mlflow": _read_mlflow, "tensorboard": _read_tensorboard}[kind](tmp_path)
    history = read_model("model").detector.history
    assert fit["loss/wei2018"] == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in enumerate(history.losses, 1)]
    assert fit["data/images"] == [(0, 6)]
    figures = list(list_figures(document))
    assert len(figures) > 100
    for figure in figures:
        name = "/".join(figure.path)
        assert evaluation[name] == [(0, pytest.approx(figure.value, rel=1e-6))]
        if figure.low is not None:
            assert evaluation[f"{name}_ci95/low"] == [(0, pytest.approx(figure.low, rel=1e-6))]
    assert hash_file(tmp_path / "model" / MODEL_FILE) in texts
    assert document["meta"]["data_hash"] in texts
    _names_no_patient(texts + " ".join([*fit, *evaluation]), phantoms)
    files = sorted(path.name for path in tmp_path.rglob("*") if {"artifacts", "files"} & set(path.parts))
    assert {"MODEL_CARD.md", MODEL_FILE} <= set(files)
    assert "report.html" not in files, "files of the evaluation were not asked for"
    assert offline == []
    if kind == "mlflow":
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def _read_mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("unary")
    runs = sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.info.start_time)
    assert [(run.info.run_name, run.info.status) for run in runs] == [
        ("fit-model", "FINISHED"),
        ("evaluate-evaluation", "FINISHED"),
    ]
    assert runs[0].data.params["detector.training.epochs"] == "4"
    found = [
        {
            name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        for run in runs
    ]
    return found, json.dumps([[run.data.tags, run.data.params] for run in runs])


def _read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found, texts = [], ""
    for run in sorted((folder / "runs").iterdir(), key=lambda path: not path.name.startswith("fit-model-")):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        tags = events.Tags()
        found.append({name: [(each.step, each.value) for each in events.Scalars(name)] for name in tags["scalars"]})
        for name in tags["tensors"]:
            texts += b"".join(events.Tensors(name)[-1].tensor_proto.string_val).decode()
    assert "| detector.training.epochs | 4 |" in texts
    return found, texts


def test_a_fit_without_a_store_is_the_same_fit(normals, tmp_path, monkeypatch, caplog, capsys):
    pytest.importorskip("tensorboard", reason=MISSING)
    write_manifest(normals.select(normals.rows[:4]), tmp_path / "normals.csv")
    (tmp_path / "file").write_text("no folder")
    words = ["fit", str(tmp_path / "normals.csv"), "--detector", "laplacian"]
    with caplog.at_level(logging.WARNING):
        assert main([*words, "--out", str(tmp_path / "a"), "--track", f"tensorboard:{tmp_path / 'file'}"]) == 0
    assert "the run cannot be followed there" in caplog.text
    assert "not followed, or not whole, as fit-a" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    left, right = (read_model(tmp_path / name) for name in "ab")
    assert left.level == right.level
    assert left.peaks == right.peaks
    assert main([*words, "--out", str(tmp_path / "c"), "--track", "elsewhere"]) == 2
